"""Labelled sentences: the examples of a task, split into train and dev, and the skipped rows.

Vocabulary: a *row* is what a source has; an *example* is a valid row (see `validation`); a
*skipped* row is an invalid one, with the reason.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bert_mtl_demo.errors import DemoError
from bert_mtl_demo.tasks import Task


class DataError(DemoError):
    """The data cannot be used; the message says where and what to do."""


@dataclass(frozen=True)
class Skipped:
    """One rejected row.

    Args:
        file: the file, or the hub's data set and split.
        line: physical line in the file where the row begins, from 1 (the header's line); on the
            hub, row from 1.
        reason: what is wrong with it.

    >>> print(Skipped("sts-dev.csv", 17, "the label is empty"))
    sts-dev.csv:17: the label is empty
    """

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Examples:
    """The examples of one task, column by column; ``first[n]``, ``second[n]`` and ``labels[n]``
    belong together.

    Args:
        task: the task the labels are for.
        first: N sentences.
        second: N sentences for a pair task, otherwise None.
        labels: N ints in 0..classes-1 for classification, N floats in low..high for regression.

    Raises:
        ValueError: when the columns differ in length, or ``second`` does not fit ``task.pair``.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> len(Examples(TASKS["sst"], ["A quiet joy.", "A long wait."], None, [4, 1]))
    2
    """

    task: Task
    first: list[str]
    second: list[str] | None
    labels: list[float] | list[int]

    def __post_init__(self) -> None:
        if (self.second is not None) != self.task.pair:
            need, got = ("two sentences", "one") if self.task.pair else ("one sentence", "two")
            raise ValueError(f"Task {self.task.name!r} takes {need} per example, got {got}.")
        lengths = [
            len(column) for column in (self.first, self.second, self.labels) if column is not None
        ]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"The columns of task {self.task.name!r} have {lengths} entries; "
                "they must be equally long."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """A hash of all sentences and labels, in order.

        >>> from bert_mtl_demo.tasks import TASKS
        >>> Examples(TASKS["sst"], ["Dire."], None, [0]).fingerprint()[:8]
        '0622c07a'
        """
        content = repr((self.first, self.second, [float(label) for label in self.labels]))
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def texts(self) -> list[tuple[str, ...]]:
        """The sentences of each example, without the label: ``(first,)`` or ``(first, second)``."""
        return (
            list(zip(self.first))
            if self.second is None
            else list(zip(self.first, self.second, strict=True))
        )

    def take(self, rows: Sequence[int]) -> Examples:
        """The examples at these positions, in this order.

        >>> from bert_mtl_demo.tasks import TASKS
        >>> three = Examples(TASKS["sst"], ["So so.", "A joy.", "Dire."], None, [2, 4, 0])
        >>> three.take([2, 0]).first
        ['Dire.', 'So so.']
        """
        second = None if self.second is None else [self.second[row] for row in rows]
        labels = [self.labels[row] for row in rows]
        return replace(self, first=[self.first[row] for row in rows], second=second, labels=labels)

    def limited(self, limit: int | None) -> Examples:
        """At most `limit` examples, in their own order; None: all.

        Which ones is decided by the task's name, N and `limit` alone: runs that differ in their
        seeds see the same examples. A smaller subset is part of every larger one.

        >>> from bert_mtl_demo.tasks import TASKS
        >>> Examples(TASKS["sst"], ["So so.", "A joy.", "Dire."], None, [2, 4, 0]).limited(2).labels
        [2, 0]
        """
        if limit is None or limit >= len(self):
            return self
        order = list(range(len(self)))
        random.Random(f"limit {self.task.name}").shuffle(order)
        return self.take(sorted(order[:limit]))


@dataclass(frozen=True)
class Splits:
    """The train and dev examples of a task; `whole` is the size of train before a limit."""

    train: Examples
    dev: Examples
    whole: int | None = None

    def overlap(self) -> int:
        """Number of dev examples whose sentences are also in train, in either order.

        >>> from bert_mtl_demo.tasks import TASKS
        >>> train = Examples(TASKS["sts"], ["It rains."], ["A dog sleeps."], [0.2])
        >>> dev = Examples(TASKS["sts"], ["A dog sleeps."], ["It rains."], [0.2])
        >>> Splits(train, dev).overlap()
        1
        """
        train = {tuple(sorted(texts)) for texts in self.train.texts()}
        return sum(tuple(sorted(texts)) in train for texts in self.dev.texts())

    def limited(self, train: int | None, dev: int | None) -> Splits:
        """At most so many examples of each; see `Examples.limited`."""
        return Splits(self.train.limited(train), self.dev.limited(dev), len(self.train))


def dev_halves(size: int, task: str) -> tuple[list[int], list[int]]:
    """The dev examples on which the epoch is chosen, and those whose scores are reported.

    Decided by the task's name and the size alone: runs that differ in their seeds have the same.

    Args:
        size: number of dev examples.
        task: the task's name.

    Raises:
        DataError: when there are fewer than two.

    >>> chosen, reported = dev_halves(5, "sst")
    >>> len(chosen), len(reported), sorted(chosen + reported)
    (2, 3, [0, 1, 2, 3, 4])
    """
    if size < 2:
        raise DataError(
            f"dev_half = true with {size} dev example of {task}: each half needs one. Give more "
            "dev data, or leave --dev-half out."
        )
    order = list(range(size))
    random.Random(f"half {task}").shuffle(order)
    return sorted(order[: size // 2]), sorted(order[size // 2 :])
