"""``process_group=``: the ranks take the steps that one process takes on the whole batch."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradsurgery import GradVac, PCGrad, Sum
from gradsurgery.distributed import collectives
from tests.gradsurgery.problems import same
from tests.integration import ranks
from tests.integration.shards import (
    alternating,
    assert_ranks_agree,
    assert_same_run,
    fresh_model,
    local_shards,
    loss_of,
    shards,
    train,
    uneven,
    wrapped,
)

#: What is done, by name: arguments of `train`, the same for the ranks and for one process.
WAYS: dict[str, dict[str, Any]] = {
    "tasks": {},
    "joined": {"joined": True},
    "uneven": {"drawn": uneven},
    "alternating": {"drawn": alternating},
    "accumulated": {"micro": 2, "hinted": True},
    "accumulated, unhinted": {"micro": 2},
    "accumulated, joined": {"micro": 2, "joined": True},
    "uneven and accumulated": {"drawn": uneven, "micro": 2},
    "layers": {"grouping": "layer", "method": GradVac(beta=0.5)},
    "infinite": {"spoil": lambda step: step == 2},
    "plain": {"method": Sum()},
    "a loss beside": {"beside": True},
}


def in_group(**options: Any) -> dict[str, Any]:
    return train(
        fresh_model(),
        dist.get_world_size(),
        process_group=dist.group.WORLD,
        steps=range(6),
        **options,
    )


def in_small_buckets(**options: Any) -> dict[str, Any]:
    """Several buckets, and some parameters by themselves."""
    before = collectives.BUCKET, collectives.LARGE
    collectives.BUCKET, collectives.LARGE = 100, 60
    try:
        return in_group(**options)
    finally:
        collectives.BUCKET, collectives.LARGE = before


def in_any_order(**options: Any) -> dict[str, Any]:
    tasks = ("a", "b") if dist.get_rank() % 2 else ("b", "a")
    return in_group(tasks=tasks, **options)


def infinite_somewhere(**options: Any) -> dict[str, Any]:
    last = dist.get_rank() == dist.get_world_size() - 1
    return in_group(spoil=lambda step: step == 2 and last, **options)


def inside_ddp(**options: Any) -> dict[str, Any]:
    model = DistributedDataParallel(fresh_model(), **options)
    return train(
        model,
        dist.get_world_size(),
        joined=True,
        no_sync=True,
        process_group=dist.group.WORLD,
        steps=range(6),
    )


class OneForward(nn.Module):
    """Both tasks' losses from one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.two = fresh_model()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {task: loss_of(self.two, task, x) for task in ("a", "b")}


def one_forward(world: int = 0, **options: Any) -> list[Tensor]:
    """One forward, K backwards: inside DDP's no_sync() on ranks, or alone on the whole batch."""
    model: nn.Module = OneForward()
    group, no_sync = {}, nullcontext
    if dist.is_initialized():
        model = DistributedDataParallel(model, **options)
        group, no_sync = {"process_group": dist.group.WORLD}, model.no_sync
    optimizer = wrapped(model, **group)
    for step in range(4):
        x = torch.cat([shards(step, "a")[rank] for rank in local_shards(world)])
        with no_sync():
            optimizer.join(model(x)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in model.parameters()]


def odd_shapes(world: int = 0) -> list[Tensor]:
    """Channels-last, transposed and gappy parameters, bf16 and float64 ones, and an empty one."""
    torch.manual_seed(0)
    values = [
        torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        torch.randn(5, 7).t(),
        torch.randn(6, 10)[:, ::2],
        torch.randn(9, dtype=torch.bfloat16),
        torch.randn(3, 3, dtype=torch.float64),
        torch.empty(0),
    ]
    model = nn.ParameterList([nn.Parameter(v) for v in values])
    group = {"process_group": dist.group.WORLD} if dist.is_initialized() else {}
    # By tensor: so the rounding of bf16 stays where it is.
    optimizer = wrapped(model, PCGrad(), grouping="tensor", **group)
    shift = {"a": 0.0, "b": 2.0}
    for step in range(3):
        for task in ("a", "b"):
            x = torch.stack(shards(step, task)).mean((1, 2))[local_shards(world)]
            with optimizer.task(task):
                waves = sum((p.double() + shift[task]).sin().sum() for p in model)
                (waves * (1 + x.double().mean())).backward()
        optimizer.combine()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in model]


def gradients() -> list[Any]:
    """What `.grad` is after combine(): strides of the parameter, None where nobody had one."""
    optimizer = wrapped(fresh_model(), process_group=dist.group.WORLD)
    model = optimizer.param_groups[0]["params"]
    loss = sum(p.sum() for p in model[:2])
    optimizer.join([loss, -loss]).backward()
    return [p.grad if p.grad is None else [p.grad.clone(), list(p.grad.stride())] for p in model]


def another_seed() -> None:
    optimizer = wrapped(fresh_model(), PCGrad(seed=dist.get_rank()), process_group=dist.group.WORLD)
    optimizer.join([p.sum() for p in optimizer.param_groups[0]["params"][:2]]).backward()


def another_model() -> None:
    """A parameter more on one rank."""
    model = nn.ParameterList([nn.Parameter(torch.ones(2)) for _ in range(2 + dist.get_rank())])
    optimizer = wrapped(model, PCGrad(), process_group=dist.group.WORLD)
    optimizer.join([p.sum() for p in model[:2]]).backward()


def nothing_anywhere() -> None:
    wrapped(fresh_model(), process_group=dist.group.WORLD).combine()


def sparse() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = wrapped(table, process_group=dist.group.WORLD)
    with optimizer.task("a"):
        table(torch.tensor([1])).sum().backward()


def dropped() -> list[Tensor]:
    """zero_grad() and an exception in between: nothing of the step before is left."""
    model = fresh_model()
    optimizer = wrapped(model, PCGrad(), process_group=dist.group.WORLD)
    for _ in range(3):  # so that gradients go out early
        optimizer.join({t: loss_of(model, t, shards(0, t)[0]) for t in ("a", "b")}).backward()
        optimizer.zero_grad()
    with optimizer.task("a"):
        (1e3 * loss_of(model, "a", shards(0, "a")[0])).backward()
    optimizer.zero_grad()
    optimizer.join({t: loss_of(model, t, shards(0, t)[0]) for t in ("a", "b")}).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def skipped() -> list[Tensor]:
    """Batches that all ranks skip half-way, with an error or without, and clear by the model."""
    model = fresh_model()
    optimizer = wrapped(model, PCGrad(), process_group=dist.group.WORLD)
    for step in range(6):
        optimizer.join({t: loss_of(model, t, shards(0, t)[0]) for t in ("a", "b")}).backward()
        if step < 5:
            optimizer.zero_grad()
        if step in (3, 4):  # when gradients go out early
            with suppress(MemoryError):
                for task in ("a", "b"):
                    with optimizer.task(task):
                        (1e3 * loss_of(model, task, shards(0, task)[0])).backward()
                        if step == 3 and task == "b":
                            raise MemoryError
            model.zero_grad()
    return [p.grad for p in model.parameters() if p.grad is not None]


def dropped_by_all() -> list[Tensor]:
    """Steps that ranks with different tasks give up together."""
    model = fresh_model()
    optimizer = wrapped(model, PCGrad(), process_group=dist.group.WORLD)
    for step in range(5):
        for task in ("a", "b") if dist.get_rank() or step < 3 else ("a",):
            with optimizer.task(task):
                loss_of(model, task, shards(step % 2, task)[0]).backward()
        if step < 3:
            optimizer.combine()
        optimizer.zero_grad()
    optimizer.join({t: loss_of(model, t, shards(0, t)[0]) for t in ("a", "b")}).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def kept() -> list[Tensor]:
    model = fresh_model()
    optimizer = wrapped(model, PCGrad())
    optimizer.join({t: loss_of(model, t, shards(0, t)[0]) for t in ("a", "b")}).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


DDP = {
    "ddp": {"find_unused_parameters": False},
    "ddp, bucket view": {"gradient_as_bucket_view": True},
    "ddp, unused": {"find_unused_parameters": True},
}


def scenarios() -> dict[str, ranks.Scenario]:
    ways: dict[str, ranks.Scenario] = {name: partial(in_group, **way) for name, way in WAYS.items()}
    ways["infinite"] = infinite_somewhere
    for name, options in DDP.items():
        ways[name] = partial(inside_ddp, **options)
        ways[f"{name}, one forward"] = partial(one_forward, **options)
    return ways | {
        "small buckets": in_small_buckets,
        "any order": in_any_order,
        "odd shapes": odd_shapes,
        "gradients": gradients,
        "another seed": another_seed,
        "another model": another_model,
        "nothing": nothing_anywhere,
        "sparse": sparse,
        "dropped": dropped,
        "skipped": skipped,
        "dropped by all": dropped_by_all,
    }


@pytest.fixture(scope="module", params=[2, 4])
def world(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def results(world: int, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ranks.run(scenarios(), world, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", WAYS)
def test_ranks_are_one_process_on_the_whole_batch(
    name: str, world: int, results: list[dict[str, Any]]
) -> None:
    assert_ranks_agree(results, name)
    alone = train(fresh_model(), world, steps=range(6), **WAYS[name])
    assert_same_run(results[0][name], alone)


@pytest.mark.parametrize("name", ["small buckets", "any order", *DDP])
def test_the_way_there_changes_nothing(
    name: str, world: int, results: list[dict[str, Any]]
) -> None:
    assert_ranks_agree(results, name)
    assert_same_run(results[0][name], train(fresh_model(), world, steps=range(6)))


@pytest.mark.parametrize("name", DDP)
def test_one_forward_inside_ddp(name: str, world: int, results: list[dict[str, Any]]) -> None:
    first, *others = (outcomes[f"{name}, one forward"] for outcomes in results)
    assert not isinstance(first, dict), first
    assert all(same(first, other) for other in others)
    torch.testing.assert_close(first, one_forward(world), rtol=0, atol=1e-6)


def test_odd_shapes(world: int, results: list[dict[str, Any]]) -> None:
    first, *others = (outcomes["odd shapes"] for outcomes in results)
    assert not isinstance(first, dict), first
    assert all(same(first, other) for other in others)
    for weight, alone in zip(first, odd_shapes(world), strict=True):
        rough = 0.3 if alone.dtype == torch.bfloat16 else 1e-6  # AdamW's first steps are signs
        torch.testing.assert_close(weight, alone, rtol=0, atol=rough)


def test_gradients_look_like_those_of_autograd(results: list[dict[str, Any]]) -> None:
    first, second, *rest = results[0]["gradients"]
    model = fresh_model()
    for (grad, strides), parameter in zip((first, second), model.parameters(), strict=False):
        assert grad.shape == parameter.shape
        assert tuple(strides) == parameter.stride()
    assert rest == [None] * len(rest)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("another seed", "on method: ['PCGrad', 'seed=0'] on rank 0, ['PCGrad', 'seed=1'] on rank"),
        ("another model", "on parameters: "),
    ],
)
def test_disagreement_is_refused(name: str, what: str, results: list[dict[str, Any]]) -> None:
    for outcomes in results:
        assert f"the ranks disagree {what}" in outcomes[name]["error"]


def test_nothing_captured_on_any_rank(results: list[dict[str, Any]]) -> None:
    assert all("found nothing captured" in outcomes["nothing"]["error"] for outcomes in results)


def test_sparse_gradients_are_refused(results: list[dict[str, Any]]) -> None:
    assert all("sparse=False" in outcomes["sparse"]["error"] for outcomes in results)


@pytest.mark.parametrize("name", ["dropped", "skipped", "dropped by all"])
def test_what_was_dropped_is_gone(name: str, results: list[dict[str, Any]]) -> None:
    for outcomes in results:
        assert not isinstance(outcomes[name], dict), outcomes[name]
        torch.testing.assert_close(outcomes[name], kept(), rtol=1e-5, atol=1e-6)


def test_copies_are_refused(tmp_path: Path) -> None:
    """Of an optimizer with a process group."""
    import copy

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        optimizer = wrapped(fresh_model(), process_group=dist.group.WORLD)
        with pytest.raises(TypeError, match="save its state_dict"):
            copy.deepcopy(optimizer)
    finally:
        dist.destroy_process_group()
