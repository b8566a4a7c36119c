"""Building an optimizer over a process group: it builds, or says on which rank what differs."""

from __future__ import annotations

import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from gradsurgery import GradientSurgery, GradVac, Method, PCGrad, Sum, SurgeryWarning
from gradsurgery.distributed.groups import timeout_of
from gradsurgery.state import KEY
from tests.integration import ranks

WORLD = 4


def wrapped(
    method: Method | None = None,
    *,
    tasks: tuple[str, ...] = ("a", "b"),
    group: dist.ProcessGroup | None = None,
    seed: int = 0,
    frozen: bool = False,
) -> tuple[nn.Module, GradientSurgery]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(not frozen)
    optimizer = GradientSurgery(
        torch.optim.SGD(model.parameters(), lr=0.1),
        method or PCGrad(),
        tasks=tasks,
        process_group=group or dist.group.WORLD,
    )
    return model, optimizer


def step(model: nn.Module, optimizer: GradientSurgery) -> torch.Tensor:
    x = torch.full((5, 3), 1.0 + dist.get_rank())
    for column, task in enumerate(optimizer.tasks):
        with optimizer.task(task):
            model(x)[:, column].square().mean().backward()
    optimizer.combine()
    optimizer.step()
    optimizer.zero_grad()
    return model[1].weight.detach().clone()


def logging_group() -> torch.Tensor:
    """Rank 0 is in one group more than the others."""
    dist.new_group([0])
    return step(*wrapped())


def data_parallel_beside_stages() -> torch.Tensor:
    """Two data-parallel groups, whose ranks are in different numbers of other groups."""
    for members in ([0], [0, 3], [1, 2]):
        dist.new_group(members)
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    half = halves[dist.get_rank() // 2]
    first = step(*wrapped(group=half))
    return torch.stack([first, step(*wrapped(Sum(), group=half))])


def another_order() -> Any:
    names = [("a", "b"), ("b", "a", "c")]
    for tasks in names if dist.get_rank() != 2 else reversed(names):
        wrapped(tasks=tasks)


def first_weights() -> Any:
    return step(*wrapped(Sum(), seed=int(dist.get_rank() == 3)))


def weights_after_a_load() -> Any:
    """One rank alone loads a checkpoint of the model, and all that of the optimizer."""
    model, optimizer = wrapped(Sum())
    step(model, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    if dist.get_rank() == 0:
        model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
    return step(model, optimizer)


def targets() -> Any:
    model, optimizer = wrapped(GradVac(target=0.1))
    if dist.get_rank() == 1:
        other = wrapped_alone(GradVac(target=0.2)).state_dict()["param_groups"][0]
        state = optimizer.state_dict()
        state["param_groups"][0] |= {KEY: other[KEY]}
        optimizer.load_state_dict(state)
    return step(model, optimizer)


def loaded_by_one() -> Any:
    model, optimizer = wrapped(GradVac())
    step(model, optimizer)
    if dist.get_rank() == 2:
        optimizer.load_state_dict(optimizer.state_dict())
    return step(model, optimizer)


def wrapped_alone(method: Method) -> GradientSurgery:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    return GradientSurgery(torch.optim.SGD(model.parameters(), lr=0.1), method, tasks=("a", "b"))


def frozen_layer() -> Any:
    return step(*wrapped(frozen=dist.get_rank() == 1))


def timeouts() -> torch.Tensor:
    group = dist.new_group(timeout=timedelta(seconds=7))
    _, optimizer = wrapped(group=group)
    averaging = optimizer._pipeline.processes._averaging
    assert averaging is not None
    timeout = timeout_of(averaging.group)
    assert timeout is not None
    return torch.tensor(timeout.total_seconds())


def outside() -> Any:
    group = dist.new_group([0, 1])
    if dist.get_rank() > 1:
        wrapped(group=group)


def tensor_parallel_alone(*, same_data: bool = False) -> list[str]:
    """Two replicas of a tensor-parallel model, and nobody who averages over them."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
    parallelize_module(model, mesh["tp"], plan)
    optimizer = GradientSurgery(
        torch.optim.SGD(model.parameters(), lr=0.1), PCGrad(), tasks=("a", "b")
    )
    replica = dist.get_rank() // 2
    for turn in range(2):
        if turn == replica:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                out = model(torch.full((5, 4), 1.0 if same_data else 1.0 + replica))
                optimizer.join(
                    [out[:, 0].square().mean(), (out.sum(1) - 1).square().mean()]
                ).backward()
        dist.barrier()
    return [str(warning.message) for warning in caught if warning.category is SurgeryWarning]


SCENARIOS = {
    "replicas": tensor_parallel_alone,
    "replicas alike": partial(tensor_parallel_alone, same_data=True),
    "logging": logging_group,
    "stages": data_parallel_beside_stages,
    "order": another_order,
    "weights": first_weights,
    "load": weights_after_a_load,
    "targets": targets,
    "loaded": loaded_by_one,
    "frozen": frozen_layer,
    "timeouts": timeouts,
    "outside": outside,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("building")
    return ranks.run(SCENARIOS, WORLD, folder)


@pytest.mark.parametrize("name", ["logging", "stages"])
def test_ranks_in_different_numbers_of_groups_build(
    name: str, results: list[dict[str, Any]]
) -> None:
    outcomes = [result[name] for result in results]
    assert not any(isinstance(outcome, dict) for outcome in outcomes), outcomes
    alike = [0, 1, 2, 3] if name == "logging" else [0, 1]
    assert all(torch.equal(outcomes[0], outcomes[rank]) for rank in alike)
    assert torch.equal(outcomes[0], outcomes[2]) == (name == "logging")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("order", "on tasks: ('a', 'b') on rank 0, ('b', 'a', 'c') on rank 2"),
        ("weights", "on weights: "),
        ("load", "on weights: "),
        ("targets", "on target of the method: of fingerprint "),
        ("loaded", "on target of the method: no checkpoint loaded on rank 0, of fingerprint "),
        ("frozen", "on parameters: "),
    ],
)
def test_what_differs_is_named_on_all_ranks(
    name: str, words: str, results: list[dict[str, Any]]
) -> None:
    for result in results:
        assert words in result[name]["error"], result[name]


def test_the_rank_that_differs_is_named(results: list[dict[str, Any]]) -> None:
    assert "on rank 3." in results[0]["weights"]["error"]
    assert "on rank 1, 2, 3." in results[0]["load"]["error"]


def test_the_timeout_is_that_of_the_group(results: list[dict[str, Any]]) -> None:
    assert [float(result["timeouts"]) for result in results] == [7.0] * WORLD


def test_a_rank_outside_of_the_group_is_told_so(results: list[dict[str, Any]]) -> None:
    assert results[1]["outside"] is None
    for result in results[2:]:
        assert "not a member of the process_group" in result["outside"]["error"]


def test_replicas_that_nobody_averages_are_told_of(results: list[dict[str, Any]]) -> None:
    """By those that come second."""
    first, second = results[1]["replicas"], results[2]["replicas"]
    assert first == []
    assert len(second) == 1, second
    assert "not in this one's mesh" in second[0]
    assert "fully_shard(model, mesh=mesh['dp'])" in second[0]
    assert all(result["replicas alike"] == [] for result in results)
