"""``every=R`` on several processes: one backward pass in most steps, and one process's steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gradsurgery import GradVac, Method, NashMTL
from tests.integration import ranks
from tests.integration.shards import (
    assert_ranks_agree,
    fresh_model,
    local_shards,
    train,
    uneven,
    wrapped,
)

METHODS: dict[str, Callable[[], Method]] = {
    "gradvac": lambda: GradVac(beta=0.5, seed=1),
    "nash": NashMTL,
}

#: Arguments of `train`, the same for the ranks and for one process.
RUNS: dict[str, dict[str, Any]] = {
    "joined": {"joined": True},
    "apart": {},
    "micro-batches": {"joined": True, "micro": 2},
    "uneven": {"joined": True, "drawn": uneven},
    "infinite": {"joined": True, "spoil": lambda step: step == 2},
}
#: The tasks that ran in measured steps, of 12 in six: a cycle of three, of which `uneven` measures
#: the third step and the fourth as tasks come and go.
POSSIBLE = {"joined": 4, "apart": 12, "micro-batches": 4, "uneven": 5, "infinite": 4}
EVEN = [name for name in RUNS if name != "uneven"]


def trained(model: torch.nn.Module, method: str, run: str, **options: Any) -> dict[str, Any]:
    options = {"every": 3} | options
    return train(model, 2, method=METHODS[method](), steps=range(6), **RUNS[run], **options)


def averaged(method: str, run: str) -> dict[str, Any]:
    return trained(fresh_model(), method, run, process_group=dist.group.WORLD)


def sharded(method: str, run: str) -> dict[str, Any]:
    return trained(fully_shard(fresh_model()), method, run)


def mixed() -> dict[str, Any]:
    """Rank 0 joins; rank 1 captures its tasks apart in step 1, which all measure for it."""
    model = fresh_model()
    optimizer = wrapped(model, METHODS["gradvac"](), process_group=dist.group.WORLD, every=6)
    for step in range(4):
        joined = dist.get_rank() == 0 or step != 1
        result = train(model, 2, optimizer=optimizer, joined=joined, steps=[step])
    return result


def by_ddp() -> dict[str, Any]:
    model = DistributedDataParallel(fresh_model(), find_unused_parameters=True)
    return train(model, take=local_shards(2), every=3)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    scenarios: dict[str, ranks.Scenario] = {
        **{f"averaged, {m}, {r}": partial(averaged, m, r) for m in METHODS for r in RUNS},
        **{f"sharded, {m}, {r}": partial(sharded, m, r) for m in METHODS for r in EVEN},
        "mixed": mixed,
        "DDP": by_ddp,
    }
    return ranks.run(scenarios, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("kind", "run"), [*(("averaged", run) for run in RUNS), *(("sharded", run) for run in EVEN)]
)
def test_ranks_are_one_process_on_the_whole_batch(
    kind: str, method: str, run: str, results: list[dict[str, Any]]
) -> None:
    name = f"{kind}, {method}, {run}"
    assert_ranks_agree(results, name)
    measured = kind == "averaged" and run == "micro-batches"  # a process group's are all measured
    expected = trained(fresh_model(), method, run, every=1 if measured else 3)
    for key in ("without", "nonfinite", "gradients"):
        assert results[0][name][key] == expected[key], key
    for key in ("state", "weights"):
        if key in expected:
            torch.testing.assert_close(results[0][name][key], expected[key], rtol=1e-4, atol=2e-6)
    assert results[0][name]["gradients"][0] == (12 if measured else POSSIBLE[run])


def test_a_rank_that_captures_apart_has_all_ranks_measure(results: list[dict[str, Any]]) -> None:
    assert_ranks_agree(results, "mixed")
    assert results[0]["mixed"]["gradients"][0] == 4  # two tasks in steps 0 and 1


def test_ddp_that_averages_by_itself_is_refused(results: list[dict[str, Any]]) -> None:
    for outcomes in results:
        assert "every=3 under DistributedDataParallel" in outcomes["DDP"]["error"]
