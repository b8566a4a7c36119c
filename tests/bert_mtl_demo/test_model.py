"""Model parts against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bert_mtl_demo.config import Config
from bert_mtl_demo.heads import Classify, ClassifyPair, Concat, Cosine
from bert_mtl_demo.losses import LOSSES
from bert_mtl_demo.model import new_model
from bert_mtl_demo.optimization import build_optimizer, decay_groups, lr_curve
from bert_mtl_demo.pooling import POOLINGS
from bert_mtl_demo.tasks import TASKS
from bert_mtl_demo.tokens import Batch, EncodedSet, pad_rows

U = torch.tensor([[1.0, 2.0, 2.0], [0.0, 3.0, 4.0]])
V = torch.tensor([[2.0, 1.0, 2.0], [0.0, -3.0, -4.0]])


def test_cosine_head():
    # cos = (2 + 2 + 4) / (3 * 3) = 8/9; the second pair points apart, and relu makes that 0
    assert Cosine()(U, V).tolist() == pytest.approx([5 * 8 / 9, 0.0])


def test_concat_head():
    head = Concat(3, dropout=0.0)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.5]]))
        head.linear.bias.fill_(-1.0)
    expected = [5 / (1 + math.exp(-(1 + 0.5 * 2 - 1))), 5 / (1 + math.exp(-(0 + 0.5 * -4 - 1)))]
    assert head(U, V).tolist() == pytest.approx(expected)


def test_classifiers_are_linear_in_their_input():
    one, two = Classify(3, 5, 0.0), ClassifyPair(3, 2, 0.0)
    for head, given in ((one, U), (two, torch.cat([U, V], dim=1))):
        weight, bias = head.linear.weight.detach(), head.linear.bias.detach()
        expected = [
            [sum(w * x for w, x in zip(row, g, strict=True)) for row in weight] for g in given
        ]
        found = (head(U) if head is one else head(U, V)) - bias
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_dropout_acts_in_training_only():
    head = Classify(64, 5, dropout=0.5)
    given = torch.ones(2, 64)
    head.train()
    assert not torch.equal(head(given), head(given))
    head.eval()
    assert torch.equal(head(given), head(given))


def test_losses():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert LOSSES["cross_entropy"](logits, torch.tensor([0, 0])).item() == pytest.approx(by_hand)
    assert LOSSES["mse"](torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0])).item() == 2.5


def test_losses_are_float32_under_bf16():
    scores = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert LOSSES["mse"](scores, torch.tensor([1.0, 2.5])).dtype == torch.float32


def test_poolings():
    hidden = torch.tensor([[[1.0], [2.0], [6.0]], [[4.0], [8.0], [99.0]]])  # [2, 3, 1]
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    pooled = torch.tensor([[7.0], [8.0]])
    found = {name: pool(hidden, mask, pooled).tolist() for name, pool in POOLINGS.items()}
    assert found == {"mean": [[3.0], [6.0]], "cls": [[1.0], [4.0]], "pooler": [[7.0], [8.0]]}


@pytest.fixture
def model_of(tiny_encoder):
    from bert_mtl_demo.encoder import load_encoder, locate

    def make(**changes):
        config = Config(encoder=tiny_encoder, **changes)
        encoder = load_encoder(locate(tiny_encoder), pooler=config.pooling == "pooler")
        return new_model(config, encoder).eval()

    return make


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("task", TASKS)
def test_padding_does_not_change_the_answer(model_of, pooling, task):
    model = model_of(pooling=pooling)
    rows = [[2, 5, 6, 7, 3], [2, 9, 3], [2, 11, 12, 3], [2, 8, 5, 10, 6, 3]]
    short_ids, short_mask = pad_rows(rows, 0)
    long_ids, long_mask = pad_rows([*rows, [2] * 30], 0)
    labels = torch.zeros(2)
    with torch.no_grad():
        short = model(task, Batch(short_ids, short_mask, labels))
        long = model(task, Batch(long_ids[:4], long_mask[:4], labels))
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-4)


def test_batch_mates_do_not_change_the_answer(model_of):
    model = model_of()
    rows = {"first": [[2, 5, 3], [2, 9, 6, 7, 3]], "second": [[2, 8, 6, 3], [2, 12, 3]]}
    pairs = EncodedSet(TASKS["para"], rows["first"], rows["second"], [0, 1], pad=0)
    with torch.no_grad():
        together = model("para", pairs.collate([0, 1]))
        apart = torch.cat([model("para", pairs.collate([i])) for i in (0, 1)])
        turned = model("para", pairs.collate([1, 0])).flip(0)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together, turned, atol=1e-5, rtol=1e-4)


def test_u_and_v_are_not_mixed_up(model_of):
    model = model_of()
    pairs = EncodedSet(TASKS["para"], [[2, 5, 3]], [[2, 8, 6, 3]], [0], pad=0)
    single = EncodedSet(TASKS["sst"], [[2, 5, 3], [2, 8, 6, 3]], None, [0, 0], pad=0)
    with torch.no_grad():
        u, v = (model.sentences(single.collate([i])) for i in (0, 1))
        expected = model.heads["para"](u, v)
        torch.testing.assert_close(
            model("para", pairs.collate([0])), expected, atol=1e-5, rtol=1e-4
        )


def test_a_frozen_encoder_gives_fixed_features_also_in_training(model_of):
    model = model_of(freeze_encoder=True, sts_head="concat").train()
    batch = EncodedSet(TASKS["sst"], [[2, 5, 3]], None, [0], pad=0).collate([0])
    assert torch.equal(model.sentences(batch), model.sentences(batch))
    assert not model.sentences(batch).requires_grad
    assert not torch.equal(model("sst", batch), model("sst", batch))  # the head has its dropout


def test_heads_depend_on_the_seed_alone(model_of):
    torch.rand(3)
    one = model_of(seed=5)
    torch.rand(7)
    other = model_of(seed=5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_weight_decay_spares_biases_and_norms(model_of):
    with_decay, without = decay_groups(model_of(), 0.01)
    assert (with_decay["weight_decay"], without["weight_decay"]) == (0.01, 0.0)
    names = [name for name, _ in without["params"]]
    assert all(name.endswith("bias") or "LayerNorm" in name for name in names)
    assert not any("LayerNorm" in name for name, _ in with_decay["params"])
    total = sum(p.numel() for group in (with_decay, without) for _, p in group["params"])
    assert total == sum(p.numel() for p in model_of().parameters())


def test_nothing_to_train_is_refused(model_of):
    model = model_of()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(Config(), model)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_learning_rate_rises_then_falls_or_stays(schedule):
    curve = lr_curve(schedule, warmup=10, steps=50)
    rates = [curve(step) for step in range(51)]
    assert rates[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert max(rates) == 1.0
    assert rates[-1] == (0.0 if schedule == "linear" else 1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert all(rate > 0 for rate in rates[:-1])
