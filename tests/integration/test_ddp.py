"""DDP's own averaging, a forward and backward per task: each rank gets the whole batch's step."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.gradsurgery.problems import TwoHeads
from tests.integration import ranks
from tests.integration.shards import (
    assert_ranks_agree,
    assert_same_run,
    fresh_model,
    local_shards,
    train,
)


class Everything(TwoHeads):
    """No parameter without a gradient, and one graph for both tasks."""

    def forward(self, x: Tensor, task: str) -> Tensor:
        other = super().forward(x, "b" if task == "a" else "a")
        unused: Tensor = sum(p.sum() for p in self.spare.parameters())  # type: ignore[assignment]
        return super().forward(x, task) + 0.1 * other + 0.1 * unused


def everything() -> nn.Module:
    torch.manual_seed(0)
    return Everything()


def averaged(reach_all: bool = False, joined: bool = False, **options: Any) -> dict[str, Any]:
    """``reach_all``: each task reaches every parameter."""
    model = everything() if reach_all else fresh_model()
    ddp = DistributedDataParallel(model, **options)
    return train(ddp, take=local_shards(2), joined=joined)


#: Options of DDP. Without a search for unused parameters, every task has to reach all of them.
HEADS: dict[str, dict[str, Any]] = {
    "unused": {"find_unused_parameters": True},
    "unused, bucket view": {"find_unused_parameters": True, "gradient_as_bucket_view": True},
}
REACH_ALL: dict[str, dict[str, Any]] = {
    "plain": {},
    "bucket view": {"gradient_as_bucket_view": True},
    "static graph": {"static_graph": True},
    "static graph, bucket view": {"static_graph": True, "gradient_as_bucket_view": True},
    "small buckets": {"bucket_cap_mb": 1e-4},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    scenarios: dict[str, ranks.Scenario] = {
        **{name: partial(averaged, **options) for name, options in HEADS.items()},
        **{
            name: partial(averaged, reach_all=True, **options)
            for name, options in REACH_ALL.items()
        },
        "heads without the search": averaged,
    }
    return ranks.run(scenarios, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [*HEADS, *REACH_ALL])
def test_two_ranks_are_one_process_on_the_whole_batch(
    name: str, results: list[dict[str, Any]]
) -> None:
    assert_ranks_agree(results, name)
    model = everything() if name in REACH_ALL else fresh_model()
    assert_same_run(results[0][name], train(model, take=local_shards(2)))


def test_heads_need_the_search_for_unused_parameters(results: list[dict[str, Any]]) -> None:
    """DDP says so itself."""
    for outcomes in results:
        assert "find_unused_parameters=True" in outcomes["heads without the search"]["error"]
