"""Schemes in which tasks share a step: their gradients meet, and surgery can act."""

from __future__ import annotations

from collections import Counter
from typing import final

import torch

from bert_mtl_demo.batching.scheme import Scheme, Turn, up


class Together(Scheme):
    """All tasks in every step."""

    def steps_per_pass(self) -> int:
        """One pass of the largest set."""
        return max(self.frame.passes().values())

    def turn(self, step: int, generator: torch.Generator) -> Turn:
        """All tasks."""
        return dict.fromkeys(self.tasks)


@final
class Zipped(Together):
    """The gradients of all tasks meet in every step, and surgery can act; small sets are cycled.

    >>> from bert_mtl_demo.batching.scheme import Frame
    >>> list(Zipped(Frame({"sst": 9, "sts": 4}, batch_size=4)).turn(7, torch.Generator()))
    ['sst', 'sts']
    """


@final
class Method1(Together):
    """Batches in proportion to the sets (bert_mastery, section 3.5, method 1).

    An epoch has ceil(N_max / B) steps n; task i takes part in each with ceil(N_i / n) examples. As
    that is rounded up, small sets are used up before the epoch is over; the report does not say
    what then, and here they go on with another pass. The losses' weights are `weighting =
    inverse_share`.

    >>> from bert_mtl_demo.batching.scheme import Frame
    >>> Method1(Frame({"para": 1000, "sts": 60}, batch_size=32)).batch_sizes()
    {'para': 32, 'sts': 2}
    """

    fresh_epochs = True

    def batch_sizes(self) -> dict[str, int]:
        """ceil(N_i / n)."""
        return {task: up(size, self.steps_per_pass()) for task, size in self.frame.sizes.items()}


@final
class Method2(Together):
    """Equal batches until the largest set is used up, others cycled (bert_mastery, 3.5, method 2).

    `Zipped`, except that each epoch starts every set in a new order.
    """

    fresh_epochs = True


@final
class Method3(Together):
    """Equal batches until the smallest set is used up (bert_mastery, 3.5, method 3).

    What an epoch left unseen of the larger sets may come up in the next one: the orders are new.

    >>> from bert_mtl_demo.batching.scheme import Frame
    >>> Method3(Frame({"para": 1000, "sts": 60}, batch_size=32)).steps_per_epoch
    2
    """

    fresh_epochs = True

    def steps_per_pass(self) -> int:
        """One pass of the smallest set."""
        return min(self.frame.passes().values())


@final
class UniformPartial(Scheme):
    """A step is filled by draws of a task, uniform and with replacement (sbert_simcse).

    Of B = `batch_size` examples in all, each draw brings `partial_batch`, and the last one what is
    missing. A task drawn twice has one batch of twice the size; one not drawn sits the step out.

    >>> from bert_mtl_demo.batching.scheme import Frame
    >>> scheme = UniformPartial(Frame({"sst": 9, "sts": 9}, batch_size=6, partial_batch=4))
    >>> sum(scheme.turn(0, torch.Generator()).values())
    6
    """

    def batch_sizes(self) -> dict[str, int]:
        """Examples of one draw."""
        return dict.fromkeys(self.tasks, self._draws()[0])

    def fewest(self) -> dict[str, int]:
        """Examples of the last draw."""
        return dict.fromkeys(self.tasks, self._draws()[-1])

    def steps_per_pass(self) -> int:
        """Steps that hold all examples of all tasks."""
        return up(sum(self.frame.sizes.values()), self.frame.batch_size)

    def turn(self, step: int, generator: torch.Generator) -> Turn:
        """The drawn tasks, in the order of `tasks`."""
        sizes = self._draws()
        drawn = torch.randint(len(self.tasks), (len(sizes),), generator=generator).tolist()
        total: Counter[str] = Counter()
        for task, size in zip(drawn, sizes, strict=True):
            total[self.tasks[task]] += size
        return {task: total[task] for task in self.tasks if task in total}

    def _draws(self) -> list[int]:
        batch, part = self.frame.batch_size, self.frame.partial_batch
        return [min(part, batch - start) for start in range(0, batch, part)]
