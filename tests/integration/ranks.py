"""Real processes for the distributed tests: every scenario of a file in one start of the ranks.

A scenario is a function of nothing that runs on every rank, inside an initialised process group,
and returns tensors (or anything that `torch.save` writes as weights). What it raises is part of
the result: ``{"error": text}``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Scenario = Callable[[], Any]


def run(scenarios: Mapping[str, Scenario], world: int, folder: Path) -> list[dict[str, Any]]:
    """Run the scenarios, one after the other, on ``world`` ranks; what they returned, by rank."""
    mp.spawn(_rank_main, args=(world, dict(scenarios), folder), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _rank_main(rank: int, world: int, scenarios: dict[str, Scenario], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meet'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    results = {}
    for name, scenario in scenarios.items():
        try:
            results[name] = scenario()
        except Exception as error:  # a scenario may be about the error
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        dist.barrier()
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
