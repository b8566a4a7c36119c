"""Batching schemes: which tasks share a step, and how long an epoch is.

Vocabulary, for K tasks of N_i examples and a batch size B: a *pass* of a task is its ceil(N_i / B)
batches; `steps_per_pass` is what the scheme calls one way through the data; an *epoch* is that many
steps unless a number was asked for; the *horizon* is all epochs together. A *turn* names the tasks
of one step.

Schemes that draw get the generator with every step: they hold no state of their own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch

# The tasks of a step, in order, each with its number of examples; None: the next batch of its pass.
Turn = dict[str, int | None]


@dataclass(frozen=True)
class Frame:
    """The sizes that a scheme is laid out for.

    >>> Frame({"sst": 9, "sts": 4}, batch_size=4).passes()
    {'sst': 3, 'sts': 1}
    """

    sizes: Mapping[str, int]  # task -> examples, in the order of the tasks
    batch_size: int
    partial_batch: int = 4
    epochs: int = 1
    steps_per_epoch: int | None = None  # None: as the scheme has it
    epochs_per_pass: int = 1  # then an epoch may still be a fraction of a pass
    fraction: float = 1.0  # of an epoch's steps that are taken

    def passes(self) -> dict[str, int]:
        """Batches in one pass of each task."""
        return {task: up(size, self.batch_size) for task, size in self.sizes.items()}


class Scheme(ABC):
    """A rule that gives every step its tasks.

    >>> from bert_mtl_demo.batching.joint import Zipped
    >>> Zipped(Frame({"sst": 9, "sts": 4}, batch_size=4, epochs=2)).horizon
    6
    """

    fresh_epochs = False  # whether every epoch starts every set anew, in a new order

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.tasks = list(frame.sizes)
        steps = frame.steps_per_epoch or up(self.steps_per_pass(), frame.epochs_per_pass)
        self.steps_per_epoch = part(steps, frame.fraction)
        self.horizon = frame.epochs * self.steps_per_epoch

    def epoch(self, step: int) -> int:
        """The epoch, from 1, of the step that follows `step` steps."""
        return step // self.steps_per_epoch + 1

    def batch_sizes(self) -> dict[str, int]:
        """Examples in a batch of each task."""
        return dict.fromkeys(self.frame.sizes, self.frame.batch_size)

    def fewest(self) -> dict[str, int]:
        """Least examples of each task in a step it takes part in, short last batches apart."""
        return self.batch_sizes()

    @abstractmethod
    def steps_per_pass(self) -> int:
        """Steps in one pass through the data."""

    @abstractmethod
    def turn(self, step: int, generator: torch.Generator) -> Turn:
        """The tasks of the step that follows `step` steps."""


def part(steps: int, fraction: float) -> int:
    """A fraction of some steps, rounded up.

    >>> part(54_000, 0.1), part(189, 0.1), part(5, 0.01)
    (5400, 19, 1)
    """
    return math.ceil(round(steps * fraction, 6))


def up(amount: int, size: int) -> int:
    """Division, rounded up.

    >>> up(9, 4), up(8, 4)
    (3, 2)
    """
    return -(-amount // size)
