"""One problem for every way of averaging: what ranks do together, one process does on the whole.

Each step draws, for each task, one part of a batch per rank; a rank takes its own, one process
takes them all behind each other. A part can be missing on a rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradsurgery import GradientSurgery, GradVac, Method
from tests.gradsurgery.problems import TwoHeads

TASKS = ("a", "b")
GOALS = {"a": 1.0, "b": -1.0}
PART = 4  # examples of a task on a rank
STEPS = 4

#: ``(step, task, rank) -> whether the rank has a batch of the task``.
Drawn = Callable[[int, str, int], bool]


def always(step: int, task: str, rank: int) -> bool:
    return True


def uneven(step: int, task: str, rank: int) -> bool:
    """Rank 0 misses b in step 1; in step 2 all miss a; in step 3 the last rank has nothing."""
    if step == 1:
        return not (task == "b" and rank == 0)
    if step == 2:
        return task == "b"
    return not (step == 3 and rank == 1)


def alternating(step: int, task: str, rank: int) -> bool:
    """One task at even steps."""
    return task == "a" or step % 2 == 1


def parts(step: int, task: str, micro: int = 0) -> list[Tensor]:
    """The parts of four ranks."""
    generator = torch.Generator().manual_seed(1000 * micro + 10 * step + TASKS.index(task))
    return list(torch.randn(4, PART, 3, generator=generator))


def share(world: int) -> list[int]:
    """The parts that this rank takes; those of all ``world`` ranks in a process of its own."""
    return [dist.get_rank()] if dist.is_initialized() else list(range(world))


def mine(
    step: int, task: str, take: Sequence[int], drawn: Drawn = always, micro: int = 0
) -> Tensor | None:
    """The batch of who takes these parts."""
    drawn_parts = parts(step, task, micro)
    found = [drawn_parts[rank] for rank in take if drawn(step, task, rank)]
    return torch.cat(found) if found else None


def loss_of(model: nn.Module, task: str, x: Tensor) -> Tensor:
    return (model(x, task) - GOALS[task]).square().mean()


def fresh_model(dtype: torch.dtype = torch.float32) -> TwoHeads:
    torch.manual_seed(0)
    return TwoHeads().to(dtype)


def wrapped(model: nn.Module, method: Method | None = None, **options: Any) -> GradientSurgery:
    base = torch.optim.AdamW(model.named_parameters(), lr=0.05)
    return GradientSurgery(base, method or GradVac(beta=0.5, seed=1), tasks=TASKS, **options)


def outcome(optimizer: GradientSurgery) -> dict[str, Any]:
    """Everything that ranks have to agree on."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in parameters]
    summary = optimizer.conflicts.summary()
    return {
        "weights": [w.detach().clone() for w in weights],
        "without": [p.grad is None for p in parameters],
        "target": optimizer.param_groups[0]["surgery"].get("target", torch.zeros(0)).clone(),
        "rng": optimizer.param_groups[0]["surgery"]["rng"].clone(),
        "gradients": [summary["gradients"]["possible"], summary["gradients"]["altered"]],
        "norms": [summary["norms"][task] for task in TASKS],
        "nonfinite": summary["nonfinite"],
    }


def train(
    model: nn.Module,
    world: int = 0,
    *,
    take: Sequence[int] | None = None,
    drawn: Drawn = always,
    micro: int = 1,
    hinted: bool = False,
    joined: bool = False,
    tasks: Iterable[str] = TASKS,
    spoil: Callable[[int], bool] = lambda step: False,
    steps: Sequence[int] = range(STEPS),
    optimizer: GradientSurgery | None = None,
    no_sync: bool = False,
    before: Callable[[str], None] = lambda task: None,
    beside: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train, and say what came out.

    Args:
        model: perhaps inside DDP.
        world: the ranks that this is about, each with its part of a batch.
        take: the parts that this process takes, where that is not what ``world`` says.
        drawn: who has what.
        micro: micro-batches of a step.
        hinted: whether ``sync=`` tells which is the last.
        joined: with join, not task by task.
        tasks: the order that they run in.
        spoil: the steps with an infinite loss.
        steps: which.
        optimizer: to go on with.
        no_sync: run inside the model's ``no_sync()``.
        before: called before each task.
        beside: whether a loss outside of surgery runs first, in all steps but one.
        options: for the optimizer.
    """
    optimizer = optimizer or wrapped(model, **options)
    take = share(world) if take is None else take
    for step in steps:
        if beside and step != 2:
            x = mine(step, "a", take, always, micro=9)
            assert x is not None
            (0.3 * loss_of(model, "a", x)).backward()
        with model.no_sync() if no_sync else nullcontext():  # type: ignore[operator]
            for number in range(micro):
                last = number == micro - 1
                losses = {}
                for task in tasks:
                    x = mine(step, task, take, drawn, number)
                    if x is None:
                        continue
                    if spoil(step):
                        x = x * torch.inf
                    if joined:
                        losses[task] = loss_of(model, task, x) / micro
                        continue
                    before(task)
                    with optimizer.task(task, sync=last or not hinted):
                        (loss_of(model, task, x) / micro).backward()
                if losses:
                    optimizer.join(losses, combine=last).backward()
            if not joined or not losses:
                optimizer.combine()
        grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        if all(bool(grad.isfinite().all()) for grad in grads):
            optimizer.step()
        found = outcome(optimizer)
        optimizer.zero_grad()
    return found
