"""Three tasks on a few batches, and the plain loops that Lightning and Fabric have to equal.

Three tasks, so that the visiting order matters; seven batches, so that accumulation over two leaves
one over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gradsurgery import GradientSurgery, GradVac
from tests.integration.by_hand import TASKS, Net, distance, fresh_model

BATCHES = 7
ROWS = 4

Batch = dict[str, Tensor]


class Rows(Dataset[Batch]):
    """A row for each task, drawn from its index."""

    def __len__(self) -> int:
        return BATCHES * ROWS

    def __getitem__(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(index)
        return {task: torch.randn(8, generator=generator) for task in TASKS}


def loader(rows: int = ROWS) -> DataLoader[Batch]:
    return DataLoader(Rows(), batch_size=rows, shuffle=False)


def surgery(model: nn.Module, **options: object) -> GradientSurgery:
    # Not Adam, which would not notice a sum where a mean belongs.
    base = torch.optim.SGD(model.named_parameters(), lr=0.05, momentum=0.9)
    return GradientSurgery(base, GradVac(beta=0.3, seed=1), tasks=TASKS, **options)  # type: ignore[arg-type]


def decay(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)


def losses_of(model: Callable[[Tensor, str], Tensor], batch: Batch) -> dict[str, Tensor]:
    return {task: distance(model(batch[task], task), task) for task in TASKS}


def plain_loop(
    epochs: int = 1,
    *,
    clip: float | None = None,
    accumulate: int = 1,
    precision: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    batches: Iterable[Batch] | None = None,
) -> tuple[Net, GradientSurgery]:
    """Train with ``task()``, without any framework: the schedule moves after each step."""
    model, scaler = fresh_model(), scaler or torch.amp.GradScaler("cpu", enabled=False)
    optimizer = surgery(model)
    schedule = decay(optimizer)
    for _ in range(epochs):
        data = list(loader() if batches is None else batches)
        for index, batch in enumerate(data):
            for task in TASKS:
                with torch.autocast("cpu", precision) if precision else nullcontext():
                    loss = distance(model(batch[task], task), task)
                with optimizer.task(task):
                    scaler.scale(loss / accumulate).backward()
            if (index + 1) % accumulate and index + 1 < len(data):
                continue
            optimizer.combine()
            scaler.unscale_(optimizer)
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            optimizer.zero_grad()
    return model, optimizer
