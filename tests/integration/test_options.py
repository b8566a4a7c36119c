"""Smoothing, weighted heads, means and the loss scale on several processes: one process's run."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from gradsurgery import GradientSurgery
from tests.gradsurgery.problems import linear_losses, same, vectors, wrap
from tests.integration import ranks
from tests.integration.shards import (
    assert_ranks_agree,
    assert_same_run,
    fresh_model,
    train,
    uneven,
)
from tests.throwaway import Unit

STEPS = range(5)

#: Arguments of `train`, the same for the ranks and for one process.
RUNS: dict[str, dict[str, Any]] = {
    "smoothing": {"smoothing": 0.9},
    "weighted": {"method": Unit(), "task_only": "weighted"},
    "mean": {"reduction": "mean"},
    "all": {"method": Unit(), "smoothing": 0.5, "task_only": "weighted", "reduction": "mean"},
    "all, joined": {"method": Unit(), "smoothing": 0.5, "task_only": "weighted", "joined": True},
    "all, uneven": {
        "method": Unit(),
        "smoothing": 0.5,
        "task_only": "weighted",
        "reduction": "mean",
        "drawn": uneven,
    },
}
#: Those of FSDP2, where every rank runs every task.
EVEN = [name for name in RUNS if "uneven" not in name]


def averaged(run: str) -> dict[str, Any]:
    group = dist.group.WORLD
    return train(fresh_model(), 2, steps=STEPS, process_group=group, **RUNS[run])


def sharded(run: str) -> dict[str, Any]:
    return train(fully_shard(fresh_model()), 2, steps=STEPS, **RUNS[run])


def unit() -> tuple[nn.Parameter, GradientSurgery]:
    w = nn.Parameter(torch.zeros(2))
    return w, wrap([w], Unit(), tasks=("a", "b"), process_group=dist.group.WORLD)


def a_rank_without_a_task() -> dict[str, Any]:
    """It has no scale of its own, and decides as the other does."""
    w, optimizer = unit()
    if dist.get_rank() == 0:
        losses = linear_losses([w], vectors((3, 4), (0, 2)))
        (512 * optimizer.join(losses)).backward()
    else:
        optimizer.combine()
    return {"grad": w.grad}


def more_micro_batches_on_one_rank() -> dict[str, Any]:
    """One runs two halves, the other a whole, and the sums are the same."""
    w, optimizer = unit()
    parts = 2 - dist.get_rank()
    for part in range(parts):
        losses = linear_losses([w], vectors((3, 4), (0, 2)))
        (512 / parts * optimizer.join(losses, combine=part == parts - 1)).backward()
    return {"grad": w.grad}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    scenarios: dict[str, ranks.Scenario] = {
        **{f"averaged, {run}": partial(averaged, run) for run in RUNS},
        **{f"sharded, {run}": partial(sharded, run) for run in EVEN},
        "without": a_rank_without_a_task,
        "more": more_micro_batches_on_one_rank,
    }
    return ranks.run(scenarios, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(
    ("kind", "run"), [*(("averaged", run) for run in RUNS), *(("sharded", run) for run in EVEN)]
)
def test_the_ranks_are_one_process(kind: str, run: str, results: list[dict[str, Any]]) -> None:
    assert_ranks_agree(results, f"{kind}, {run}")
    alone = train(fresh_model(), 2, steps=STEPS, **RUNS[run])
    assert_same_run(results[0][f"{kind}, {run}"], alone)
    plain = {key: RUNS[run][key] for key in RUNS[run].keys() & {"method", "drawn", "joined"}}
    assert not same(alone["weights"], train(fresh_model(), 2, steps=STEPS, **plain)["weights"])


@pytest.mark.parametrize("name", ["without", "more"])
def test_ranks_agree_on_the_loss_scale(name: str, results: list[dict[str, Any]]) -> None:
    for outcomes in results:
        assert outcomes[name]["grad"].tolist() == pytest.approx([512 * 0.6, 512 * 1.8])
