"""One rank drops a step: so do all, and the run is the one that never had it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gradsurgery import GradientSurgery, Method, NashMTL, SurgeryWarning
from tests.integration import ranks
from tests.integration.shards import TASKS, fresh_model, loss_of, shards, wrapped

WORLD, STEPS = 3, 6

#: What a rank does in the place of a step that it drops.
Drop = Callable[[GradientSurgery, Callable[[str], Tensor]], None]


def before_anything(optimizer: GradientSurgery, loss: Callable[[str], Tensor]) -> None:
    optimizer.discard()


def after_a_task(optimizer: GradientSurgery, loss: Callable[[str], Tensor]) -> None:
    with optimizer.task("a"):
        loss("a").backward()
    optimizer.zero_grad()


def after_a_look_at_the_loss(optimizer: GradientSurgery, loss: Callable[[str], Tensor]) -> None:
    optimizer.join({task: loss(task) for task in TASKS})
    optimizer.discard()


def late(optimizer: GradientSurgery, loss: Callable[[str], Tensor]) -> None:
    time.sleep(1)
    optimizer.discard()


def failing(optimizer: GradientSurgery, loss: Callable[[str], Tensor]) -> None:
    try:
        with optimizer.task("a"):
            raise MemoryError
    except MemoryError:
        optimizer.zero_grad()


def train(
    drops: dict[tuple[int, int], Drop], left_out: tuple[int, ...] = (), method: Method | None = None
) -> Any:
    """Weights, and the number of steps that others dropped; ``drops`` by step and rank."""
    model, rank = fresh_model(), dist.get_rank()
    optimizer = wrapped(model, method, process_group=dist.group.WORLD)
    for step in range(STEPS):
        if step in left_out:
            continue

        def loss(task: str, step: int = step) -> Tensor:
            return loss_of(model, task, shards(step, task)[rank])

        if (step, rank) in drops:
            drops[step, rank](optimizer, loss)
            continue
        for task in TASKS:
            with optimizer.task(task):
                loss(task).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SurgeryWarning)
            optimizer.combine()
        optimizer.step()
        optimizer.zero_grad()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return weights, optimizer.dropped


def told() -> str:
    model = fresh_model()
    optimizer = wrapped(model, process_group=dist.group.WORLD)
    if dist.get_rank() == 1:
        optimizer.discard()
        return ""
    losses = {task: loss_of(model, task, shards(0, task)[0]) for task in TASKS}
    with pytest.warns(SurgeryWarning) as caught:
        optimizer.join(losses).backward()
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()
    return str(caught[0].message)


ONE: dict[str, dict[tuple[int, int], Drop]] = {
    "first": {(0, 1): before_anything},
    "task": {(3, 0): after_a_task},
    "loss": {(4, 2): after_a_look_at_the_loss},
    "late": {(3, 1): late},
    "failing": {(2, 1): failing},
    "two ranks": {(3, 0): after_a_task, (3, 2): before_anything},
    "two steps": {(2, 0): before_anything, (3, 1): after_a_task},
    "all ranks": {(3, rank): after_a_task for rank in range(WORLD)},
}
SCENARIOS = {
    "told": told,
    **{name: partial(train, drops) for name, drops in ONE.items()},
    **{
        f"{name}, left out": partial(train, {}, tuple({step for step, _ in drops}))
        for name, drops in ONE.items()
    },
    "losses": partial(train, {(2, 1): before_anything}, method=NashMTL()),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("dropping")
    return ranks.run(SCENARIOS, WORLD, folder)


@pytest.mark.parametrize("name", ONE)
def test_the_run_is_the_one_without_the_step(name: str, results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        weights, dropped = result[name]
        never, _ = result[f"{name}, left out"]
        assert torch.equal(weights, never)
        by_others = {step for step, _ in ONE[name]} - {
            step for step, who in ONE[name] if who == rank
        }
        assert dropped == len(by_others)


def test_the_others_are_told_who(results: list[dict[str, Any]]) -> None:
    assert "rank 1 has dropped this step, so all ranks do" in results[0]["told"]
    assert results[0]["told"] == results[2]["told"]


def test_methods_that_wait_for_more_are_no_exception(results: list[dict[str, Any]]) -> None:
    assert all(not isinstance(result["losses"], dict) for result in results), results[0]["losses"]
