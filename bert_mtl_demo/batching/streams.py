"""Streams: the endless batches of one task, pass after pass, each pass in a new order.

A stream draws from a generator of its own, seeded by run and task, so that adding a task does not
change the batches of the others, and dropout does not either. Position and generator are the state:
a resumed stream gives the batches the uninterrupted one would have given.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from bert_mtl_demo.errors import ConfigError

# Examples are sorted by length only within chunks of this many batches: wide enough to save most of
# the padding, narrow enough that a pass stays well shuffled.
CHUNK = 16

# A pair with a label above this is a positive one, any other a negative one.
POSITIVE_ABOVE = 3.0


@final
class Stream:
    """Endless batches of indices of one task.

    >>> stream = Stream([3, 5, 4], batch_size=2, seed=0)
    >>> sorted(stream.next() + stream.next())
    [0, 1, 2]
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        if not lengths:
            raise ValueError("a stream needs at least one example, but got none")
        self.lengths = torch.tensor(lengths)  # [N] int64
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.passes = 0  # begun so far
        self.rest: list[int] = []  # of a batch that `take` used in part
        self._begin()

    def next(self) -> list[int]:
        """Indices of the next batch; the last one of a pass may be smaller."""
        if self.position == len(self.plan):
            self._begin()
        self.position += 1
        batch: list[int] = self.plan[self.position - 1]
        return batch

    def take(self, count: int) -> list[int]:
        """Indices of the next `count` examples, across the ends of batches and passes."""
        indices = self.rest
        while len(indices) < count:
            indices = indices + self.next()
        self.rest = indices[count:]
        return indices[:count]

    def restart(self) -> None:
        """Begin a new pass; what is left of this one is dropped."""
        if self.position:
            self._begin()
        self.rest = []

    def state_dict(self) -> dict[str, Any]:
        """The generator as it was before the current pass was drawn, and how far into it we are."""
        return {
            "generator": self.before,
            "position": self.position,
            "passes": self.passes,
            "rest": list(self.rest),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken."""
        self.generator.set_state(state["generator"])
        self._begin()
        self.position, self.passes = state["position"], state["passes"]
        self.rest = list(state["rest"])

    def _begin(self) -> None:
        self.before = self.generator.get_state()
        self.plan = bucketed(self.lengths, self.batch_size, self.generator)
        self.position = 0
        self.passes += 1


@final
class OnePositive:
    """Endless batches of one positive pair and otherwise negatives, for `sts_loss = mnrl_one`.

    The loader of pals_gradvac: "one data point with a sentence pair with a similarity label greater
    than 3 and the rest ... less than 3". Of a label of exactly 3 it says there that it is neither,
    and in its conclusion that it is positive; here it is a negative. Positives and negatives are
    cycled each at their own pace.

    Args:
        lengths, labels: of each example.
        batch_size: examples that `next` gives.
        seed, task: what the order is drawn from.
        fewest: examples that `take` will be asked for at least; None: as many as `batch_size`.

    >>> stream = OnePositive([4, 4, 4, 4], [1.0, 5.0, 3.0, 0.0], batch_size=4, seed=0, task="sts")
    >>> sorted(stream.next())
    [0, 1, 2, 3]
    """

    def __init__(
        self,
        lengths: Sequence[int],
        labels: Sequence[float],
        batch_size: int,
        seed: int,
        task: str,
        fewest: int | None = None,
    ) -> None:
        smallest = batch_size if fewest is None else fewest
        if smallest < 2:
            raise ConfigError(
                f"sts_loss = mnrl_one with a batch of {smallest} example of {task}: it needs a "
                "positive pair and at least one negative. Change --batch-size, --partial-batch or "
                "--batching, or use --sts-loss mse."
            )
        self.batch_size = batch_size
        self.indices: dict[str, list[int]] = {
            "positive": [i for i, label in enumerate(labels) if label > POSITIVE_ABOVE],
            "negative": [i for i, label in enumerate(labels) if label <= POSITIVE_ABOVE],
        }
        for sign, indices in self.indices.items():
            if not indices:
                raise ConfigError(
                    f"sts_loss = mnrl_one: none of the {len(labels)} pairs of {task} is {sign} (a "
                    f"label above {POSITIVE_ABOVE:g} is positive). Use --sts-loss mse, or other "
                    "data."
                )
        self.streams = {
            sign: Stream([lengths[i] for i in indices], size, seed_of(f"{seed}/{task}/{sign}"))
            for (sign, indices), size in zip(self.indices.items(), (1, batch_size - 1), strict=True)
        }

    def next(self) -> list[int]:
        """Indices of the next batch, the positive first."""
        return self.take(self.batch_size)

    def take(self, count: int) -> list[int]:
        """Indices of one positive and `count` - 1 negatives."""
        return self._some("positive", 1) + self._some("negative", count - 1)

    def restart(self) -> None:
        """Begin new passes."""
        for stream in self.streams.values():
            stream.restart()

    def state_dict(self) -> dict[str, Any]:
        """The state of both streams."""
        return {sign: stream.state_dict() for sign, stream in self.streams.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue both where the state was taken."""
        for sign, stream in self.streams.items():
            stream.load_state_dict(state[sign])

    def _some(self, sign: str, count: int) -> list[int]:
        return [self.indices[sign][i] for i in self.streams[sign].take(count)]


def bucketed(
    lengths: Sequence[int] | Tensor, batch_size: int, generator: torch.Generator
) -> list[list[int]]:
    """One pass: a random order, sorted by length within chunks, cut into batches, those shuffled.

    >>> batches = bucketed([9, 1, 8, 2], 2, torch.Generator().manual_seed(0))
    >>> sorted(sorted(batch) for batch in batches)
    [[0, 2], [1, 3]]
    """
    rows = torch.as_tensor(lengths)
    order = torch.randperm(len(rows), generator=generator)
    # One stable sort for all chunks: a chunk's number counts for more than any length. The chunks
    # are whole numbers of batches, so that cutting may start over at each chunk or run through.
    chunk = torch.arange(len(rows)) // (batch_size * CHUNK)
    key = chunk * (int(rows.max()) + 1) + rows[order]
    ordered = order[torch.sort(key, stable=True).indices].tolist()
    batches = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def seed_of(name: str) -> int:
    """A seed from a name, the same in every process, which hash() is not.

    >>> seed_of("0/sst") == seed_of("0/sst") != seed_of("1/sst")
    True
    """
    return zlib.crc32(name.encode())
