"""One BERT with K tasks: a linear head, a batch and a loss each.

Every second head starts out opposed to the one before, so that their tasks conflict from the first
step on and surgery has something to do.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.options import Options
from benchmarks.problems.encoders import ENCODERS, encoder
from benchmarks.problems.gradients import task_names


class Size(NamedTuple):
    """Encoder, sentences per batch, tokens per sentence."""

    encoder: str
    batch: int
    length: int


#: The sizes measured, by device; "quick" for smoke runs.
SIZES = {
    "cpu": Size("minilm", 8, 48),
    "cuda": Size("bert-base", 32, 128),
    "quick": Size("mini", 2, 8),
}


def size_of(options: Options) -> Size:
    """Return the model and batch for the run's device."""
    return SIZES["quick" if options.quick else options.device.type]


class MultiTask(nn.Module):
    """An encoder and a linear head per task."""

    def __init__(self, size: Size, tasks: Sequence[str], dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder(size.encoder, dropout)
        heads = [nn.Linear(ENCODERS[size.encoder].width, 1) for _ in tasks]
        for head, opposed in zip(heads[::2], heads[1::2], strict=False):
            opposed.weight.data.copy_(-head.weight.data)
        self.heads = nn.ModuleDict(dict(zip(tasks, heads, strict=True)))

    def features(self, tokens: Tensor) -> Tensor:
        """Return the last hidden states of ``tokens`` ([batch, length])."""
        hidden: Tensor = self.encoder(tokens).last_hidden_state
        return hidden

    def loss(self, task: str, features: Tensor) -> Tensor:
        """Return a task's loss on the encoder's output."""
        loss: Tensor = (self.heads[task](features.mean(1)) - 1).square().mean()
        return loss

    def forward(self, task: str, tokens: Tensor) -> Tensor:
        """Return a task's loss on ``tokens``."""
        return self.loss(task, self.features(tokens))


class Forward(NamedTuple):
    """One forward for all tasks: the encoder's output, and the losses by task."""

    features: Tensor
    losses: dict[str, Tensor]


class Problem(NamedTuple):
    """A model and its batches.

    Attributes:
        model: a :class:`MultiTask`, perhaps inside a wrapper.
        batches: tokens by task; the first one's is the batch that tasks share.
        bf16: whether forwards run under bf16 autocast.
    """

    model: Any
    batches: dict[str, Tensor]
    bf16: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names."""
        return tuple(self.batches)

    @property
    def tokens(self) -> Tensor:
        """The shared batch."""
        return self.batches[self.tasks[0]]

    @property
    def trunk(self) -> list[nn.Parameter]:
        """The parameters that all tasks use."""
        return list(self.model.encoder.parameters())

    def loss(self, task: str) -> Tensor:
        """Return a task's loss on its own batch."""
        with self._autocast():
            loss: Tensor = self.model(task, self.batches[task])
        return loss

    def shared(self) -> Forward:
        """Return features and losses on the shared batch."""
        with self._autocast():
            features = self.model.features(self.tokens)
            return Forward(features, {task: self.model.loss(task, features) for task in self.tasks})

    def copy(self) -> Problem:
        """Return the same problem with a model of its own."""
        return self._replace(model=copy.deepcopy(self.model))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.tokens.device.type, torch.bfloat16, self.bf16)


def problem(options: Options, tasks: int = 3, bf16: bool = False, dropout: float = 0.1) -> Problem:
    """Build a model and its batches, the same at each call."""
    torch.manual_seed(0)
    size, names = size_of(options), task_names(tasks)
    model = MultiTask(size, names, dropout).to(options.device)
    return Problem(model, batches(size, names, options.device), bf16)


def batches(
    size: Size, tasks: Sequence[str], device: torch.device, seed: int = 0
) -> dict[str, Tensor]:
    """Return random tokens by task, ``[batch, length]`` each."""
    source = torch.Generator().manual_seed(seed)
    vocabulary = ENCODERS[size.encoder].vocabulary
    shape = (size.batch, size.length)
    return {task: torch.randint(vocabulary, shape, generator=source).to(device) for task in tasks}
