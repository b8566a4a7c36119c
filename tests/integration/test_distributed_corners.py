"""Corners of training in several processes: odd parameters, odd steps, and what must not stay.

The losses are linear, so that each task's gradient is known, and one process can be given what the
ranks should have averaged.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from gradsurgery import GradientSurgery, Method, PCGrad, Sum
from gradsurgery.distributed import collectives, consistency
from gradsurgery.methods import Verdict
from tests.gradsurgery.problems import linear_losses
from tests.integration import ranks
from tests.integration.shards import averaged, fresh_model, push, train

TASKS = ("a", "b", "c")
WORLD, STEPS = 2, 24

#: What is rounded to so many digits.
NEAR = {torch.bfloat16: 0.03, torch.float16: 4e-3}


def odd_parameters() -> list[nn.Parameter]:
    """Scalars, empty, transposed, channels-last and gappy ones, of every dtype."""
    torch.manual_seed(0)
    values = [
        torch.randn(()),
        torch.empty(0),
        torch.randn(7, 3).t(),
        torch.randn(40),
        torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        torch.randn(33, 5)[:, ::2],
        torch.randn((), dtype=torch.float64),
        torch.empty(0, 2, dtype=torch.float64),
        torch.randn(6, dtype=torch.complex64),
        torch.randn(20).bfloat16(),
        torch.randn(20).half(),
        torch.randn(8, 8),  # large, and evenly cut
        torch.randn(16, 4).t(),
    ]
    return [nn.Parameter(value) for value in values]


class Part(NamedTuple):
    """One entry of a task: the parameters that it reaches, and whether it says to be the last."""

    task: str
    reached: list[int]
    sync: bool
    seed: int


def plan(step: int, count: int) -> list[list[Part]]:
    """What each rank does, in its own order. The same for four steps, so that some goes out early,
    though who says what is the last changes in every step."""
    steady, changing = random.Random(step // 4), random.Random(-step)
    plans = []
    for _ in range(WORLD):
        parts = [
            Part(task, [p for p in range(count) if steady.random() < 0.7], True, 0)
            for task in TASKS
            for _ in range(steady.choice((0, 1, 1, 2)))
        ]
        changing.shuffle(parts)
        plans.append(
            [
                part._replace(sync=changing.random() < 0.7, seed=changing.randrange(1 << 30))
                for part in parts
                if part.reached
            ]
        )
    return plans


def gradients_of(parameters: list[nn.Parameter], reached: list[int], seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(p.shape, generator=generator, dtype=wide(p)) if i in reached else None
        for i, p in enumerate(parameters)
    ]


def wide(parameter: Tensor) -> torch.dtype:
    return torch.complex64 if parameter.is_complex() else torch.float64


def beside(step: int, rank: int, count: int) -> list[int]:
    """The parameters that an auxiliary backward reaches."""
    return list(range(rank, count, 3)) if step % 7 == 3 else []


def odd_steps() -> list[list[Tensor | None]]:
    """What `.grad` was after each step; one process is given the averages."""
    parameters = odd_parameters()
    half = len(parameters) // 2
    base = torch.optim.SGD([{"params": parameters[:half]}, {"params": parameters[half:]}], lr=0.1)
    group = {"process_group": dist.group.WORLD} if dist.is_initialized() else {}
    optimizer = GradientSurgery(base, PCGrad(seed=2), tasks=TASKS, grouping="tensor", **group)
    before = collectives.BUCKET, collectives.LARGE
    collectives.BUCKET, collectives.LARGE = 100, 130
    steps = []
    for step in range(STEPS):
        if step == 18:
            parameters.append(nn.Parameter(torch.ones(50)))
            optimizer.add_param_group({"params": parameters[-1:]})
        parts = plan(step, len(parameters))
        if not dist.is_initialized():
            fed(optimizer, parameters, step, parts)
        else:
            if step % 10 == 7 and all(parts):  # begun, in different ways, and dropped
                for part in parts[dist.get_rank()]:
                    run(optimizer, parameters, part._replace(sync=True, seed=part.seed + 1))
                optimizer.zero_grad()
            for p in beside(step, dist.get_rank(), len(parameters)):
                parameters[p].grad = torch.full_like(parameters[p], 1 + dist.get_rank())
            for part in parts[dist.get_rank()]:
                run(optimizer, parameters, part)
        if any(parts):
            optimizer.combine()
        steps.append([None if p.grad is None else p.grad.clone() for p in parameters])
        optimizer.zero_grad(set_to_none=step % 5 > 0)
    collectives.BUCKET, collectives.LARGE = before
    return steps


def run(optimizer: GradientSurgery, parameters: list[nn.Parameter], part: Part) -> None:
    grads = gradients_of(parameters, part.reached, part.seed)
    [loss] = linear_losses(parameters, [grads])
    with optimizer.task(part.task, sync=part.sync):
        (loss.real if loss.is_complex() else loss).backward()


def fed(
    optimizer: GradientSurgery,
    parameters: list[nn.Parameter],
    step: int,
    parts: list[list[Part]],
) -> None:
    """Capture the averages over the ranks that ran a task, and leave the others' beside them."""
    for rank in range(WORLD):
        for p in beside(step, rank, len(parameters)):
            value = torch.full_like(parameters[p], (1 + rank) / WORLD)
            kept = parameters[p].grad
            parameters[p].grad = value if kept is None else kept + value
    for task in TASKS:
        by_rank = [[part for part in rank if part.task == task] for rank in parts]
        ran = sum(map(bool, by_rank))
        if not ran:
            continue
        with optimizer.task(task):
            for part in itertools.chain(*by_rank):
                grads = gradients_of(parameters, part.reached, part.seed)
                for p, grad in zip(parameters, grads, strict=True):
                    if grad is not None:
                        value = (grad.conj().resolve_conj() / ran).to(p.dtype)
                        p.grad = value if p.grad is None else p.grad + value


def raised_after_sending() -> list[float]:
    """b's second micro-batch raises everywhere, once without and once with messages under way."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = averaged([weight])
    grads = []
    for step in range(5):
        for part in range(2):
            push(optimizer, "a", weight)
            with contextlib.suppress(KeyError), optimizer.task("b"):
                (10 * weight).sum().backward()
                if part == 1 and step in (0, 4):
                    raise KeyError
        try:
            optimizer.combine()
            assert weight.grad is not None
            grads.append(weight.grad[0].item())
        except RuntimeError:
            grads.append(2.0)  # refused: right as well
        optimizer.zero_grad()
    return grads


def another_collective() -> list[float]:
    """Rank 1 lacks a in one step; all average a number after each task, as loggers do."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = averaged([weight])
    grads = []
    for step in range(6):
        for task in ("a", "b"):
            if not (step == 4 and dist.get_rank() and task == "a"):
                push(optimizer, task, weight)
            loss = torch.full((1,), 7.0)
            dist.all_reduce(loss)
        optimizer.combine()
        assert weight.grad is not None
        grads.append(weight.grad.item())
        optimizer.zero_grad()
    return grads


def another_parameter_order() -> str:
    """Of one size altogether: nothing fails by itself."""
    parameters = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2, 2))]
    optimizer = averaged(parameters[::-1] if dist.get_rank() else parameters)
    for task in ("a", "b"):
        with optimizer.task(task):
            (parameters[0] + 100 * parameters[1].flatten()).sum().backward()
    optimizer.combine()
    return "went on"


class Halved(Method):
    """A user's method, without a ``__repr__``."""

    def __call__(self, gram: Tensor, *, state: dict[str, Tensor]) -> Verdict:
        return Verdict(torch.full(gram.shape[:-1], 0.5, dtype=gram.dtype), None, state)


def own_method() -> str:
    kept = [Halved() for _ in range(1 + 7 * dist.get_rank())]  # at another address
    weight = nn.Parameter(torch.ones(1))
    optimizer = averaged([weight], kept[-1])
    for task in ("a", "b"):
        push(optimizer, task, weight)
    optimizer.combine()
    return "went on"


def one_optimizer_more() -> str:
    """On rank 1 alone; then both train, averaged by DDP."""
    model = DistributedDataParallel(nn.Linear(3, 1))
    scratch = GradientSurgery(torch.optim.SGD(model.parameters(), lr=0.1), Sum(), tasks=("a", "b"))
    if dist.get_rank():
        copy.deepcopy(scratch)
    for tasks in (("a", "b"), ("a", "b", "c")):
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = GradientSurgery(base, Sum(), tasks=tasks)
        for task in tasks:
            with optimizer.task(task):
                model(torch.ones(2, 3)).sum().backward()
        for turn in range(WORLD):  # one after the other: the second sees the first's
            dist.barrier()
            if turn == dist.get_rank():
                try:
                    optimizer.combine()
                    result = "went on"
                except RuntimeError as error:
                    result = str(error)
        dist.barrier()
    return result


def debugged_shards() -> int:
    """How often the ranks compared what they decided."""
    compared = []
    original = consistency.compare
    consistency.compare = lambda *args: compared.append(original(*args))  # type: ignore[assignment]
    dist.set_debug_level(dist.DebugLevel.INFO)
    try:
        train(fully_shard(fresh_model()), WORLD)
    finally:
        consistency.compare = original
        dist.set_debug_level(dist.DebugLevel.OFF)
    return len(compared)


def partly_sharded() -> bool:
    """The rest are plain parameters that nobody averages: whether the ranks stay together."""
    model = fresh_model()
    fully_shard(model.upper)
    try:
        weights = train(model, WORLD)["weights"]
    except RuntimeError:
        return True  # refused
    local = torch.cat([weight.flatten() for weight in weights])
    first = local.clone()
    dist.broadcast(first, 0)
    same = torch.tensor(int(torch.equal(local, first)))
    dist.all_reduce(same, dist.ReduceOp.MIN)
    return bool(same)


def pending_sums(late: bool) -> list[Tensor]:
    """A replicated scale over sharded rows (sequence parallel): its gradients are `Partial`. With
    ``late``, they were asked for and have not arrived."""
    mesh = init_device_mesh("cpu", (WORLD,))
    scale = nn.Parameter(distribute_tensor(torch.ones(3), mesh, [Replicate()]))
    rows = distribute_tensor(torch.arange(12.0).view(4, 3), mesh, [Shard(0)])
    base = torch.optim.SGD([scale], lr=0.1)
    optimizer = GradientSurgery(base, Sum(), tasks=("a", "b"))
    kinds = []
    for _ in optimizer.tasks:
        with optimizer.task(optimizer.tasks[len(kinds)]):
            (rows * scale).sum().backward()
            assert isinstance(scale.grad, DTensor)
            kinds.append(scale.grad.placements[0].is_partial())
            if late:
                scale.grad = scale.grad.redistribute(mesh, [Replicate()], async_op=True)
    optimizer.combine()
    assert isinstance(scale.grad, DTensor)
    assert all(kinds)
    assert scale.grad.placements == (Replicate(),)
    norms = optimizer.conflicts.summary()["norms"]
    return [scale.grad.to_local() + 0, torch.tensor([norms[task] for task in ("a", "b")])]


SCENARIOS: dict[str, ranks.Scenario] = {
    "odd steps": odd_steps,
    "raised after sending": raised_after_sending,
    "another collective": another_collective,
    "another parameter order": another_parameter_order,
    "own method": own_method,
    "one optimizer more": one_optimizer_more,
    "debugged shards": debugged_shards,
    "partly sharded": partly_sharded,
    **{f"pending sums, {late}": partial(pending_sums, late) for late in (False, True)},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ranks.run(SCENARIOS, WORLD, tmp_path_factory.mktemp("ranks"))


def test_odd_steps_of_odd_parameters(results: list[dict[str, Any]]) -> None:
    """Each rank in its own order, with what it has; early, late, twice, dropped, and beside."""
    first, second = (outcomes["odd steps"] for outcomes in results)
    assert not isinstance(first, dict), first
    for step, rows in enumerate(zip(first, second, odd_steps(), strict=True)):
        for grad, other, alone in zip(*rows, strict=True):
            assert (grad is None) == (other is None) == (alone is None), step
            if grad is None:
                continue
            assert torch.equal(grad, other), step
            near = NEAR.get(grad.dtype, 1e-5)
            torch.testing.assert_close(grad, alone, rtol=near, atol=near, check_stride=False)


@pytest.mark.parametrize("late", [False, True])
def test_pending_sums_are_settled(late: bool, results: list[dict[str, Any]]) -> None:
    total = torch.arange(12.0).view(4, 3).sum(0)
    for outcomes in results:
        assert not isinstance(outcomes[f"pending sums, {late}"], dict), outcomes
        grad, norms = outcomes[f"pending sums, {late}"]
        torch.testing.assert_close(grad, 2 * total)
        torch.testing.assert_close(norms, total.norm().expand(2))


def test_a_task_that_raised_is_dropped_whether_sent_or_not(results: list[dict[str, Any]]) -> None:
    for outcomes in results:
        assert outcomes["raised after sending"] == [2.0, 22.0, 22.0, 22.0, 2.0]


def test_other_collectives_of_the_group_are_not_mixed_up(results: list[dict[str, Any]]) -> None:
    for outcomes in results:
        assert outcomes["another collective"] == [2.0] * 6


def test_another_parameter_order_is_refused(results: list[dict[str, Any]]) -> None:
    for outcomes in results:
        assert "ranks disagree" in outcomes["another parameter order"]["error"]


def test_a_method_without_a_repr_is_the_same_everywhere(results: list[dict[str, Any]]) -> None:
    assert [outcomes["own method"] for outcomes in results] == ["went on"] * WORLD


def test_one_optimizer_more_on_one_rank_is_no_alarm(results: list[dict[str, Any]]) -> None:
    assert [outcomes["one optimizer more"] for outcomes in results] == ["went on"] * WORLD


def test_debugging_compares_with_sharded_parameters(results: list[dict[str, Any]]) -> None:
    assert all(outcomes["debugged shards"] for outcomes in results)


def test_plain_parameters_beside_shards_do_not_drift(results: list[dict[str, Any]]) -> None:
    assert all(outcomes["partly sharded"] for outcomes in results)
