"""Heads against formulas written out by hand, and which one a setting chooses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bert_mtl_demo.config import Config
from bert_mtl_demo.model.heads import HEADS, Cosine, Ensemble, Projection, build_head
from bert_mtl_demo.tasks import TASKS

U = torch.tensor([[1.0, 2.0, 2.0], [0.0, 3.0, 4.0]])
V = torch.tensor([[2.0, 1.0, 2.0], [0.0, -3.0, -4.0]])
W = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.5, 0.0]])
SST, PARA, STS = (TASKS[name] for name in ("sst", "para", "sts"))


def test_cosine_head():
    # cos = (2 + 2 + 4) / (3 * 3) = 8/9; the second pair points apart, and relu makes that 0
    assert Cosine()(U, V).tolist() == pytest.approx([5 * 8 / 9, 0.0])
    assert Cosine().raw(U, V).tolist() == pytest.approx([8 / 9, -1.0])


def test_bounded_head():
    head = HEADS["concat"](3, 0.0, 0)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.5]]))
        head.linear.bias.fill_(-1.0)
    expected = [5 / (1 + math.exp(-(1 + 0.5 * 2 - 1))), 5 / (1 + math.exp(-(0 + 0.5 * -4 - 1)))]
    assert head(U, V).tolist() == pytest.approx(expected)
    assert head.raw(U, V).tolist() == pytest.approx([1.0, -3.0])


@pytest.mark.parametrize(
    ("features", "vectors", "joined"),
    [
        ("alone", (U,), U),
        ("concat", (U, V), torch.cat([U, V], dim=1)),
        ("difference", (U, V), torch.cat([U, V, (U - V).abs()], dim=1)),
    ],
)
def test_heads_are_linear_in_their_features(features, vectors, joined):
    head = Projection(features, 3, 4, dropout=0.0)
    weight, bias = head.linear.weight.detach(), head.linear.bias.detach()
    expected = [[sum(w * x for w, x in zip(row, g, strict=True)) for row in weight] for g in joined]
    torch.testing.assert_close(head(*vectors) - bias, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_hidden_layers(depth):
    head = Projection("concat", 3, 2, dropout=0.0, hidden_layers=depth)
    expected = torch.cat([U, V], dim=1)
    linears = [part for part in head.modules() if isinstance(part, nn.Linear)]
    assert [part.in_features for part in linears] == [6, *[3] * depth]
    for part in linears[:-1]:
        expected = torch.relu(expected @ part.weight.T + part.bias)
    expected = expected @ linears[-1].weight.T + linears[-1].bias
    torch.testing.assert_close(head(U, V), expected)


@pytest.mark.parametrize("depth", [0, 2])
def test_dropout_acts_in_training_only(depth):
    head = Projection("alone", 64, 5, dropout=0.5, hidden_layers=depth)
    given = torch.ones(2, 64)
    head.train()
    assert not torch.equal(head(given), head(given))
    head.eval()
    assert torch.equal(head(given), head(given))
    assert sum(isinstance(part, nn.Dropout) for part in head.modules()) == 1 + depth


def test_an_ensemble_adds_raw_answers():
    cross = Projection("alone", 3, 1, dropout=0.0)
    linear = cross.raw(W)
    cosine = torch.tensor([8 / 9, -1.0])
    torch.testing.assert_close(Ensemble(Cosine(), cross)(U, V, W), cosine + linear)
    bounded = HEADS["difference"](3, 0.0, 0)
    found = Ensemble(bounded, cross)(U, V, W)
    torch.testing.assert_close(found, bounded.raw(U, V) + linear)


@pytest.mark.parametrize("name", HEADS)
def test_a_table_of_scores_is_its_entries(name):
    """Losses ask a head about every u with every v at once."""
    head = HEADS[name](3, 0.0, 1)
    table = head(U[:, None].expand(2, 2, 3), V[None].expand(2, 2, 3))
    for i in range(2):
        for j in range(2):
            torch.testing.assert_close(table[i, j], head(U[i : i + 1], V[j : j + 1])[0])


def test_scales_of_similarity():
    torch.manual_seed(0)
    u, v = torch.randn(2, 200, 3) * 100
    ranges = {
        name: (head(u, v).min().item(), head(u, v).max().item())
        for name, head in ((name, HEADS[name](3, 0.0, 0)) for name in HEADS)
    }
    for name in ("cosine", "concat", "difference"):
        assert ranges[name][0] >= 0
        assert ranges[name][1] <= 5
    assert ranges["linear"][0] < 0
    assert ranges["linear"][1] > 5


@pytest.mark.parametrize(
    ("task", "changes", "shape"),
    [
        (SST, {}, (2, 5)),
        (SST, {"para_loss": "bce", "pairs": "cross"}, (2, 5)),
        (PARA, {}, (2, 2)),
        (PARA, {"para_loss": "bce"}, (2,)),
        (PARA, {"para_loss": "mse", "para_head": "difference"}, (2,)),
        (STS, {}, (2,)),
        (STS, {"sts_head": "linear", "hidden_layers": 1}, (2,)),
    ],
)
@pytest.mark.parametrize("pairs", ["siamese", "cross", "ensemble"])
def test_shapes_of_answers(task, changes, shape, pairs):
    head = build_head(task, Config(**{"pairs": pairs, **changes}), 3, 3).eval()
    pairs = changes.get("pairs", pairs)
    of_pair = {"siamese": (U, V), "cross": (W,), "ensemble": (U, V, W)}[pairs]
    assert head(*(of_pair if task.pair else (U,))).shape == shape


def test_settings_choose_the_features():
    para = build_head(PARA, Config(para_head="difference"), 3)
    assert para.linear.in_features == 9
    assert build_head(PARA, Config(), 3).linear.in_features == 6
    assert build_head(STS, Config(sts_head="difference"), 3).linear.in_features == 9
    both = build_head(PARA, Config(pairs="ensemble"), 7, 3)
    assert (both.siamese.linear.in_features, both.cross.linear.in_features) == (14, 3)
    assert not list(build_head(STS, Config(), 3).parameters())
