"""One problem for every way of averaging: ranks take the steps of one process on the whole batch.

Each step draws, for each task, a batch of one shard per rank; a rank takes its shard, one process
takes all of them. A shard can be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradsurgery import GradientSurgery, GradVac, Method, Sum
from tests.gradsurgery.problems import TwoHeads, state_of, wrap

TASKS = ("a", "b")
GOALS = {"a": 1.0, "b": -1.0}
SHARD = 4  # examples of a task on a rank
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


def shards(step: int, task: str, micro: int = 0) -> list[Tensor]:
    """A batch, as the shards of four ranks."""
    generator = torch.Generator().manual_seed(1000 * micro + 10 * step + TASKS.index(task))
    return list(torch.randn(4, SHARD, 3, generator=generator))


def local_shards(world: int) -> list[int]:
    """The number of this rank's shard; those of ``world`` ranks outside of a process group."""
    return [dist.get_rank()] if dist.is_initialized() else list(range(world))


def batch(
    step: int, task: str, take: Sequence[int], drawn: Drawn = always, micro: int = 0
) -> Tensor | None:
    """The shards ``take`` of a batch, behind each other; None where none of them was drawn."""
    every = shards(step, task, micro)
    present = [every[rank] for rank in take if drawn(step, task, rank)]
    return torch.cat(present) if present else None


def loss_of(model: nn.Module, task: str, x: Tensor) -> Tensor:
    return (model(x, task) - GOALS[task]).square().mean()


def fresh_model(dtype: torch.dtype = torch.float32) -> TwoHeads:
    torch.manual_seed(0)
    return TwoHeads().to(dtype)


def wrapped(model: nn.Module, method: Method | None = None, **options: Any) -> GradientSurgery:
    base = torch.optim.AdamW(model.named_parameters(), lr=0.05)
    return GradientSurgery(base, method or GradVac(beta=0.5, seed=1), tasks=TASKS, **options)


def averaged(parameters: Sequence[Tensor], method: Method | None = None) -> GradientSurgery:
    """SGD with surgery of two tasks, averaged over all ranks."""
    return wrap(parameters, method or Sum(), tasks=TASKS, process_group=dist.group.WORLD)


def push(optimizer: GradientSurgery, task: str, parameter: Tensor, by: float = 1.0) -> None:
    """Capture a gradient of ``by`` everywhere."""
    with optimizer.task(task):
        (parameter * by).sum().backward()


def outcome(optimizer: GradientSurgery) -> dict[str, Any]:
    """Everything that ranks have to agree on."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in parameters]
    summary = optimizer.conflicts.summary()
    surgery = state_of(optimizer)
    return {
        "weights": [w.detach().clone() for w in weights],
        "without": [p.grad is None for p in parameters],
        "state": [value for value in surgery.values() if isinstance(value, Tensor)],
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
    """Train, and return the outcome.

    Args:
        model: perhaps inside DDP.
        world: the number of ranks, each with a shard of a batch.
        take: the shards that this process takes, where ``world`` does not tell.
        drawn: which ranks have which shards.
        micro: micro-batches of a step.
        hinted: whether ``sync=`` tells which is the last.
        joined: with join, not task by task.
        tasks: the order that they run in.
        spoil: the steps with an infinite loss.
        steps: their numbers.
        optimizer: to go on with.
        no_sync: run inside the model's ``no_sync()``.
        before: called before each task.
        beside: whether a loss outside of surgery runs first, in all steps but one.
        options: for the optimizer.
    """
    optimizer = optimizer or wrapped(model, **options)
    take = local_shards(world) if take is None else take
    for step in steps:
        if beside and step != 2:
            x = batch(step, "a", take, always, micro=9)
            assert x is not None
            (0.3 * loss_of(model, "a", x)).backward()
        totals: dict[str, float] = {}
        with model.no_sync() if no_sync else nullcontext():  # type: ignore[operator]
            for number in range(micro):
                last = number == micro - 1
                losses = {}
                for task in tasks:
                    x = batch(step, task, take, drawn, number)
                    if x is None:
                        continue
                    if spoil(step):
                        x = x * torch.inf
                    if joined:
                        losses[task] = loss_of(model, task, x) / micro
                        continue
                    before(task)
                    with optimizer.task(task, sync=last or not hinted):
                        loss = loss_of(model, task, x) / micro
                        loss.backward()
                    totals[task] = totals.get(task, 0.0) + loss.item()
                if losses:
                    optimizer.join(losses, combine=last).backward()
            if not joined or not losses:
                optimizer.combine(losses=totals)
        grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        if all(bool(grad.isfinite().all()) for grad in grads):
            optimizer.step()
        result = outcome(optimizer)
        optimizer.zero_grad()
    return result


def assert_ranks_agree(results: Sequence[dict[str, Any]], name: str) -> None:
    """Assert that every rank has rank 0's outcome, to the bit."""
    first, *others = (by_scenario[name] for by_scenario in results)
    assert "error" not in first, first
    for other in others:
        for key, value in first.items():
            if key in ("weights", "state"):
                assert all(map(torch.equal, value, other[key])), key
            else:
                assert value == other[key], key


def assert_same_run(result: dict[str, Any], alone: dict[str, Any]) -> None:
    """Assert that an outcome is that of one process, but for rounding."""
    for key in ("without", "gradients", "nonfinite"):
        assert result[key] == alone[key], key
    torch.testing.assert_close(result["state"], alone["state"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result["norms"], alone["norms"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(result["weights"], alone["weights"], rtol=0, atol=1e-6)
