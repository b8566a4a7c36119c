"""Which examples are in the next step: a stream per task, and a scheme that says whose turn it is.

Vocabulary: a *pass* is one way through all examples of a task, each seen exactly once; a *stream*
is an endless row of passes, each in a new order; a *scheme* names the tasks that share a step.
Small sets are cycled because their stream simply goes on.

Each stream draws from its own generator, seeded by run and task, so that adding a task does not
change the batches of the others, and dropout does not either. Position and generator are the state:
a resumed stream gives the batches the uninterrupted one would have given.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

# Examples are sorted by length only within chunks of this many batches: wide enough to save most of
# the padding, narrow enough that a pass stays well shuffled.
CHUNK = 16


class Stream:
    """Endless batches of indices of one task.

    >>> stream = Stream([3, 5, 4], batch_size=2, seed=0)
    >>> sorted(stream.next() + stream.next())
    [0, 1, 2]
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        if not lengths:
            raise ValueError("a stream needs at least one example, but got none")
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.passes = 0  # begun so far
        self._begin()

    def next(self) -> list[int]:
        """Indices of the next batch; the last one of a pass may be smaller."""
        if self.position == len(self.plan):
            self._begin()
        self.position += 1
        return self.plan[self.position - 1]

    def state_dict(self) -> dict[str, Any]:
        """The generator as it was before the current pass was drawn, and how far into it we are."""
        return {"generator": self.before, "position": self.position, "passes": self.passes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken."""
        self.generator.set_state(state["generator"])
        self._begin()
        self.position, self.passes = state["position"], state["passes"]

    def _begin(self) -> None:
        self.before = self.generator.get_state()
        self.plan = bucketed(self.lengths, self.batch_size, self.generator)
        self.position = 0
        self.passes += 1


def bucketed(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator
) -> list[list[int]]:
    """One pass: a random order, sorted by length within chunks, cut into batches, those shuffled.

    >>> batches = bucketed([9, 1, 8, 2], 2, torch.Generator().manual_seed(0))
    >>> sorted(sorted(batch) for batch in batches)
    [[0, 2], [1, 3]]
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    width = batch_size * CHUNK
    batches: list[list[int]] = []
    for start in range(0, len(order), width):
        chunk = sorted(order[start : start + width], key=lambda i: lengths[i])
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def zipped(tasks: Sequence[str], step: int) -> Sequence[str]:
    """All tasks in every step: the gradients meet, and surgery can act.

    >>> zipped(["sst", "para"], step=7)
    ['sst', 'para']
    """
    return tasks


def round_robin(tasks: Sequence[str], step: int) -> Sequence[str]:
    """One task per step, in turn: no two gradients ever meet (the reports' "naive multitask").

    >>> [round_robin(["sst", "para"], step)[0] for step in range(3)]
    ['sst', 'para', 'sst']
    """
    return [tasks[step % len(tasks)]]


# name -> (task names, step) -> the tasks of that step
SCHEMES: dict[str, Callable[[Sequence[str], int], Sequence[str]]] = {
    "zipped": zipped,
    "round_robin": round_robin,
}


class Batches:
    """The streams of all tasks under one scheme.

    >>> batches = Batches({"sst": [3, 4], "sts": [5]}, scheme="zipped", batch_size=1, seed=0)
    >>> list(batches.at(0))
    ['sst', 'sts']
    """

    def __init__(
        self, lengths: Mapping[str, Sequence[int]], *, scheme: str, batch_size: int, seed: int
    ) -> None:
        self.scheme = scheme
        self.streams = {
            # crc32 and not hash(): the latter changes from process to process.
            name: Stream(rows, batch_size, seed=zlib.crc32(f"{seed}/{name}".encode()))
            for name, rows in lengths.items()
        }

    def at(self, step: int) -> dict[str, list[int]]:
        """Indices of the next batch of each task whose turn it is at `step`."""
        return {
            name: self.streams[name].next()
            for name in SCHEMES[self.scheme](list(self.streams), step)
        }

    def steps_per_pass(self) -> int:
        """Steps in which the largest set is seen once."""
        longest = max(len(stream.plan) for stream in self.streams.values())
        turns = SCHEMES[self.scheme](list(self.streams), 0)
        return longest * len(self.streams) // len(turns)

    def state_dict(self) -> dict[str, Any]:
        """The state of every stream."""
        return {name: stream.state_dict() for name, stream in self.streams.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue every stream where the state was taken."""
        for name, stream in self.streams.items():
            stream.load_state_dict(state[name])
