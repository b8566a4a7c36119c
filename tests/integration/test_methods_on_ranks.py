"""A method of each kind on real processes: the steps of one process on the whole batch.

One that projects, one with targets, one that iterates, a quadratic program, linear algebra, one of
the losses alone and one of both; averaged by DDP, by `process_group=`, and in FSDP2's shards.
(Accumulation, missing tasks and overflows on ranks are in test_process_group, test_sharded and
test_weightings.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gradsurgery import (
    MGDA,
    AlignedMTL,
    GradNorm,
    GradVac,
    Method,
    NashMTL,
    PCGrad,
    UncertaintyWeighting,
)
from tests.integration import ranks
from tests.integration.shards import (
    assert_ranks_agree,
    fresh_model,
    local_shards,
    train,
)

METHODS: dict[str, Callable[[], Method]] = {
    "PCGrad": lambda: PCGrad(seed=1),
    "GradVac": lambda: GradVac(beta=0.5, seed=1),
    "NashMTL": NashMTL,
    "MGDA": MGDA,
    "AlignedMTL": AlignedMTL,
    "UncertaintyWeighting": lambda: UncertaintyWeighting(lr=0.1),
    "GradNorm": lambda: GradNorm(lr=0.1),
}
#: DDP averages by itself gradients, and not losses.
OF_LOSSES = ["UncertaintyWeighting", "GradNorm"]


def by_ddp(method: str) -> dict[str, Any]:
    model = DistributedDataParallel(fresh_model(), find_unused_parameters=True)
    return train(model, take=local_shards(2), method=METHODS[method]())


def by_group(method: str, joined: bool) -> dict[str, Any]:
    group = dist.group.WORLD
    return train(fresh_model(), 2, joined=joined, method=METHODS[method](), process_group=group)


def in_shards(method: str, joined: bool) -> dict[str, Any]:
    model = fresh_model()
    for part in (model.lower, model.upper, *model.heads.values()):
        fully_shard(part)
    return train(fully_shard(model), 2, joined=joined, method=METHODS[method]())


def alone(method: str, joined: bool) -> dict[str, Any]:
    return train(fresh_model(), 2, joined=joined, method=METHODS[method]())


SCENARIOS: dict[str, tuple[ranks.Scenario, ranks.Scenario]] = {  # on ranks, and alone
    **{f"DDP, {m}": (partial(by_ddp, m), partial(alone, m, False)) for m in METHODS},
    **{
        f"{kind}, {m}{', joined' if joined else ''}": (
            partial(scenario, m, joined),
            partial(alone, m, joined),
        )
        for kind, scenario in (("process_group", by_group), ("FSDP2", in_shards))
        for m in METHODS
        for joined in (False, True)
    },
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    scenarios = {name: on_ranks for name, (on_ranks, _) in SCENARIOS.items()}
    return ranks.run(scenarios, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(
    "name", [name for name in SCENARIOS if name not in [f"DDP, {m}" for m in OF_LOSSES]]
)
def test_ranks_are_one_process_on_the_whole_batch(name: str, results: list[dict[str, Any]]) -> None:
    assert_ranks_agree(results, name)
    result, expected = results[0][name], SCENARIOS[name][1]()
    for key in ("without", "gradients", "nonfinite"):
        assert result[key] == expected[key], key
    for key in ("state", "weights"):  # Adam divides rounding by small gradients
        torch.testing.assert_close(result[key], expected[key], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("method", OF_LOSSES)
def test_methods_of_losses_ask_for_process_group_under_ddp(
    method: str, results: list[dict[str, Any]]
) -> None:
    for outcomes in results:
        assert "process_group" in outcomes[f"DDP, {method}"]["error"]
