"""The training loop of a stage: AdamW, a linear warm-up and decay, batches of like length.

It is no run: there is no dev set, no checkpoint and nothing to resume. A stage that is interrupted
begins again; the stages before it are in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from bert_mtl_demo.batching.scheme import part
from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import DivergedError
from bert_mtl_demo.pretraining.objective import Objective
from bert_mtl_demo.runtime import Precision

# Of the stages alone, so that the settings of the run behind them do not decide what they do.
WARMUP = 0.1  # share of the steps
WEIGHT_DECAY = 0.01  # Devlin et al. 2018, A.2; not on biases and LayerNorm
CLIP = 1.0
POOL = 50  # batches that are sorted by length together

Step = list[list[int]]  # the batches of one optimizer step, each the indices of its rows


@dataclass(frozen=True)
class Course:
    """How a stage went: steps, and the mean loss of its first and of its last tenth.

    >>> Course.of([4.0, 3.0, 2.0]).last
    2.0
    """

    steps: int
    first: float
    last: float

    @classmethod
    def of(cls, losses: Sequence[float]) -> Course:
        """From the loss of each step."""
        few = max(1, len(losses) // 10)
        return cls(len(losses), sum(losses[:few]) / few, sum(losses[-few:]) / few)


def fit(objective: Objective, config: Config, precision: Precision, name: str) -> Course:
    """Train an objective, which is on its device, as the settings say.

    Raises:
        DivergedError: when a loss is not finite.
    """
    objective.train()
    optimizer = build_optimizer(objective, config.pretrain_lr)
    total = count_steps(len(objective.lengths), config)
    losses: list[float] = []
    with tqdm(total=total, desc=name, unit="step", disable=None, leave=False) as bar:
        for batches in plan(objective.lengths, config):
            for group in optimizer.param_groups:
                group["lr"] = config.pretrain_lr * rate(len(losses), total)
            losses.append(_step(objective, optimizer, batches, precision))
            if not math.isfinite(losses[-1]):
                raise DivergedError(
                    f"stage {name}: the loss is {losses[-1]} at step {len(losses)}. Lower "
                    f"--pretrain-lr (now {config.pretrain_lr:g}), or use --amp off."
                )
            bar.update()
    return Course.of(losses)


def _step(
    objective: Objective, optimizer: torch.optim.Optimizer, batches: Step, precision: Precision
) -> float:
    """One optimizer step; the mean loss of its batches."""
    scaler = precision.scaler
    total: Tensor | float = 0.0
    for indices in batches:
        with precision.autocast():
            loss = objective.loss(indices) / len(batches)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(objective.parameters(), CLIP)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return float(total)


def build_optimizer(objective: Objective, lr: float) -> torch.optim.Optimizer:
    """AdamW over everything; vectors (biases, LayerNorm) without weight decay."""
    matrices = [p for p in objective.parameters() if p.ndim > 1]
    vectors = [p for p in objective.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr)


def rate(step: int, total: int) -> float:
    """The share of the peak learning rate at a step from 0: up to 1, then down towards 0.

    >>> [rate(step, 20) for step in (0, 1, 2, 11, 19)]
    [0.5, 1.0, 1.0, 0.5, 0.05555555555555555]
    """
    warm = max(1, round(WARMUP * total))
    return (step + 1) / warm if step < warm else (total - step) / (total - warm)


def count_steps(rows: int, config: Config) -> int:
    """Optimizer steps of a stage over so many rows.

    >>> count_steps(100, Config(pretrain_batch_size=16, pretrain_accumulation=4))
    2
    """
    batches = max(1, rows // config.pretrain_batch_size)
    steps = config.pretrain_epochs * -(-batches // config.pretrain_accumulation)
    if config.fraction is not None:
        steps = part(steps, config.fraction)
    return min(steps, config.pretrain_steps or steps)


def plan(lengths: Sequence[int], config: Config) -> Iterator[Step]:
    """The batches of each step, from a generator of its own."""
    generator = torch.Generator().manual_seed(config.seed)
    total, done = count_steps(len(lengths), config), 0
    while True:
        batches = draw(lengths, config.pretrain_batch_size, generator)
        for start in range(0, len(batches), config.pretrain_accumulation):
            if done == total:
                return
            yield batches[start : start + config.pretrain_accumulation]
            done += 1


def draw(lengths: Sequence[int], size: int, generator: torch.Generator) -> Step:
    """One pass over the rows in batches of `size`, each of rows of like length, in random order.

    The rows are shuffled and then sorted within pools of some batches. What does not fill a batch
    is left out of this pass, as a contrast needs others to stand against; a set smaller than
    one batch is one batch.

    >>> sorted(map(len, draw([5] * 11, 4, torch.Generator().manual_seed(0))))
    [4, 4]
    """
    size = min(size, len(lengths))
    order = torch.randperm(len(lengths), generator=generator).tolist()
    order = order[: len(order) - len(order) % size]
    batches: Step = []
    for start in range(0, len(order), POOL * size):
        pool = sorted(order[start : start + POOL * size], key=lambda row: lengths[row])
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in shuffled]
