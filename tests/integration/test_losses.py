"""The facts of a step beside its gradients: the tasks' losses, over micro-batches and ranks, and
the scale of the gradients, for methods that need them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, final

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gradsurgery import GradientSurgery, Method, Sum, Verdict
from tests.gradsurgery.problems import Fails, TwoHeads, losses_of, same, state_of, wrap
from tests.integration import ranks
from tests.integration.shards import (
    TASKS,
    assert_ranks_agree,
    assert_same_run,
    fresh_model,
    local_shards,
    train,
    uneven,
)
from tests.throwaway import DWA, State

STEPS = range(6)
Micros = list[dict[str, Tensor]]  # by micro-batch, the tasks' losses


@final
class Recorder(Method):
    """The plain sum; its state is the losses and the scale of the last step, NaN before."""

    needs: ClassVar[frozenset[str]] = frozenset({"losses", "scale"})

    def init(self, segments: int, tasks: int) -> State:
        return {name: torch.full((tasks,), torch.nan).double() for name in ("losses", "scale")}

    def __call__(self, gram: Tensor, *, state: State, losses: Tensor, scale: Tensor) -> Verdict:
        weights = torch.ones(gram.shape[:-1], dtype=gram.dtype)
        return Verdict(weights, None, {"losses": losses, "scale": scale.expand_as(losses).clone()})


def recorded(optimizer: GradientSurgery, fact: str) -> list[float]:
    """A fact of the last step, by task."""
    return state_of(optimizer)[fact].nan_to_num(-1).tolist()


def by_join(optimizer: GradientSurgery, micros: Micros) -> None:
    for number, losses in enumerate(micros):
        optimizer.join(losses, combine=number == len(micros) - 1).backward()


def by_task(optimizer: GradientSurgery, micros: Micros) -> None:
    for losses in micros:
        for task, loss in losses.items():
            with optimizer.task(task, loss=loss):
                loss.backward()
    optimizer.combine()


def by_combine(optimizer: GradientSurgery, micros: Micros) -> None:
    for losses in micros:
        for task, loss in losses.items():
            with optimizer.task(task):
                loss.backward()
    optimizer.combine(losses=totals(micros))


def totals(micros: Micros) -> dict[str, float]:
    """Each task's loss in the step, of a task that ran."""
    return {
        task: sum(losses[task].item() for losses in micros if task in losses)
        for task in TASKS
        if any(task in losses for losses in micros)
    }


WAYS: list[Callable[[GradientSurgery, Micros], None]] = [by_join, by_task, by_combine]


def two_heads(method: Method) -> tuple[TwoHeads, GradientSurgery]:
    model = fresh_model()
    return model, wrap(list(model.parameters()), method, tasks=TASKS)


@pytest.mark.parametrize("way", WAYS)
def test_micro_batches_add_up_and_an_absent_task_has_no_loss(
    way: Callable[[GradientSurgery, Micros], None],
) -> None:
    model, optimizer = two_heads(Recorder())
    first, second = losses_of(model, 1), losses_of(model, 2)
    alone = {"b": losses_of(model, 3)["b"]}
    for micros in ([first], [losses_of(model, 4), second], [alone]):
        way(optimizer, micros)
        expected = [totals(micros).get(task, -1) for task in TASKS]
        assert recorded(optimizer, "losses") == expected
        optimizer.zero_grad()


def test_the_three_ways_train_to_the_same_bits() -> None:
    weights = []
    for way in WAYS:
        model, optimizer = two_heads(DWA())
        for seed in range(4):
            way(optimizer, [losses_of(model, 2 * seed), losses_of(model, 2 * seed + 1)])
            optimizer.step()
            optimizer.zero_grad()
        weights.append(list(model.parameters()))
    assert same(weights[0], weights[1])
    assert same(weights[0], weights[2])


def test_what_combine_is_told_replaces_what_task_was_told() -> None:
    model, optimizer = two_heads(Recorder())
    for task, loss in losses_of(model).items():
        with optimizer.task(task, loss=3.0):
            loss.backward()
    optimizer.combine(losses={"a": 7})
    assert recorded(optimizer, "losses") == [7, 3]


def test_losses_at_features_arrive_as_well() -> None:
    model, optimizer = two_heads(Recorder())
    z = model.lower(torch.ones(2, 3))
    losses = {task: model.heads[task](z).sum() for task in TASKS}
    optimizer.join(losses, features=z).backward()
    assert recorded(optimizer, "losses") == [loss.item() for loss in losses.values()]


def test_the_loss_of_an_absent_task_is_refused() -> None:
    """A zero for a task that did not run would halve the mean of the ranks that ran it."""
    model, optimizer = two_heads(DWA())
    with optimizer.task("a"):
        losses_of(model)["a"].backward()
    with pytest.raises(ValueError, match=r"'b', which captured no gradients.*leave it out"):
        optimizer.combine(losses={"a": 1.0, "b": 0.0})
    optimizer.combine(losses={"a": 1.0})
    assert model.lower.weight.grad is not None


def failing(optimizer: GradientSurgery, losses: Mapping[str, Tensor]) -> None:
    """A micro-batch of b that raises, after one that went well."""
    with optimizer.task("b", loss=losses["b"]):
        losses["b"].backward(retain_graph=True)
    with pytest.raises(MemoryError), optimizer.task("b", loss=losses["b"]):
        Fails.apply(losses["b"]).backward()


def no_scalar(optimizer: GradientSurgery, losses: Mapping[str, Tensor]) -> None:
    with (
        pytest.raises(ValueError, match=r"task 'b' has shape \[2\]"),
        optimizer.task("b", loss=torch.ones(2)),
    ):
        losses["b"].backward()


def dropped(optimizer: GradientSurgery, losses: Mapping[str, Tensor]) -> None:
    with optimizer.task("b", loss=losses["b"]):
        losses["b"].backward()
    optimizer.zero_grad()


@pytest.mark.parametrize("before", [failing, no_scalar, dropped])
def test_a_loss_is_dropped_with_its_gradients(
    before: Callable[[GradientSurgery, Mapping[str, Tensor]], None],
) -> None:
    model, optimizer = two_heads(Recorder())
    before(optimizer, losses_of(model, 1))
    losses = losses_of(model, 2)
    by_task(optimizer, [losses])
    assert recorded(optimizer, "losses") == [loss.item() for loss in losses.values()]
    expected = torch.autograd.grad(losses_of(model, 2)["b"], model.heads["b"].weight)[0]
    assert torch.equal(model.heads["b"].weight.grad, expected)


# ---------------------------------------------------------------------- the scale


@pytest.mark.parametrize("scale", [1.0, 512.0, torch.tensor(0.25)])
def test_combine_hands_on_the_scale(scale: float | Tensor) -> None:
    model, optimizer = two_heads(Recorder())
    for task, loss in losses_of(model).items():
        with optimizer.task(task, loss=loss):
            (loss * scale).backward()
    optimizer.combine(scale=scale)
    assert recorded(optimizer, "scale") == [float(scale)] * 2


@pytest.mark.parametrize("features", [False, True])
def test_join_knows_the_scale_of_a_scaler_and_the_losses_without_it(features: bool) -> None:
    model, optimizer = two_heads(Recorder())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    for scale in (1024.0, 2048.0):
        z = model.lower(torch.ones(2, 3))
        losses = {task: model.heads[task](z).sum() for task in TASKS}
        joined = optimizer.join(losses, features=z if features else None)
        scaler.scale(joined).backward()
        assert recorded(optimizer, "scale") == [scale] * 2
        assert recorded(optimizer, "losses") == [loss.item() for loss in losses.values()]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


# ---------------------------------------------------------------------- several processes

#: Arguments of `train`, the same for the ranks and for one process.
RUNS: dict[str, dict[str, Any]] = {
    "combine": {},
    "join": {"joined": True},
    "micro-batches": {"micro": 2},
    "infinite": {"spoil": lambda step: step == 2},
    "uneven": {"drawn": uneven},
    "uneven, joined": {"drawn": uneven, "joined": True},
    "uneven, micro-batches": {"drawn": uneven, "micro": 2},
}
#: Those of FSDP2, where every rank runs every task.
EVEN = [name for name in RUNS if "uneven" not in name]


def dwa(model: nn.Module, run: str, **options: Any) -> dict[str, Any]:
    return train(model, 2, method=DWA(), steps=STEPS, **RUNS[run], **options)


def averaged(run: str) -> dict[str, Any]:
    return dwa(fresh_model(), run, process_group=dist.group.WORLD)


def sharded(run: str) -> dict[str, Any]:
    return dwa(fully_shard(fresh_model()), run)


def by_ddp() -> dict[str, Any]:
    model = DistributedDataParallel(fresh_model(), find_unused_parameters=True)
    return train(model, take=local_shards(2), method=DWA())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    scenarios: dict[str, ranks.Scenario] = {
        **{f"averaged, {run}": partial(averaged, run) for run in RUNS},
        **{f"sharded, {run}": partial(sharded, run) for run in EVEN},
        "DDP": by_ddp,
    }
    return ranks.run(scenarios, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(
    ("kind", "run"), [*(("averaged", run) for run in RUNS), *(("sharded", run) for run in EVEN)]
)
def test_ranks_decide_by_the_mean_of_their_losses(
    kind: str, run: str, results: list[dict[str, Any]]
) -> None:
    """Of the ranks that ran the task: they are one process, whose loss is that of the batch."""
    assert_ranks_agree(results, f"{kind}, {run}")
    alone = dwa(fresh_model(), run)
    assert_same_run(results[0][f"{kind}, {run}"], alone)
    assert alone["weights"][0].isfinite().all()
    unweighted = train(fresh_model(), 2, method=Sum(), steps=STEPS, **RUNS[run])
    assert not same(alone["weights"], unweighted["weights"])  # so the losses counted


def test_ddp_that_averages_by_itself_is_refused(results: list[dict[str, Any]]) -> None:
    for outcomes in results:
        error = outcomes["DDP"]["error"]
        assert "decides by the tasks' losses, which DistributedDataParallel does not" in error
        assert "process_group=dist.group.WORLD" in error
        assert "ddp.no_sync()" in error
