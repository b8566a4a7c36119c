"""A three-task problem for the HF frameworks, and the plain loop that they have to equal.

The loop knows no framework: batches in, AdamW with warm-up, clipping and accumulation by hand, each
task's backward inside ``task()``. Averaging over ranks is a mean of their losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from gradsurgery import GradientSurgery, GradVac

TASKS = ("a", "b", "c")
WIDTH = 4
LR, DECAY, CLIP = 0.05, 0.1, 0.5

#: ``{task: {"x": [B, WIDTH] float32, "y": [B] float32}}``
Batches = dict[str, dict[str, Tensor]]


class Net(nn.Module):
    """A trunk and a head per task."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.trunk = nn.Linear(WIDTH, 8)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in TASKS})

    def forward(self, x: Tensor, task: str | None = None, **ignored: object) -> Tensor:
        """One task's answers ``[B]``, or without a task everybody's ``[B, K]``."""
        hidden = self.dropout(self.norm(self.trunk(x)).tanh())
        heads = self.heads.values() if task is None else [self.heads[task]]
        out: Tensor = torch.cat([head(hidden) for head in heads], dim=-1)
        return out if task is None else out[:, 0]


def net(dropout: float = 0.0) -> Net:
    """The same fresh model each time."""
    torch.manual_seed(0)
    return Net(dropout)


def examples(task: str, count: int) -> dict[str, Tensor]:
    """Inputs ``x`` and a task's targets ``y``: the tasks want different things."""
    index = TASKS.index(task)
    x = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(index))
    return {"x": x, "y": x[:, index] - x[:, (index + 1) % WIDTH] + index}


class TaskRows(Dataset):
    """Row i holds example i of every task; the shorter tasks begin again."""

    def __init__(self, tasks: Sequence[str] = TASKS, counts: Sequence[int] = (40, 24, 9)) -> None:
        self.data = {t: examples(t, n) for t, n in zip(tasks, counts, strict=False)}

    def __len__(self) -> int:
        return max(len(data["y"]) for data in self.data.values())

    def __getitem__(self, row: int) -> Batches:
        return {
            task: {name: values[row % len(values)] for name, values in data.items()}
            for task, data in self.data.items()
        }


class MixedRows(Dataset):
    """One task's example a row, named as a Hugging Face model would have it."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        index = (row * row) % len(TASKS) if row % 4 else row % len(TASKS)
        data = examples(TASKS[index], 40)
        return {"x": data["x"][row], "labels": data["y"][row], "task_ids": torch.tensor(index)}


def mixed_losses(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean squared errors by task of one mixed batch, with one forward."""
    out, ids = model(batch["x"]), batch["task_ids"]
    errors = (out[torch.arange(len(ids)), ids] - batch["labels"]).square()
    return {t: errors[ids == k].mean() for k, t in enumerate(TASKS) if (ids == k).any()}


def task_losses(model: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """Mean squared errors, with a forward for each task."""
    return {
        task: (model(batch["x"], task=task) - batch["y"]).square().mean()
        for task, batch in batches.items()
    }


def wrapped(base: torch.optim.Optimizer, **options: object) -> GradientSurgery:
    """Every test's surgery: state that moves, and an order that matters."""
    return GradientSurgery(base, GradVac(beta=0.3, seed=5), tasks=TASKS, **options)  # type: ignore[arg-type]


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """AdamW without decay on biases and norms, as the Trainer builds it."""
    decayed = [p for n, p in model.named_parameters() if "bias" not in n and "norm" not in n]
    kept = [p for n, p in model.named_parameters() if "bias" in n or "norm" in n]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LR)


def warmup(step: int, warm: int, total: int) -> float:
    """The factor of linear warm-up and decay at ``step`` (from 0)."""
    if step < warm:
        return step / warm
    return max(0.0, (total - step) / (total - warm))


def plain_loop(
    model: nn.Module,
    steps: Sequence[Sequence[Sequence[Any]]],
    losses: Callable[[nn.Module, Any], dict[str, Tensor]] = task_losses,
    warm: int = 2,
) -> GradientSurgery:
    """Train on the batches ``steps[step][micro-batch][rank]``, each given to ``losses``.

    A task's gradient is the mean over the ranks that ran it in this step, and over micro-batches.
    """
    optimizer = wrapped(adamw(model))
    for index, micros in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * warmup(index, warm, len(steps))
        by_micro = [[losses(model, batch) for batch in ranks] for ranks in micros]
        for task in TASKS:
            ran = {rank for ranks in by_micro for rank, named in enumerate(ranks) if task in named}
            for named in (named for ranks in by_micro for named in ranks if task in named):
                with optimizer.task(task):
                    (named[task] / len(ran) / len(micros)).backward(retain_graph=True)
        optimizer.combine()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def micro_batches(seen: Sequence[Sequence[Any]], steps: int) -> list[list[list[Any]]]:
    """The batches that each rank saw (``[rank][batch]``), as ``[step][micro-batch][rank]``."""
    rounds = [list(ranks) for ranks in zip(*seen, strict=True)]
    return [rounds[i : i + steps] for i in range(0, len(rounds), steps)]


def assert_near(weights_of_rank: dict[str, Tensor], model: nn.Module) -> None:
    """Assert that a rank's weights are those of ``model``, but for rounding."""
    torch.testing.assert_close(weights_of_rank, weights(model), rtol=1e-5, atol=1e-6)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def learned(optimizer: GradientSurgery) -> list[Any]:
    """The base's moments, and surgery's own state: its generator and targets."""
    saved = optimizer.state_dict()
    return [saved["state"], saved["param_groups"][0]["surgery"]]
