"""The probe: dot products of all tasks' gradients at effective batch sizes of 8, 16, .. thousands.

The model stands still, in training mode. Micro-batches are added up by a binary counter; whenever
two halves meet, their dot products are kept per layer, and nothing else is. That is enough for
cosines between tasks at each batch size, for their noise floor (two halves of one task), for the
expected gradients, and for what surgery would do: see `estimate`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsurgery import functional
from research.conflicts.counter import Counter, Vectors
from research.conflicts.gradients import Sampler


def probe(
    sampler: Sampler, *, batches: int, blocks: int, scales: Sequence[Tensor] | None = None
) -> dict[str, Any]:
    """Draw `batches` micro-batches of every task and keep their dot products.

    Args:
        sampler: where gradients come from.
        batches: a power of two.
        blocks: a power of two up to that; so many sums are kept as vectors at the end.
        scales: factors of the gradients, one tensor a parameter, that give their products in
            another metric (`metrics`).

    Returns:
        tasks, segments, batch_size, and

        * levels: per level below the blocks, [R][S] rows of `packed` 2K x 2K products, of left
          (first K) and right, as sums over 2 ** level micro-batches each;
        * blocks: count, and [S] rows of `packed` BK x BK products, block by block;
        * adam: the same rows of the scaled gradients; None without scales.
    """
    top = (batches // blocks).bit_length() - 1
    levels: list[list[list[list[float]]]] = [[] for _ in range(top)]

    def meet(level: int, left: Vectors, right: Vectors) -> None:
        gram = functional.gram([*left, *right], sampler.segment_of)
        levels[level].append([packed(segment) for segment in gram])

    counter = Counter(top, meet)
    kept: Vectors = []  # [BK][P]
    for _ in range(batches):
        block = counter.add(sampler.draw())
        if block is not None:
            kept += block
    gram, scaled = functional.gram(kept, sampler.segment_of), None
    if scales is not None:
        for vector in kept:
            torch._foreach_mul_(vector, list(scales))
        scaled = [packed(segment) for segment in functional.gram(kept, sampler.segment_of)]
    return {
        "tasks": sampler.tasks,
        "segments": sampler.segments,
        "batch_size": sampler.material.config.batch_size,
        "batches": batches,
        "levels": levels,
        "blocks": {"count": blocks, "gram": [packed(segment) for segment in gram]},
        "adam": scaled,
    }


def probe_model(
    sampler: Sampler,
    *,
    batches: int,
    blocks: int,
    seed: int,
    scales: Sequence[Tensor] | None = None,
) -> dict[str, Any]:
    """The same with the model in training mode and dropout of its own seed."""
    sampler.material.model.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return probe(sampler, batches=batches, blocks=blocks, scales=scales)


def seed_of(seed: int, stage: str) -> int:
    """The seed of a stage: fresh examples at each.

    >>> seed_of(0, "halfway") == seed_of(0, "after training")
    False
    """
    return zlib.crc32(f"probe/{seed}/{stage}".encode())


def packed(gram: Tensor) -> list[float]:
    """The upper triangle of a symmetric matrix, row by row, to eight digits.

    >>> packed(torch.tensor([[1.0, 2.0], [2.0, 4.0]]))
    [1.0, 2.0, 4.0]
    """
    rows, columns = torch.triu_indices(*gram.shape).unbind()
    return [float(f"{value:.8g}") for value in gram.cpu()[rows, columns].tolist()]


def unpacked(rows: Any, size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[..., size, size] from [..., size (size + 1) / 2].

    >>> unpacked([1.0, 2.0, 4.0], 2).tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """
    values = np.asarray(rows, dtype=np.float64)
    gram = np.zeros((*values.shape[:-1], size, size))
    upper = np.triu_indices(size)
    gram[..., upper[0], upper[1]] = values
    gram[..., upper[1], upper[0]] = values
    return gram
