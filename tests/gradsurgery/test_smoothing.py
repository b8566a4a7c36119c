"""The Gram matrix's running mean: laws, absences, checkpoints, and steps that are not finite."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import GradientSurgery, Sum, Verdict
from gradsurgery.methods.base import Method, State
from gradsurgery.methods.smoothing import Smoothed
from tests.gradsurgery.problems import linear_losses, same, state_of, vectors, wrap
from tests.methods import METHODS, every_method_of_gradients

TASKS = ("a", "b", "c")


class Shown(Method):
    """The plain sum, that keeps the Gram matrix which it was shown."""

    def __init__(self) -> None:
        self.grams: list[Tensor] = []

    def __call__(self, gram: Tensor, *, state: State) -> Verdict:
        self.grams.append(gram)
        return Verdict(torch.ones(gram.shape[:-1], dtype=gram.dtype), None, state)


def gradients(step: int, tasks: int = 3, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(tasks, size, generator=generator, dtype=torch.float64)


def train(
    optimizer: GradientSurgery, w: nn.Parameter, rows: Sequence[Tensor], tasks: Sequence[str] = ()
) -> list[Tensor]:
    """Steps with these gradients; returns the updates."""
    updates = []
    for step, matrix in enumerate(rows):
        ran = tasks[step] if tasks else TASKS
        losses = dict(zip(TASKS, linear_losses([w], [[row] for row in matrix]), strict=True))
        optimizer.join({t: loss for t, loss in losses.items() if t in ran}).backward()
        updates.append(w.grad.clone())
        optimizer.zero_grad()
    return updates


def build(method: Method, smoothing: float, size: int = 4) -> tuple[nn.Parameter, GradientSurgery]:
    w = nn.Parameter(torch.zeros(size, dtype=torch.float64))
    return w, wrap([w], method, tasks=TASKS, smoothing=smoothing)


def shown(smoothing: float, rows: Sequence[Tensor], tasks: Sequence[str] = ()) -> list[Tensor]:
    """What a method sees, ``[K, K]`` by step."""
    method = Shown()
    w, optimizer = build(method, smoothing, rows[0].shape[-1])
    train(optimizer, w, rows, tasks)
    return [gram[0] for gram in method.grams]


# ---------------------------------------------------------------------- laws


@every_method_of_gradients
def test_constant_gradients_give_the_unsmoothed_update_to_the_bit(name: str) -> None:
    rows = [gradients(0)] * 6
    ran = ["abc", "abc", "ab", "bc", "abc", "abc"]
    plain, smoothed = (
        train(optimizer, w, rows, ran)
        for w, optimizer in (build(METHODS[name].make(1), beta) for beta in (0.0, 0.9))
    )
    assert all(torch.equal(*pair) for pair in zip(plain, smoothed, strict=True))


@every_method_of_gradients
def test_losses_times_s_give_the_update_times_s_to_the_degree(name: str) -> None:
    """With s = 2 ** 8, and losses of its own, which a method may see."""
    rows = [gradients(step) for step in range(5)]
    method = METHODS[name].make(1)
    plain, scaled = (
        train(optimizer, w, [s * matrix for matrix in rows])
        for s, (w, optimizer) in ((s, build(METHODS[name].make(1), 0.5)) for s in (1.0, 256.0))
    )
    for one, other in zip(plain, scaled, strict=True):
        if name == "throwaway mgda":  # pinv's cutoff is its own
            assert torch.allclose(other, 256.0 * one)
        else:
            assert torch.allclose(other, 256.0**method.degree * one, rtol=1e-6)


def test_without_smoothing_nothing_is_kept_or_changed() -> None:
    w, optimizer = build(METHODS["pcgrad"].make(0), 0.0)
    train(optimizer, w, [gradients(0)])
    assert set(state_of(optimizer)) == {"tasks", "segments", "rng"}


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.999])
def test_it_is_adams_mean(beta: float) -> None:
    rows = [gradients(step) for step in range(8)]
    moment = torch.zeros(3, 3, dtype=torch.float64)
    for step, (matrix, gram) in enumerate(zip(rows, shown(beta, rows), strict=True), start=1):
        moment = beta * moment + (1 - beta) * matrix @ matrix.mT
        assert torch.allclose(gram, moment / (1 - beta**step), rtol=1e-12)
        assert torch.equal(gram, gram.mT)


def test_absent_tasks_and_pairs_keep_their_means() -> None:
    rows = [gradients(step) for step in range(5)]
    ran = ["abc", "ab", "bc", "ac", "abc"]
    beta = 0.9
    last = shown(beta, rows, ran)[-1]
    for i, first in enumerate(TASKS):
        for j, second in enumerate(TASKS):
            products = [
                matrix[i] @ matrix[j]
                for matrix, tasks in zip(rows, ran, strict=True)
                if first in tasks and second in tasks
            ]
            moment = torch.zeros((), dtype=torch.float64)
            for product in products:
                moment = beta * moment + (1 - beta) * product
            assert last[i, j].item() == pytest.approx((moment / (1 - beta ** len(products))).item())


def test_an_absent_task_has_a_zero_row() -> None:
    grams = shown(0.9, [gradients(0), gradients(1)], ["abc", "ab"])
    assert grams[1][2].count_nonzero() == 0
    assert grams[1][:2, :2].count_nonzero() == 4


def test_means_over_different_steps_are_those_of_vectors() -> None:
    """a and b agree where they meet, b and c too, and a and c are opposed where b is absent."""
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    opposed = one * torch.tensor([[1.0], [1.0], [-1.0]], dtype=torch.float64)
    rows, ran = [one, one, opposed, opposed * 2], ["ab", "bc", "ac", "abc"]
    method = Shown()
    w, optimizer = build(method, 0.99, 2)
    train(optimizer, w, rows, ran)
    gram = method.grams[-1][0]
    raw = state_of(optimizer)["smoothed_gram"][0]
    size = raw.diagonal().max()
    assert torch.linalg.eigvalsh(raw)[0] < -0.1 * size
    assert torch.linalg.eigvalsh(gram)[0] > -1e-12 * size
    assert torch.equal(gram.diagonal(), raw.diagonal())


# ---------------------------------------------------------------------- around it


@every_method_of_gradients
def test_a_resumed_run_is_bitwise_the_run_that_never_stopped(name: str) -> None:
    rows = [gradients(step) for step in range(8)]
    ran = ["abc", "ab", "abc", "bc"] * 2
    w, whole = build(METHODS[name].make(1), 0.9)
    expected = train(whole, w, rows, ran)
    v, first = build(METHODS[name].make(1), 0.9)
    train(first, v, rows[:3], ran[:3])
    saved = copy.deepcopy(first.state_dict())
    u, second = build(METHODS[name].make(1), 0.9)
    second.load_state_dict(saved)
    resumed = train(second, u, rows[3:], ran[3:])
    assert all(torch.equal(*pair) for pair in zip(expected[3:], resumed, strict=True))


def test_a_checkpoint_without_a_mean_starts_it_and_one_with_it_loads_without() -> None:
    w, plain = build(METHODS["pcgrad"].make(0), 0.0)
    v, smoothed = build(METHODS["pcgrad"].make(0), 0.9)
    train(plain, w, [gradients(0)])
    train(smoothed, v, [gradients(0)])
    states = [copy.deepcopy(optimizer.state_dict()) for optimizer in (plain, smoothed)]
    smoothed.load_state_dict(states[0])
    plain.load_state_dict(states[1])
    train(plain, w, [gradients(1)])
    train(smoothed, v, [gradients(1)])
    mean = state_of(smoothed)["smoothed_gram"][0]
    assert torch.allclose(mean, gradients(1) @ gradients(1).mT, rtol=1e-14)
    assert set(state_of(plain)) == {"tasks", "segments", "rng"}


def test_a_step_that_is_not_finite_leaves_the_mean_alone() -> None:
    w, optimizer = build(METHODS["gradvac"].make(0), 0.9)
    train(optimizer, w, [gradients(0)])
    before = copy.deepcopy(state_of(optimizer))
    train(optimizer, w, [gradients(1) * torch.inf])
    assert same(before, state_of(optimizer))
    assert optimizer.conflicts.summary()["nonfinite"] == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gram_matrix_that_is_not_finite_raises_nothing(value: float) -> None:
    """On a GPU nobody looks first: the step falls back on the plain sum afterwards."""
    method = Smoothed(Sum(), 0.9)
    state = method.init(1, 3)
    for present in ([True, True, False], [True, True, True]):
        gram = torch.full((1, 3, 3), value, dtype=torch.float64)
        verdict = method(gram, state=state, present=torch.tensor([present]))
        state = {**verdict.state, "smoothed_gram": torch.eye(3, dtype=torch.float64)[None]}
    assert verdict.weights.tolist() == [[1, 1, 1]]


def test_segments_that_are_added_start_afresh() -> None:
    first, second = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    method = Shown()
    base = torch.optim.SGD([("first.weight", first)], lr=0.1)
    optimizer = GradientSurgery(base, method, tasks=("a", "b"), grouping="layer", smoothing=0.9)
    old, new = (
        vectors((1, 0), (0, 1), dtype=first.dtype),
        vectors((2, 1), (1, 3), dtype=first.dtype),
    )
    optimizer.join(linear_losses([first], old)).backward()
    optimizer.zero_grad()
    optimizer.add_param_group({"params": [("second.weight", second)]})
    both = [[2 * one[0], other[0]] for one, other in zip(old, new, strict=True)]
    optimizer.join(linear_losses([first, second], both)).backward()
    kept, fresh = method.grams[-1]
    assert fresh.tolist() == [[5, 5], [5, 10]]
    assert kept[0, 0].item() == pytest.approx((0.9 * 1 + 4) / 1.9)


def test_conflicts_are_counted_on_the_steps_own_gradients() -> None:
    """The mean's cosine is above zero, so that nothing is altered."""
    together, apart = vectors((1, 0.2), (1, 0)), vectors((1, 0), (-0.5, 1))
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], METHODS["pcgrad"].make(0), tasks=("a", "b"), smoothing=0.9)
    for rows in (together, apart):
        optimizer.zero_grad()
        optimizer.join(linear_losses([w], rows)).backward()
    assert w.grad.tolist() == [0.5, 1]
    pair = optimizer.conflicts.summary()["pairs"][0]
    assert (pair["possible"], pair["conflicts"], pair["altered"]) == (2, 1, 0)


def test_what_is_zero_in_this_step_is_not_altered() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], METHODS["pcgrad"].make(0), tasks=("a", "b"), smoothing=0.9)
    for rows in (vectors((1, 0), (-1, 1)), vectors((1, 0), (0, 0))):
        optimizer.zero_grad()
        optimizer.join(linear_losses([w], rows)).backward()
    pair = optimizer.conflicts.summary()["pairs"][0]
    assert (pair["possible"], pair["altered"]) == (1, 1)


def test_a_window_says_that_it_is_smoothed() -> None:
    _, optimizer = build(METHODS["pcgrad"].make(0), 0.9)
    assert optimizer.conflicts.summary()["method"] == "PCGrad(seed=0) with smoothing=0.9"
    assert repr(optimizer.method) == "PCGrad(seed=0)"
