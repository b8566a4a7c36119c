"""Losses against their formulas, written out with plain loops in float64."""

from __future__ import annotations

import math
from math import exp, log

import pytest
import torch

from bert_mtl_demo.config import STS_LOSSES, Config
from bert_mtl_demo.model.heads import HEADS
from bert_mtl_demo.model.losses import CLASS_LOSSES, SIMILARITY_LOSSES, LossInputs, loss_of
from bert_mtl_demo.tasks import TASKS

WIDTH = 6
LABELS = [4.8, 1.0, 4.6, 0.4, 3.0]
PAIR_LOSSES = [name for name in SIMILARITY_LOSSES if name not in ("mse", "huber", "mnrl_one")]


def evidence(labels=LABELS, *, head="linear", epoch=1, temperature=0.5, seed=0, near=()):
    """A batch of siamese pairs; those in `near` have almost parallel vectors."""
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, len(labels), WIDTH, generator=generator)
    for i in near:
        v[i] = 2 * u[i] + 0.05 * v[i]
    u.requires_grad_()
    v.requires_grad_()
    torch.manual_seed(seed)
    built = HEADS[head](WIDTH, 0.0, 0)
    return LossInputs(
        built(u, v), torch.tensor(labels), u, v, built, epoch=epoch, temperature=temperature
    )


def plain(seen, *, raw=False):
    """Scores (or raw ones) and cosines of every u with every v, as lists of float64."""
    u, v = seen.u.detach().double(), seen.v.detach().double()
    module = seen.head.double()
    head = module.raw if raw else module
    size = range(len(u))
    scores = [[head(u[i : i + 1], v[j : j + 1]).item() for j in size] for i in size]
    cosines = [[(u[i] @ v[j] / (u[i].norm() * v[j].norm())).item() for j in size] for i in size]
    module.float()
    return scores, cosines


def softmax_loss(table, rows):
    return softmax_loss_of_pairs(table, [(i, i) for i in rows])


def softmax_loss_of_pairs(table, pairs):
    return sum(log(sum(map(exp, table[i]))) - table[i][j] for i, j in pairs) / len(pairs)


def sigmoid(x):
    return 1 / (1 + exp(-x))


def near(value):
    return pytest.approx(value, rel=1e-5, abs=1e-6)


def test_losses_of_classes():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    by_hand = (log(1 + exp(-2)) + log(1 + exp(1))) / 2
    found = CLASS_LOSSES["cross_entropy"](LossInputs(logits, torch.tensor([0, 0])))
    assert found.item() == near(by_hand)
    # The same two classes from one logit, that of class 1 less that of class 0.
    one = LossInputs(logits[:, 1] - logits[:, 0], torch.tensor([0, 0]))
    assert CLASS_LOSSES["bce"](one).item() == near(by_hand)
    mixed = LossInputs(torch.tensor([0.5, -2.0]), torch.tensor([1, 0]))
    expected = ((1 - sigmoid(0.5)) ** 2 + sigmoid(-2) ** 2) / 2
    assert CLASS_LOSSES["mse"](mixed).item() == near(expected)


def test_losses_of_scores():
    seen = LossInputs(torch.tensor([1.0, 4.0, 2.0]), torch.tensor([2.0, 2.0, 2.5]))
    assert SIMILARITY_LOSSES["mse"](seen).item() == near((1 + 4 + 0.25) / 3)
    assert SIMILARITY_LOSSES["huber"](seen).item() == near((0.5 + 1.5 + 0.125) / 3)


def test_cosine_embedding():
    seen = evidence([2.6, 2.5, 0.0, 5.0])
    _, cosines = plain(seen)
    expected = [1 - cosines[0][0], max(0, cosines[1][1]), max(0, cosines[2][2]), 1 - cosines[3][3]]
    assert SIMILARITY_LOSSES["cosine_embedding"](seen).item() == near(sum(expected) / 4)


def test_mnrl_of_one_similar_pair():
    seen = LossInputs(torch.tensor([1.0, 2.5, 0.5, 9.0]), torch.tensor([2.0, 4.0, 0.0, 3.0]))
    expected = -(2.5 - log(exp(1) + exp(0.5) + exp(9)))  # the pair with a 3 is dissimilar
    assert SIMILARITY_LOSSES["mnrl_one"](seen).item() == near(expected)
    two = LossInputs(torch.tensor([1.0, 2.5, 0.5]), torch.tensor([2.0, 4.0, 3.5]))
    assert SIMILARITY_LOSSES["mnrl_one"](two).item() == near(1 - (2.5 + 0.5) / 2)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("epoch", "rows"), [(1, [0, 2]), (6, [0])])  # 4.4, then 4.65
def test_mnrl_with_a_threshold_on_labels(head, epoch, rows):
    seen = evidence(head=head, epoch=epoch)
    scores, _ = plain(seen)
    assert SIMILARITY_LOSSES["mnrl_label"](seen).item() == near(softmax_loss(scores, rows))


def test_the_threshold_itself_is_positive():
    seen = evidence([4.4, 0.0])
    scores, _ = plain(seen)
    assert SIMILARITY_LOSSES["mnrl_label"](seen).item() == near(softmax_loss(scores, [0]))


def test_mnrl_with_a_threshold_on_cosines():
    seen = evidence(near=(1, 3))
    scores, cosines = plain(seen)
    assert [i for i in range(5) if cosines[i][i] >= 0.8] == [1, 3]
    assert SIMILARITY_LOSSES["mnrl_cosine"](seen).item() == near(softmax_loss(scores, [1, 3]))
    # A first sentence that is close to another pair's second one makes a positive pair with it.
    seen.v.data[4] = seen.u.data[1]
    scores, cosines = plain(seen)
    close = [(1, 1), (1, 4), (3, 3)]
    assert [(i, j) for i in range(5) for j in range(5) if cosines[i][j] >= 0.8] == close
    expected = softmax_loss_of_pairs(scores, close)
    assert SIMILARITY_LOSSES["mnrl_cosine"](seen).item() == near(expected)
    late = evidence(near=(1, 3), epoch=12)  # .8 + 11 * .02 is above 1
    assert SIMILARITY_LOSSES["mnrl_cosine"](late).item() == 0.0


@pytest.mark.parametrize("name", ["mnrl_label", "mnrl_cosine"])
def test_under_a_linear_head_first_sentences_cancel(name):
    for head, cancels in (("linear", True), ("concat", False), ("cosine", False)):
        seen = evidence(head=head, near=(0, 2))
        u, v = seen.pair()
        loss = SIMILARITY_LOSSES[name](seen)
        of_u, of_v = torch.autograd.grad(loss, [u, v])
        assert bool(of_u.abs().max() < 1e-6) == cancels
        assert of_v.abs().max() > 1e-3


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_simcse(temperature):
    seen = evidence([4.1, 4.0, 5.0, 0.0], temperature=temperature)
    _, cosines = plain(seen)
    table = [[cosine / temperature for cosine in row] for row in cosines]
    assert SIMILARITY_LOSSES["simcse"](seen).item() == near(softmax_loss(table, [0, 2]))


def test_triplet():
    seen = evidence(near=(0, 2, 4))
    u, v = seen.u.detach().double().tolist(), seen.v.detach().double().tolist()
    far = [(math.dist(u[i], v[i]), math.dist(u[i], u[(i + 1) % 5])) for i in range(5)]
    terms = [max(0.0, far[i][0] - far[i][1] + 1) * LABELS[i] / 5 for i in range(5)]
    assert SIMILARITY_LOSSES["triplet"](seen).item() == near(sum(terms) / 5)
    assert min(terms) == 0 < max(terms)


@pytest.mark.parametrize("head", HEADS)
def test_negative_sampling(head):
    seen = evidence(head=head)
    scores, _ = plain(seen, raw=True)
    terms = []
    for i, label in enumerate(LABELS):
        t, score, other = label / 5, scores[i][i], scores[i][(i + 1) % 5]
        terms.append(-t * log(sigmoid(score)) - (1 - t) * log(sigmoid(-score)))
        terms.append(-log(sigmoid(-other)))
    assert SIMILARITY_LOSSES["negative_sampling"](seen).item() == near(sum(terms) / 5)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("mnrl_one", [0.0, 1.0]),  # no similar pair
        ("mnrl_one", [4.0, 5.0]),  # no dissimilar one
        ("mnrl_label", [4.3, 1.0]),
        ("mnrl_cosine", [5.0, 5.0]),  # the vectors are random
        ("simcse", [4.0, 1.0]),
        ("triplet", [5.0]),
    ],
)
def test_a_batch_without_a_lesson_is_a_zero_with_a_graph(name, labels):
    seen = evidence(labels, seed=3)
    loss = SIMILARITY_LOSSES[name](seen)
    assert loss.item() == 0.0
    loss.backward()
    assert seen.u.grad.abs().max() == 0
    assert all(p.grad is not None and not p.grad.any() for p in seen.head.parameters())


@pytest.mark.parametrize("name", SIMILARITY_LOSSES)
def test_batches_of_one(name):
    loss = SIMILARITY_LOSSES[name](evidence([4.9], near=(0,)))
    loss.backward()
    assert math.isfinite(loss.item())


@pytest.mark.parametrize("name", ["mnrl_label", "mnrl_cosine", "negative_sampling"])
def test_losses_on_scores_train_the_head(name):
    seen = evidence(near=(0, 1))
    SIMILARITY_LOSSES[name](seen).backward()
    assert all(parameter.grad.any() for parameter in seen.head.parameters() if parameter.ndim > 1)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_losses_train_the_vectors(name):
    seen = evidence(near=(0, 1))
    SIMILARITY_LOSSES[name](seen).backward()
    assert seen.u.grad.any()
    assert seen.v.grad.any()
    assert torch.isfinite(seen.u.grad).all()


@pytest.mark.parametrize("name", SIMILARITY_LOSSES)
def test_equal_vectors_have_finite_gradients(name):
    u = torch.ones(3, WIDTH, requires_grad=True)
    v = torch.ones(3, WIDTH, requires_grad=True)
    built = HEADS["cosine"](WIDTH, 0.0, 0)
    seen = LossInputs(built(u, v), torch.tensor([5.0, 4.5, 1.0]), u, v, built)
    SIMILARITY_LOSSES[name](seen).backward()
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("name", SIMILARITY_LOSSES)
def test_losses_are_float32_under_bf16(name):
    with torch.autocast("cpu", torch.bfloat16):
        seen = evidence(near=(0, 1))
        assert SIMILARITY_LOSSES[name](seen).dtype == torch.float32


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_losses_of_classes_are_float32_under_bf16(name):
    answer = torch.zeros((2, 2) if name == "cross_entropy" else 2, dtype=torch.bfloat16)
    assert CLASS_LOSSES[name](LossInputs(answer, torch.tensor([0, 1]))).dtype == torch.float32


def test_a_cosine_is_not_rounded_under_bf16():
    """The temperature would blow a step of 1/128 up to a sixth of a unit."""
    seen = evidence([5.0, 5.0, 0.0], temperature=0.05)
    exact = SIMILARITY_LOSSES["simcse"](seen)
    with torch.autocast("cpu", torch.bfloat16):
        assert SIMILARITY_LOSSES["simcse"](seen).item() == near(exact.item())


def test_tables_are_those_of_the_config():
    assert tuple(SIMILARITY_LOSSES) == STS_LOSSES
    chosen = [
        loss_of(TASKS[task], Config(para_loss=para, sts_loss="huber"))
        for task in ("sst", "para", "sts")
        for para in CLASS_LOSSES
    ]
    by_task = [chosen[:3], chosen[3:6], chosen[6:]]
    assert by_task == [
        [CLASS_LOSSES["cross_entropy"]] * 3,
        list(CLASS_LOSSES.values()),
        [SIMILARITY_LOSSES["huber"]] * 3,
    ]
