"""Gradients of growing batches from one stream of small ones, in the memory of a binary counter.

Equal blocks are added two by two: a block of level l + 1 is the sum of two consecutive blocks of
level l. When two blocks of a level meet they are halves, *left* and *right*, of the larger one,
independent of each other, and their dot products are all that is kept of them. At any moment there
is at most one block waiting per level, as one digit per place in a binary number.

Blocks of the highest level stay as vectors, so that every dot product between any two of them is
known. Larger batches are sums of those, and their dot products are sums of the blocks' ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vectors = list[list[Tensor]]  # [K][P]: the gradient of each task, one tensor per parameter
Array = NDArray[np.float64]


class Counter:
    """Adds blocks two by two.

    Args:
        top: the level of the blocks that `add` hands out, 2 ** top blocks of level 0 in each.
        meet: is given level, left and right, just before they are added.

    >>> met = []
    >>> counter = Counter(2, lambda level, left, right: met.append(level))
    >>> done = [counter.add([[torch.ones(1)]]) for _ in range(4)]
    >>> met, done[3], done[:3]
    ([0, 0, 1], [[tensor([4.])]], [None, None, None])
    """

    def __init__(self, top: int, meet: Callable[[int, Vectors, Vectors], None]) -> None:
        self.top, self.meet = top, meet
        self.waiting: dict[int, Vectors] = {}

    def add(self, block: Vectors) -> Vectors | None:
        """Add a block of level 0, whose tensors become the counter's own; the block of level `top`
        that it completes, if it does."""
        level = 0
        while level < self.top and level in self.waiting:
            left = self.waiting.pop(level)
            self.meet(level, left, block)
            for total, grads in zip(left, block, strict=True):
                torch._foreach_add_(total, grads)
            block, level = left, level + 1
        if level == self.top:
            return block
        self.waiting[level] = block
        return None


def upper_levels(gram: Array) -> list[Array]:
    """The dot products of left and right at every level from the kept blocks' up.

    Args:
        gram: [S, B, K, B, K], the dot products of B blocks (a power of two) of K tasks.

    Returns:
        Per level, [R, S, 2, K, 2, K]: R = B / 2, B / 4, .. 1 pairs of halves.

    >>> [level.shape[0] for level in upper_levels(np.zeros((1, 8, 2, 8, 2)))]
    [4, 2, 1]
    """
    levels = []
    while (blocks := gram.shape[1]) > 1:
        segments, tasks = gram.shape[0], gram.shape[2]
        halves = blocks // 2
        paired = gram.reshape(segments, halves, 2, tasks, halves, 2, tasks)
        pairs = np.arange(halves)
        levels.append(paired[:, pairs, :, :, pairs])  # [R, S, 2, K, 2, K]
        gram = paired.sum(axis=(2, 5))
    return levels
