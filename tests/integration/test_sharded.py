"""Sharded parameters (FSDP2, tensor parallel): the steps of one process on the whole batch."""

from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from gradsurgery import GradientSurgery, GradVac, PCGrad
from tests.integration import ranks
from tests.integration.shards import (
    assert_ranks_agree,
    assert_same_run,
    batch,
    fresh_model,
    local_shards,
    loss_of,
    train,
    wrapped,
)

HUGE = {"a": [1e200, 1e150, -1.0, 3e199], "b": [-2e200, 5.0, 1e180, 1e200]}


def mesh_of(*sizes: int) -> DeviceMesh:
    return init_device_mesh("cpu", sizes, mesh_dim_names=("first", "second")[: len(sizes)])


def sharded(mesh: DeviceMesh | None = None, **options: Any) -> nn.Module:
    """Trunk and heads as groups of their own, and the rest as another."""
    model = fresh_model()
    mesh = mesh or mesh_of(dist.get_world_size())
    for part in (model.lower, model.upper, *model.heads.values()):
        fully_shard(part, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def fsdp(reshard: bool = True, **options: Any) -> dict[str, Any]:
    model = sharded(reshard_after_forward=reshard)
    return train(model, dist.get_world_size(), **options)


def held_between_backwards() -> dict[str, Any]:
    """No resharding between the tasks' backward passes."""
    model = sharded()
    return train(
        model,
        dist.get_world_size(),
        before=lambda task: model.set_reshard_after_backward(task == "b"),
    )


def half_precision() -> dict[str, Any]:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return train(sharded(mp_policy=policy), dist.get_world_size())


def replicated_and_sharded() -> dict[str, Any]:
    return train(sharded(mesh_of(dist.get_world_size() // 2, 2)), dist.get_world_size())


def not_synchronised() -> None:
    model = sharded()
    model.set_requires_gradient_sync(False)
    train(model, dist.get_world_size())


def different_tasks() -> None:
    """Heads of one size: the forward passes mix them up and do not fail."""
    order = ("a", "b") if dist.get_rank() else ("b", "a")
    train(sharded(), dist.get_world_size(), tasks=order)


def different_orders() -> None:
    """Seeds of the ranks' own."""
    train(sharded(), dist.get_world_size(), method=GradVac(seed=dist.get_rank()))


def with_group() -> None:
    train(sharded(), dist.get_world_size(), process_group=dist.group.WORLD)


def clipped() -> list[Tensor]:
    """Clipping after surgery, with the norm of the whole."""
    return clip(sharded(), dist.get_world_size())


def clip(model: nn.Module, world: int) -> list[Tensor]:
    base = torch.optim.SGD(model.named_parameters(), lr=0.5)
    optimizer = GradientSurgery(base, GradVac(beta=0.5), tasks=("a", "b"))
    for step in range(3):
        for task in ("a", "b"):
            with optimizer.task(task):
                x = batch(step, task, local_shards(world))
                assert x is not None
                loss_of(model, task, x).backward()
        optimizer.combine()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    return [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]


def beyond_float64() -> list[Any]:
    """Gradients whose squares leave float64, with the largest element on another rank each."""
    mesh = mesh_of(dist.get_world_size())
    w = nn.Parameter(distribute_tensor(torch.zeros(4, dtype=torch.float64), mesh, [Shard(0)]))
    optimizer = GradientSurgery(torch.optim.SGD([w], lr=1.0), PCGrad(), tasks=("a", "b"))
    for task, row in HUGE.items():
        with optimizer.task(task):
            grad = torch.tensor(row, dtype=torch.float64)
            (w * distribute_tensor(grad, mesh, [Shard(0)])).sum().backward()
    optimizer.combine()
    assert isinstance(w.grad, DTensor)
    return [w.grad.full_tensor(), optimizer.conflicts.summary()["pairs"][0]["cosine"]["mean"]]


def parallel(mesh: DeviceMesh) -> nn.Module:
    """What a task alone uses (heads), what both do, and plain parameters beside."""
    plan = {"upper": ColwiseParallel(), "heads.a": RowwiseParallel(), "heads.b": RowwiseParallel()}
    return parallelize_module(fresh_model(), mesh, plan)


def tensor_parallel(**options: Any) -> dict[str, Any]:
    """The same batch on all ranks."""
    return train(parallel(mesh_of(dist.get_world_size())), take=[0, 1], **options)


def both() -> dict[str, Any]:
    """FSDP2 over the first dimension, tensor parallel over the second."""
    mesh = mesh_of(2, 2)
    model = parallel(mesh["second"])
    fully_shard(model.lower, mesh=mesh["first"])
    fully_shard(model, mesh=mesh["first"])
    return train(model, take=[mesh["first"].get_local_rank()])


def quarters() -> list[int]:
    """A fourth, half or all of a batch of four shards."""
    if not dist.is_initialized():
        return [0, 1, 2, 3]
    size = 4 // dist.get_world_size()
    return list(range(size * dist.get_rank(), size * (dist.get_rank() + 1)))


def saved(folder: Path) -> dict[str, Any]:
    """Half a run, saved by torch.distributed.checkpoint in both forms."""
    model = sharded()
    optimizer = wrapped(model)
    result = train(model, take=quarters(), optimizer=optimizer, steps=range(3))
    for flat in (True, False):
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        weights, state = get_state_dict(model, optimizer, options=options)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / str(flat))
    return result


def resumed(folder: Path, flat: bool) -> dict[str, Any]:
    """The other half, on as many ranks as there are, from other weights."""
    model = sharded() if dist.is_initialized() else fresh_model()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    optimizer = wrapped(model)
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    weights, state = get_state_dict(model, optimizer, options=options)
    checkpoint = {"model": weights, "optimizer": state}
    # A parameter that nobody used has no state, as with any optimizer.
    planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
    with warnings.catch_warnings():  # of doing so in a single process
        warnings.simplefilter("ignore")
        dcp.load(checkpoint, checkpoint_id=folder / str(flat), planner=planner)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=checkpoint["model"],
        optim_state_dict=checkpoint["optimizer"],
        options=options,
    )
    return train(model, take=quarters(), optimizer=optimizer, steps=range(3, 5))


WAYS: dict[str, dict[str, Any]] = {
    "tasks": {},
    "joined": {"joined": True},
    "accumulated": {"micro": 2},
    "accumulated, joined": {"micro": 2, "joined": True},
    "layers": {"grouping": "layer", "method": GradVac(beta=0.5)},
}

#: Ways to shard that must not change a thing.
SHARDED: dict[str, ranks.Scenario] = {
    **{name: partial(fsdp, **way) for name, way in WAYS.items()},
    "not resharded": partial(fsdp, reshard=False),
    "held between backwards": held_between_backwards,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """The outcomes of one, two and four ranks; all go on from the checkpoint of two."""
    folder = tmp_path_factory.mktemp("checkpoint")
    resume = {f"resumed, {flat}": partial(resumed, folder, flat) for flat in (True, False)}
    common = {**SHARDED, "clipped": clipped, "tensor parallel": tensor_parallel}
    common["beyond float64"] = beyond_float64
    refused = {
        "not synchronised": not_synchronised,
        "different tasks": different_tasks,
        "different orders": different_orders,
        "with group": with_group,
    }
    two = {
        **common,
        "saved": partial(saved, folder),
        **resume,
        "half precision": half_precision,
        **refused,
    }
    four = {**common, **resume, "replicated": replicated_and_sharded, "both": both}
    by_world = {
        world: ranks.run(scenarios, world, tmp_path_factory.mktemp(f"ranks{world}"))
        for world, scenarios in ((2, two), (4, four))
    }
    by_world[1] = [{f"resumed, {flat}": resumed(folder, flat) for flat in (True, False)}]
    return by_world


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", SHARDED)
def test_shards_are_one_process_on_the_whole_batch(
    name: str, world: int, results: dict[int, list[dict[str, Any]]]
) -> None:
    assert_ranks_agree(results[world], name)
    assert_same_run(results[world][0][name], train(fresh_model(), world, **WAYS.get(name, {})))


@pytest.mark.parametrize("world", [2, 4])
def test_clipping_sees_the_whole_gradient(
    world: int, results: dict[int, list[dict[str, Any]]]
) -> None:
    alone = clip(fresh_model(), world)
    torch.testing.assert_close(results[world][0]["clipped"], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("world", [2, 4])
def test_squares_beyond_float64(world: int, results: dict[int, list[dict[str, Any]]]) -> None:
    rows = torch.tensor(list(HUGE.values()), dtype=torch.float64) / 1e200
    cosine = float(rows[0] @ rows[1] / rows[0].norm() / rows[1].norm())
    assert cosine < 0
    expected = sum(
        row - (row @ other) / (other @ other) * other for row, other in (rows, rows.flip(0))
    )
    for rank in range(world):
        update, found = results[world][rank]["beyond float64"]
        torch.testing.assert_close(update / 1e200, expected, rtol=1e-12, atol=1e-15)
        assert found == pytest.approx(cosine, rel=1e-12)


@pytest.mark.parametrize("world", [2, 4])
def test_tensor_parallel(world: int, results: dict[int, list[dict[str, Any]]]) -> None:
    assert_ranks_agree(results[world], "tensor parallel")
    assert_same_run(results[world][0]["tensor parallel"], train(fresh_model(), take=[0, 1]))


def test_two_dimensions(results: dict[int, list[dict[str, Any]]]) -> None:
    """Replicated and sharded; sharded and tensor parallel."""
    assert_ranks_agree(results[4], "replicated")
    assert_same_run(results[4][0]["replicated"], train(fresh_model(), 4))
    assert_ranks_agree(results[4], "both")
    assert_same_run(results[4][0]["both"], train(fresh_model(), 2))


def test_half_precision_is_near(results: dict[int, list[dict[str, Any]]]) -> None:
    assert_ranks_agree(results[2], "half precision")
    half, alone = results[2][0]["half precision"], train(fresh_model(), 2)
    torch.testing.assert_close(half["norms"], alone["norms"], rtol=0.1, atol=0)
    for weight, exact in zip(half["weights"], alone["weights"], strict=True):
        assert (weight - exact).abs().median() < 0.02


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_checkpoint_loads_at_another_world_size(
    world: int, flat: bool, results: dict[int, list[dict[str, Any]]]
) -> None:
    resumed_run = results[world][0][f"resumed, {flat}"]
    assert "error" not in resumed_run, resumed_run
    alone = train(fresh_model(), 4, steps=range(5))
    torch.testing.assert_close(resumed_run["state"], alone["state"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(resumed_run["weights"], alone["weights"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not synchronised", r"no gradient reached.*set_requires_gradient_sync\(False\)"),
        ("different tasks", "ranks ran different tasks: this one task '.'"),
        ("different orders", "ranks disagree on tasks, method"),
        ("with group", "leave process_group out"),
    ],
)
def test_refusals(name: str, message: str, results: dict[int, list[dict[str, Any]]]) -> None:
    for outcomes in results[2]:
        assert re.search(message, outcomes[name]["error"])
