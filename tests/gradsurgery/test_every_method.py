"""What all of it works with: every method, through the whole optimizer.

Here are groupings, absent tasks, a GradScaler and bf16 parameters. Elsewhere, also over the table
of methods: a loss scale by every way to train (test_scale), checkpoints to the bit (test_optimizer,
methods/test_contract; with absent tasks, methods/test_training), `features=` (test_features), steps
that are not finite (test_combine), `task_only` and `reduction` (test_task_only), smoothing
(test_smoothing), one backward pass (test_one_backward), the fused kernels (kernels/test_fused), and
real processes (tests/integration/test_methods_on_ranks).
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import GradientSurgery, LossWeighting
from tests.gradsurgery.problems import same
from tests.methods import METHODS, every_method

TASKS = ("a", "b", "c")
NAMES = ("lower.weight", "lower.bias", "upper.weight")
SIZES = (6, 2, 5)


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(size, dtype=dtype)) for size in SIZES]


def wrapped(
    name: str, ps: Sequence[nn.Parameter], names: Sequence[str] = NAMES, **options: object
) -> GradientSurgery:
    base = torch.optim.SGD(zip(names, ps, strict=True), lr=0.01)
    options = {"tasks": TASKS, **options}
    return GradientSurgery(base, METHODS[name].make(3), **options)  # type: ignore[arg-type]


def losses_of(ps: Sequence[Tensor], step: int, tasks: Sequence[str] = TASKS) -> dict[str, Tensor]:
    """Distances to points that the tasks do not share, of different sizes."""
    losses = {}
    for task in tasks:
        k = TASKS.index(task)
        generator = torch.Generator().manual_seed(10 * step + k)
        targets = [torch.randn(size, generator=generator).to(ps[0].dtype) for size in SIZES]
        squares = [(p - t).square().sum() for p, t in zip(ps, targets, strict=True)]
        losses[task] = 0.1 * 2**k * torch.stack(squares).sum()
    return losses


def steps(
    optimizer: GradientSurgery,
    ps: Sequence[nn.Parameter],
    numbers: Sequence[int] = range(4),
    tasks: Sequence[str] = TASKS,
) -> list[list[Tensor]]:
    """Train; return the updates."""
    updates = []
    for number in numbers:
        optimizer.join(losses_of(ps, number, tasks)).backward()
        updates.append([p.grad.clone() for p in ps if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
    return updates


#: GradNorm has one weight for each task, in all segments.
@pytest.mark.parametrize("grouping", ["layer", "tensor", lambda name: name.split(".")[-1]])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "gradnorm"])
def test_groups_are_problems_of_their_own(name: str, grouping: object) -> None:
    """An optimizer of one group's parameters alone takes the same steps on the same losses."""
    ps = parameters()
    together = steps(wrapped(name, ps, grouping=grouping), ps)
    label = {"layer": lambda n: n.split(".")[0], "tensor": str}.get(str(grouping), grouping)
    groups: dict[str, list[int]] = {}
    for index, parameter_name in enumerate(NAMES):
        groups.setdefault(label(parameter_name), []).append(index)  # type: ignore[operator]
    for members in groups.values():
        qs = parameters()
        names, trained = [NAMES[m] for m in members], [qs[m] for m in members]
        optimizer = wrapped(name, trained, names)
        rest = [q for q in qs if not any(q is t for t in trained)]
        others = torch.optim.SGD(rest, lr=0.0) if rest else None
        for step, update in enumerate(together):
            optimizer.join(losses_of(qs, step)).backward()
            for member in members:
                torch.testing.assert_close(qs[member].grad, update[member], rtol=1e-9, atol=1e-12)
            for q, p_update in zip(qs, update, strict=True):
                q.data -= 0.01 * p_update
            optimizer.zero_grad()
            if others is not None:
                others.zero_grad()


#: Methods that count a task which sits out, or draw a number for it.
COUNTING = {
    "dwa": "its softmax is over all tasks, present or not",
    "throwaway dwa": "its softmax is over all tasks, present or not",
    "tchebycheff": "the preference is divided among all tasks",
    "random_weights": "a number is drawn for every task",
    "throwaway mgda": "an example that does not ask who is present",
    "throwaway unit": "an example that does not ask who is present",
    "primary": "the primary task is the one that sits out",
    "primary_pcgrad": "the primary task is the one that sits out",
}


@pytest.mark.parametrize("name", [name for name in METHODS if name not in COUNTING])
def test_an_absent_task_is_a_task_that_does_not_exist(name: str) -> None:
    """Two of three tasks, in all steps: as an optimizer that knows these two."""
    ps, qs = parameters(), parameters()
    present = steps(wrapped(name, ps), ps, tasks=("b", "c"))
    alone = steps(wrapped(name, qs, tasks=("b", "c")), qs, tasks=("b", "c"))
    for update, expected in zip(present, alone, strict=True):
        torch.testing.assert_close(update, expected, rtol=1e-9, atol=1e-12)


@every_method
def test_a_grad_scaler_changes_no_bit_and_skips_what_overflows(name: str) -> None:
    """Steps 0, 1 and 3; in between, a loss is infinite, and the scale falls."""
    ps, qs = parameters(torch.float32), parameters(torch.float32)
    plain, optimizer = wrapped(name, ps), wrapped(name, qs)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    for number in (0, 1, None, 3):
        if number is not None:
            steps(plain, ps, [number])
        losses = losses_of(qs, number or 0)
        if number is None:
            losses = {task: loss * torch.inf for task, loss in losses.items()}
        scaler.scale(optimizer.join(losses)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert scaler.get_scale() == 2.0**12
    assert same([p.data for p in ps], [q.data for q in qs])
    assert optimizer.conflicts.summary()["nonfinite"] == 1


@every_method
def test_bf16_parameters_get_the_update_of_their_gradients_rounded_once(name: str) -> None:
    """Beside float64 parameters with the same losses, and gradients that bf16 can hold. One
    backward pass of weighted losses is rounded by autograd, for each loss."""
    updates: dict[torch.dtype, list[Tensor]] = {}
    for dtype in (torch.bfloat16, torch.float64):
        ps = parameters(dtype)
        optimizer, updates[dtype] = wrapped(name, ps), []
        for step in range(3):  # the parameters stay at one
            generator = torch.Generator().manual_seed(step)
            rows = [torch.randn(3, size, generator=generator).bfloat16() for size in SIZES]
            pairs = [(p - 1, row.to(dtype)) for p, row in zip(ps, rows, strict=True)]
            losses = [1 + k + sum((p * row[k]).sum() for p, row in pairs) for k in range(3)]
            optimizer.join(losses).backward()
            updates[dtype].append(torch.cat([p.grad for p in ps]))
            optimizer.zero_grad()
    for half, full in zip(updates[torch.bfloat16], updates[torch.float64], strict=True):
        assert half.dtype == torch.bfloat16
        by_autograd = isinstance(METHODS[name].make(0), LossWeighting)
        atol = 2**-6 if by_autograd else 1e-6
        torch.testing.assert_close(half.double(), full, rtol=2**-8, atol=atol)
