"""Schemes that give a step one task only: no two gradients ever meet."""

from __future__ import annotations

from abc import abstractmethod
from typing import final

import torch
from torch import Tensor

from bert_mtl_demo.batching.scheme import Scheme, Turn


@final
class RoundRobin(Scheme):
    """One task per step, in turn: no two gradients ever meet (the reports' "naive multitask").

    >>> from bert_mtl_demo.batching.scheme import Frame
    >>> scheme = RoundRobin(Frame({"sst": 9, "sts": 4}, batch_size=4))
    >>> [list(scheme.turn(step, torch.Generator())) for step in range(3)]
    [['sst'], ['sts'], ['sst']]
    """

    def steps_per_pass(self) -> int:
        """One pass of the largest set, the others having as many turns."""
        return max(self.frame.passes().values()) * len(self.tasks)

    def turn(self, step: int, generator: torch.Generator) -> Turn:
        """The next task."""
        return {self.tasks[step % len(self.tasks)]: None}


class Drawn(Scheme):
    """One task per step, drawn with probability N_i^alpha / sum_j N_j^alpha.

    The family of Stickland & Murray 2019 ("BERT and PALs", on sampling tasks); a member is its
    alpha.
    """

    @abstractmethod
    def alpha(self, epoch: int) -> float:
        """The exponent: 0 draws all tasks alike, 1 in proportion to their examples."""

    def probabilities(self, epoch: int) -> Tensor:
        """The probability of each task, [K] float64."""
        sizes = torch.tensor([float(size) for size in self.frame.sizes.values()]).double()
        weights = (sizes / sizes.max()) ** self.alpha(epoch)
        return weights / weights.sum()

    def steps_per_pass(self) -> int:
        """The batches in a pass of every task."""
        return sum(self.frame.passes().values())

    def turn(self, step: int, generator: torch.Generator) -> Turn:
        """The drawn task."""
        chances = self.probabilities(self.epoch(step))
        return {self.tasks[int(torch.multinomial(chances, 1, generator=generator))]: None}


@final
class Proportional(Drawn):
    """In proportion to the number of examples.

    >>> from bert_mtl_demo.batching.scheme import Frame
    >>> Proportional(Frame({"para": 75, "sts": 25}, batch_size=8)).probabilities(1).tolist()
    [0.75, 0.25]
    """

    def alpha(self, epoch: int) -> float:
        """1."""
        return 1.0


@final
class Sqrt(Drawn):
    """In proportion to the square root of the number of examples.

    >>> from bert_mtl_demo.batching.scheme import Frame
    >>> Sqrt(Frame({"para": 90, "sts": 10}, batch_size=8)).probabilities(1).tolist()
    [0.75, 0.25]
    """

    def alpha(self, epoch: int) -> float:
        """1/2."""
        return 0.5


@final
class Annealed(Drawn):
    """From in proportion to the examples to nearly alike: alpha = 1 - 0.8 (e - 1) / (E - 1).

    >>> from bert_mtl_demo.batching.scheme import Frame
    >>> scheme = Annealed(Frame({"para": 90, "sts": 10}, batch_size=8, epochs=3))
    >>> [round(scheme.alpha(epoch), 1) for epoch in (1, 2, 3)]
    [1.0, 0.6, 0.2]
    """

    def alpha(self, epoch: int) -> float:
        """The exponent in epoch e of E; 1 if E is 1."""
        last = self.frame.epochs - 1
        return 1.0 - 0.8 * (epoch - 1) / last if last else 1.0


@final
class Sequential(Scheme):
    """One task after the other, in their order (the reports' baselines).

    Each has a part of the horizon: its own passes, or with `steps_per_epoch` an equal one.

    >>> from bert_mtl_demo.batching.scheme import Frame
    >>> scheme = Sequential(Frame({"sst": 9, "sts": 4}, batch_size=4))
    >>> [list(scheme.turn(step, torch.Generator()))[0] for step in range(scheme.horizon)]
    ['sst', 'sst', 'sst', 'sts']
    """

    def steps_per_pass(self) -> int:
        """A pass of every task."""
        return sum(self.frame.passes().values())

    def turn(self, step: int, generator: torch.Generator) -> Turn:
        """The one whose part of the horizon this is."""
        return {_task_at(self, step, self.horizon): None}


@final
class Interleaved(Scheme):
    """In every epoch one task after the other, in their order.

    "Interleaved training, where one full epoch of training occurs of each task before proceeding to
    the next task" (pals_gradvac, section 3, after McCann et al. 2018). Each task has a part of the
    epoch: its own pass, or with `steps_per_epoch` an equal one.

    >>> from bert_mtl_demo.batching.scheme import Frame
    >>> scheme = Interleaved(Frame({"sst": 9, "sts": 4}, batch_size=4, epochs=2))
    >>> [list(scheme.turn(step, torch.Generator()))[0] for step in range(scheme.horizon)]
    ['sst', 'sst', 'sst', 'sts', 'sst', 'sst', 'sst', 'sts']
    """

    def steps_per_pass(self) -> int:
        """A pass of every task."""
        return sum(self.frame.passes().values())

    def turn(self, step: int, generator: torch.Generator) -> Turn:
        """The one whose part of the epoch this is."""
        return {_task_at(self, step % self.steps_per_epoch, self.steps_per_epoch): None}


def _task_at(scheme: Scheme, step: int, steps: int) -> str:
    """The task of a step, if all have a part of `steps`, one after the other."""
    equal = scheme.frame.steps_per_epoch is not None
    parts = [1 if equal else batches for batches in scheme.frame.passes().values()]
    end = 0
    for task, part in zip(scheme.tasks, parts, strict=True):
        end += part
        if step * sum(parts) < end * steps:
            return task
    return scheme.tasks[-1]
