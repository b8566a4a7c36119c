"""Ranks that would train different models in silence are told so; a lost rank is an error."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gradsurgery import PCGrad
from gradsurgery.distributed.consistency import fingerprint, unanimous, votes
from tests.integration import ranks
from tests.integration.shards import fresh_model, local_shards, loss_of, shards, train, wrapped

ROOT = Path(__file__).parents[2]


def forgotten() -> dict[str, Any]:
    """Neither DDP nor a process group."""
    return in_turn(partial(train, fresh_model(), take=local_shards(2), steps=range(1)))


def in_turn(scenario: ranks.Scenario) -> Any:
    """Rank 1 begins when rank 0 is done: it is rank 1 that can see the difference."""
    if dist.get_rank() == 1:
        dist.barrier()
        return scenario()
    try:
        return scenario()
    finally:
        dist.barrier()


def ddp() -> dict[str, Any]:
    model = DistributedDataParallel(fresh_model(), find_unused_parameters=True)
    return train(model, take=local_shards(2))


def inside_no_sync() -> dict[str, Any]:
    """DDP does not average there."""
    model = DistributedDataParallel(fresh_model(), find_unused_parameters=True)
    return in_turn(partial(train, model, take=local_shards(2), no_sync=True, steps=range(1)))


def debugged(scenario: ranks.Scenario) -> Any:
    dist.set_debug_level(dist.DebugLevel.INFO)
    try:
        return scenario()
    finally:
        dist.set_debug_level(dist.DebugLevel.OFF)


def drifting() -> Any:
    """Averaged in the first step, and then no more; only debugging looks again."""
    model = DistributedDataParallel(fresh_model(), find_unused_parameters=True)
    optimizer = wrapped(model)
    train(model, take=local_shards(2), optimizer=optimizer, steps=range(1))
    return train(model, take=local_shards(2), optimizer=optimizer, steps=range(1, 3), no_sync=True)


def another_order() -> Any:
    """The same gradients, other seeds."""
    model = DistributedDataParallel(fresh_model(), find_unused_parameters=True)
    return train(model, take=local_shards(2), method=PCGrad(seed=dist.get_rank()))


def on_purpose() -> dict[str, Any]:
    """A model per rank, said so by a group of one."""
    group, _ = dist.new_subgroups(group_size=1)
    return train(fresh_model(), take=local_shards(2), process_group=group)


def overflowing() -> dict[str, Any]:
    """An overflow in the first step tells nothing about averaging."""
    return train(fresh_model(), take=local_shards(2), steps=range(1), spoil=bool_of_any_step)


def bool_of_any_step(step: int) -> bool:
    return True


def one_forward_through_the_reducer() -> None:
    """With static_graph, DDP would average the first task and leave the others to the ranks."""
    model = DistributedDataParallel(Both(), static_graph=True)
    optimizer = wrapped(model)
    optimizer.join(model(shards(0, "a")[dist.get_rank()])).backward()


class Both(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = fresh_model()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {task: loss_of(self.model, task, x) for task in ("a", "b")}


SCENARIOS: dict[str, ranks.Scenario] = {
    "forgotten": forgotten,
    "inside no_sync": inside_no_sync,
    "ddp": ddp,
    "ddp, debugged": partial(debugged, ddp),
    "drifting": drifting,
    "drifting, debugged": partial(debugged, drifting),
    "another order, debugged": partial(debugged, another_order),
    "on purpose": on_purpose,
    "overflowing": overflowing,
    "one forward": one_forward_through_the_reducer,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ranks.run(SCENARIOS, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", ["forgotten", "inside no_sync"])
def test_forgotten_averaging_is_refused_at_the_first_step(
    name: str, results: list[dict[str, Any]]
) -> None:
    assert "error" not in results[0][name]
    error = results[1][name]["error"]
    assert "were not averaged" in error
    assert "process_group=dist.group.WORLD" in error


@pytest.mark.parametrize("name", ["ddp", "ddp, debugged", "on purpose", "overflowing"])
def test_what_is_right_passes(name: str, results: list[dict[str, Any]]) -> None:
    assert all("error" not in outcomes[name] for outcomes in results)


def test_drifting_apart_later_is_seen_when_debugging(results: list[dict[str, Any]]) -> None:
    first, second = (outcomes["drifting"]["weights"] for outcomes in results)
    assert not all(map(torch.equal, first, second))
    for outcomes in results:
        assert "Gram matrices" in outcomes["drifting, debugged"]["error"]


def test_another_order_is_seen_when_debugging(results: list[dict[str, Any]]) -> None:
    for outcomes in results:
        assert "visiting orders" in outcomes["another order, debugged"]["error"]


def test_one_forward_through_ddp_is_refused(results: list[dict[str, Any]]) -> None:
    for outcomes in results:
        assert "no_sync()" in outcomes["one forward"]["error"]
        assert "process_group" in outcomes["one forward"]["error"]


@pytest.mark.parametrize("ranks_", [2, 3, 64])
def test_votes(ranks_: int) -> None:
    """The most that fits, and one dissenter of a difference of one."""
    most = (1 << 20) - 1
    total = [sum(column) for column in zip(*[votes(most)] * ranks_, strict=True)]
    assert unanimous(total, ranks_)
    odd = [sum(c) for c in zip(*[votes(most)] * (ranks_ - 1), votes(most - 1), strict=True)]
    assert not unanimous(odd, ranks_)


def test_a_fingerprint_sees_bits() -> None:
    tensor = torch.ones(3, dtype=torch.float64)
    assert fingerprint(tensor) != fingerprint(tensor.nextafter(2 * tensor))
    assert fingerprint("a", 1) != fingerprint("a", 2)


KILLED = """
import os, signal, sys
from datetime import timedelta
import torch, torch.distributed as dist
from gradsurgery import GradientSurgery, PCGrad
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                        timeout=timedelta(seconds=30))
torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
base = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer = GradientSurgery(base, PCGrad(), tasks=("a", "b"), process_group=dist.group.WORLD)
for step in range(4):
    for task in ("a", "b"):
        if step == 3 and rank == 1 and task == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        with optimizer.task(task):
            model(torch.ones(1, 3)).square().sum().backward()
    optimizer.combine()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_a_killed_rank_is_an_error_for_the_others(tmp_path: Path) -> None:
    """In the middle of a step, with messages under way."""
    command = [sys.executable, "-c", KILLED]
    survivor, killed = (
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    )
    errors = [process.communicate(timeout=120)[1] for process in (survivor, killed)]
    assert killed.returncode < 0
    assert survivor.returncode > 0
    assert "RuntimeError" in errors[0]
