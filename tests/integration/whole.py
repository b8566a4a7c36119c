"""One problem for every way of averaging: what ranks do together, one process does on the whole.

Each step draws, for each task, one part of a batch per rank; a rank takes its own, one process
takes them all behind each other. A part can be missing on a rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


def mine(step: int, task: str, world: int, drawn: Drawn, micro: int = 0) -> Tensor | None:
    """This rank's batch; that of all ``world`` ranks in a process of its own."""
    ranks = [dist.get_rank()] if dist.is_initialized() else range(world)
    found = [parts(step, task, micro)[rank] for rank in ranks if drawn(step, task, rank)]
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
    world: int,
    *,
    drawn: Drawn = always,
    micro: int = 1,
    hinted: bool = False,
    joined: bool = False,
    tasks: Iterable[str] = TASKS,
    spoil: Callable[[int], bool] = lambda step: False,
    steps: int = STEPS,
    optimizer: GradientSurgery | None = None,
    no_sync: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train, and say what came out.

    Args:
        model: perhaps inside DDP.
        world: the ranks that this is about.
        drawn: who has what.
        micro: micro-batches of a step.
        hinted: whether ``sync=`` tells which is the last.
        joined: with join, not task by task.
        tasks: the order that they run in.
        spoil: the steps with an infinite loss.
        steps: how many.
        optimizer: to go on with.
        no_sync: run inside the model's ``no_sync()``.
        options: for the optimizer.
    """
    optimizer = optimizer or wrapped(model, **options)
    for step in range(steps):
        with model.no_sync() if no_sync else nullcontext():  # type: ignore[operator]
            for number in range(micro):
                last = number == micro - 1
                losses = {}
                for task in tasks:
                    x = mine(step, task, world, drawn, number)
                    if x is None:
                        continue
                    if spoil(step):
                        x = x * torch.inf
                    if joined:
                        losses[task] = loss_of(model, task, x) / micro
                        continue
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
