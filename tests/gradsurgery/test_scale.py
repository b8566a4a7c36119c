"""The loss scale: whatever factor the gradients carry, the update is that of the run without it,
times the factor. Powers of two change no bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import GradientSurgery, Sum
from gradsurgery.distributed.placement import Processes
from tests.gradsurgery.problems import linear_losses, vectors, wrap
from tests.methods import METHODS, every_method, every_method_of_gradients
from tests.throwaway import Unit

TASKS = ("a", "b", "c")
#: Which tasks run in each step.
STEPS = ["abc", "abc", "ab", "bc", "abc"]
Losses = Callable[[], dict[str, Tensor]]  # the forward passes
Way = Callable[[GradientSurgery, Losses, float], None]


def by_join(optimizer: GradientSurgery, losses: Losses, scale: float) -> None:
    (optimizer.join(losses()) * scale).backward()


def by_task(optimizer: GradientSurgery, losses: Losses, scale: float) -> None:
    for task, loss in losses().items():
        with optimizer.task(task, loss=loss):
            (loss * scale).backward()
    optimizer.combine(scale=scale)


def divided(optimizer: GradientSurgery, losses: Losses, scale: float) -> None:
    """As Accelerate, the HF Trainer, Lightning and Fabric do: the joined loss over the number of
    micro-batches, then scaled. These have 2 and 0 times the loss."""
    for part in (2.0, 0.0):
        joined = optimizer.join({t: part * x for t, x in losses().items()}, combine=part == 0)
        (joined / 2 * scale).backward()


def task_by_task(optimizer: GradientSurgery, losses: Losses, scale: float) -> None:
    """Each in a micro-batch of its own."""
    last = list(losses())[-1]
    for task, loss in losses().items():
        (optimizer.join({task: loss}, combine=task == last) * scale).backward()


WAYS = [by_join, by_task, divided, task_by_task]


def distances(w: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    return {task: (w - row).square().sum() for task, row in targets.items()}


def updates(optimizer: GradientSurgery, w: nn.Parameter, way: Way, scale: float) -> list[Tensor]:
    """The updates of some steps, unscaled; the parameter does not move."""
    seen = []
    for step, tasks in enumerate(STEPS):
        rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(step)).double()
        targets = {t: row for t, row in zip(TASKS, rows, strict=True) if t in tasks}
        way(optimizer, partial(distances, w, targets), scale)
        seen.append(w.grad / scale)
        optimizer.zero_grad()
    return seen


def steps(name: str, way: Way, scale: float, smoothing: float = 0.0) -> list[Tensor]:
    w = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    method = METHODS[name].make(1)
    return updates(wrap([w], method, tasks=TASKS, smoothing=smoothing), w, way, scale)


@pytest.mark.parametrize("way", WAYS)
@every_method
def test_a_loss_scale_of_a_power_of_two_changes_no_bit(name: str, way: Way) -> None:
    plain, scaled = (steps(name, way, scale) for scale in (1.0, 2.0**16))
    assert all(torch.equal(*pair) for pair in zip(plain, scaled, strict=True))


@pytest.mark.parametrize("way", WAYS)
@every_method_of_gradients
def test_nor_under_smoothing(name: str, way: Way) -> None:
    plain, scaled = (steps(name, way, scale, 0.9) for scale in (1.0, 2.0**16))
    assert all(torch.equal(*pair) for pair in zip(plain, scaled, strict=True))


@pytest.mark.parametrize("way", WAYS[1:])
def test_all_ways_carry_the_same_scale(way: Way) -> None:
    """Micro-batches whose sum is divided by their number are one batch."""
    for update, expected in zip(
        steps("throwaway unit", way, 48.0), steps("throwaway unit", by_join, 1.0), strict=True
    ):
        assert torch.allclose(update, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_a_scale_that_changes_between_steps_is_that_of_each_step(smoothing: float) -> None:
    """As a GradScaler's does: the running mean is of gradients without it."""

    def run(factors: list[float]) -> list[Tensor]:
        w = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        optimizer = wrap([w], METHODS["pcgrad"].make(0), tasks=TASKS, smoothing=smoothing)
        remaining = iter(factors)

        def way(optimizer: GradientSurgery, losses: Losses, scale: float) -> None:
            factor = next(remaining)
            by_join(optimizer, losses, factor)
            w.grad /= factor

        return updates(optimizer, w, way, 1.0)

    changing = run([1.0, 4096.0, 2.0, 0.25, 1024.0])
    assert all(torch.equal(*pair) for pair in zip(changing, run([1.0] * 5), strict=True))


def unit(**options: object) -> tuple[nn.Parameter, GradientSurgery, list[Tensor]]:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], Unit(), tasks=("a", "b"), **options)  # type: ignore[arg-type]
    return w, optimizer, linear_losses([w], vectors((3, 4), (0, 2)))


def test_a_scale_that_combine_is_told_goes_before_what_join_knows() -> None:
    w, optimizer, losses = unit()
    (8 * optimizer.join(losses, combine=False)).backward()
    optimizer.combine(scale=2.0)
    assert w.grad.tolist() == pytest.approx([2 * 0.6, 2 * 1.8])


def test_join_without_combine_remembers_its_scale() -> None:
    w, optimizer, losses = unit()
    (8 * optimizer.join(losses, combine=False)).backward()
    optimizer.combine()
    assert w.grad.tolist() == pytest.approx([8 * 0.6, 8 * 1.8])


def test_a_step_that_was_dropped_leaves_no_scale_behind() -> None:
    w, optimizer, losses = unit()
    (8 * optimizer.join(losses, combine=False)).backward(retain_graph=True)
    optimizer.zero_grad()
    optimizer.join(linear_losses([w], vectors((3, 4), (0, 2)))).backward()
    assert w.grad.tolist() == pytest.approx([0.6, 1.8])


@pytest.mark.parametrize("factor", [0.0, -2.0])
def test_factors_that_are_no_loss_scale_multiply_the_update(factor: float) -> None:
    w, optimizer, losses = unit()
    (factor * optimizer.join(losses)).backward()
    assert w.grad.tolist() == pytest.approx([factor * 0.6, factor * 1.8])


def test_an_overflow_is_the_plain_sum_as_before() -> None:
    w, optimizer, losses = unit()
    (torch.tensor(torch.inf) * optimizer.join(losses)).backward()
    assert not w.grad.isfinite().any()
    assert optimizer.conflicts.summary()["nonfinite"] == 1


def test_at_features_the_scale_is_undone_as_well() -> None:
    grads = []
    for scale in (1.0, 256.0):
        w = nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = wrap([w], Unit(), tasks=("a", "b"))
        z = 2 * w
        (scale * optimizer.join({"a": z[0], "b": z[1] - z[0]}, features=z)).backward()
        grads.append(w.grad / scale)
    assert torch.equal(*grads)


def test_methods_of_degree_one_keep_their_bits_under_any_factor() -> None:
    """Nothing is divided: a third has no exact inverse."""
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], Sum(), tasks=("a", "b"))
    assert not optimizer._pipeline._unscales


def test_the_scale_is_averaged_over_the_ranks_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that is told the scale, and whose Gram matrix is shown without it."""
    asked: list[Tensor] = []
    average = Processes.mean_factors
    monkeypatch.setattr(
        Processes, "mean_factors", lambda self, f: asked.append(f) or average(self, f)
    )
    steps("gradnorm", by_join, 2.0, smoothing=0.5)
    assert len(asked) == len(STEPS)
