"""DDP's own averaging, a forward and backward per task: each rank gets the whole batch's step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradsurgery import GradientSurgery, GradVac
from tests.gradsurgery.problems import TwoHeads

WORLD = 2
STEPS = 4


def whole_batch(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {task: torch.randn(8, 3, generator=generator) for task in ("a", "b")}


def train(model: nn.Module, part: slice) -> list[Tensor]:
    """Train on a part of each batch; the weights."""
    base = torch.optim.AdamW(model.parameters(), lr=0.05)
    optimizer = GradientSurgery(base, GradVac(beta=0.5, seed=1), tasks=("a", "b"))
    for seed in range(STEPS):
        for task, x in whole_batch(seed).items():
            with optimizer.task(task):
                (model(x[part], task) - (1 if task == "a" else -1)).square().mean().backward()
        optimizer.combine()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in model.parameters()]


def fresh_model() -> TwoHeads:
    torch.manual_seed(0)
    return TwoHeads()


def rank_main(rank: int, folder: Path, bucket_view: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=WORLD
    )
    ddp = DistributedDataParallel(
        fresh_model(), find_unused_parameters=True, gradient_as_bucket_view=bucket_view
    )
    torch.save(train(ddp, slice(4 * rank, 4 * rank + 4)), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("bucket_view", [False, True])
def test_two_ranks_are_one_process_on_the_whole_batch(bucket_view: bool, tmp_path: Path) -> None:
    mp.spawn(rank_main, args=(tmp_path, bucket_view), nprocs=WORLD)
    alone = train(fresh_model(), slice(None))
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(WORLD))
    for one, two, whole in zip(first, second, alone, strict=True):
        assert torch.equal(one, two)
        assert torch.allclose(one, whole, atol=1e-6)
