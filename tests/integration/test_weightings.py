"""Methods of the losses on several processes: one backward pass, and one process's steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gradsurgery import (
    FAMO,
    DynamicWeightAverage,
    GradNorm,
    Method,
    UncertaintyWeighting,
)
from tests.integration import ranks
from tests.integration.shards import (
    assert_ranks_agree,
    fresh_model,
    local_shards,
    train,
    uneven,
    wrapped,
)

METHODS: dict[str, Method] = {
    "uncertainty": UncertaintyWeighting(lr=0.1),
    "dwa": DynamicWeightAverage(),
    "famo": FAMO(lr=0.1),
    "gradnorm": GradNorm(lr=0.1),
}

#: Arguments of `train`, the same for the ranks and for one process.
RUNS: dict[str, dict[str, Any]] = {
    "joined": {"joined": True},
    "apart": {},
    "micro-batches": {"joined": True, "micro": 2},
    "uneven": {"joined": True, "drawn": uneven},
    "uneven, micro-batches": {"joined": True, "drawn": uneven, "micro": 2},
    "infinite": {"joined": True, "spoil": lambda step: step == 2},
}
#: Those with one backward pass in every step.
ONE_PASS = ["joined", "uneven", "infinite"]
#: Those of FSDP2, where every rank runs every task.
EVEN = [name for name in RUNS if "uneven" not in name]


def trained(model: nn.Module, method: str, run: str, **options: Any) -> dict[str, Any]:
    return train(model, 2, method=METHODS[method], steps=range(6), **RUNS[run], **options)


def averaged(method: str, run: str) -> dict[str, Any]:
    return trained(fresh_model(), method, run, process_group=dist.group.WORLD)


def sharded(method: str, run: str) -> dict[str, Any]:
    return trained(fully_shard(fresh_model()), method, run)


def mixed() -> dict[str, Any]:
    """Rank 0 joins; rank 1 captures its tasks apart in every second step."""
    model = fresh_model()
    optimizer = wrapped(model, METHODS["famo"], process_group=dist.group.WORLD)
    for step in range(6):
        joined = dist.get_rank() == 0 or step % 2 == 0
        result = train(model, 2, optimizer=optimizer, joined=joined, steps=[step])
    return result


def by_ddp() -> dict[str, Any]:
    model = DistributedDataParallel(fresh_model(), find_unused_parameters=True)
    return train(model, take=local_shards(2), method=METHODS["famo"])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    scenarios: dict[str, ranks.Scenario] = {
        **{f"averaged, {m}, {r}": partial(averaged, m, r) for m in METHODS for r in RUNS},
        **{f"sharded, {m}, {r}": partial(sharded, m, r) for m in METHODS for r in EVEN},
        "mixed": mixed,
        "DDP": by_ddp,
    }
    return ranks.run(scenarios, 2, tmp_path_factory.mktemp("ranks"))


def assert_same_training(result: dict[str, Any], alone: dict[str, Any]) -> None:
    for key in ("without", "nonfinite"):
        assert result[key] == alone[key], key
    for key in ("state", "weights"):
        torch.testing.assert_close(result[key], alone[key], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("kind", "run"), [*(("averaged", run) for run in RUNS), *(("sharded", run) for run in EVEN)]
)
def test_ranks_are_one_process_on_the_whole_batch(
    kind: str, method: str, run: str, results: list[dict[str, Any]]
) -> None:
    name = f"{kind}, {method}, {run}"
    assert_ranks_agree(results, name)
    assert_same_training(results[0][name], trained(fresh_model(), method, run))
    possible, _ = results[0][name]["gradients"]
    assert (possible == 0) is (run in ONE_PASS and method != "gradnorm")


def test_a_rank_that_captures_apart_has_all_ranks_do_so(results: list[dict[str, Any]]) -> None:
    assert_ranks_agree(results, "mixed")
    assert_same_training(results[0]["mixed"], trained(fresh_model(), "famo", "joined"))
    assert results[0]["mixed"]["gradients"][0] == 6  # two tasks in three of six steps


def test_ddp_that_averages_by_itself_is_refused(results: list[dict[str, Any]]) -> None:
    for outcomes in results:
        assert "decides by the tasks' losses, which" in outcomes["DDP"]["error"]
