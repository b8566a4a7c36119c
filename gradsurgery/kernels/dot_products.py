"""Pairwise dot products of K vectors in plain torch.

Up to ``FEW`` vectors are multiplied pair by pair with ``torch.dot``, 64K elements at a time; more
are laid side by side in a panel that is multiplied with its transpose, 4K elements at a time.
float32 adds up along those lengths, so both are right to 1e-7 on usual data, and to 2e-5 on the
worst, equal elements.

Sizes were measured on two cores (docs/log.md). Fresh memory costs the CPU several times what a warm
copy does, hence one scratch for all blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

#: Up to this many vectors go pair by pair, which also gives equal vectors equal products.
FEW = 8

#: Elements of a vector per block, for a few; of all vectors together, for many.
BLOCK = 1 << 16
PANEL = 1 << 20
DEPTH = 1 << 12

#: Elsewhere than on the CPU every block is several launches, so there are few of them.
LAUNCH = 1 << 22


class Products:
    """Dot products in float64 of vectors that are multiplied in ``dtype``.

    Example:
        >>> products = Products(2, torch.float32, torch.device("cpu"))
        >>> products([[torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]]).tolist()
        [[5.0, 11.0], [11.0, 25.0]]
    """

    def __init__(self, tasks: int, dtype: torch.dtype, device: torch.device) -> None:
        self._tasks, self._dtype, self._device = tasks, dtype, device
        self._paired = tasks <= FEW
        self._memory = torch.empty(0, dtype=dtype, device=device)
        self.block = BLOCK if self._paired else max(PANEL // tasks // DEPTH * DEPTH, DEPTH)
        if device.type != "cpu":
            self.block = LAUNCH

    def __call__(self, runs: Iterable[Sequence[Tensor]]) -> Tensor:
        """Return ``[K, K]`` float64, summed over runs of K vectors each ([N], any N)."""
        measure = self._pairs if self._paired else self._panel
        parts = [part for run in runs for block in self._blocks(run) for part in measure(block)]
        if not parts:  # no element at all
            shape = self._tasks, self._tasks
            return torch.zeros(shape, dtype=torch.float64, device=self._device)
        total = torch.stack(parts).double().sum(0)
        if self._paired:
            return total[_unpacked(self._tasks, self._device)]
        return (total + total.mT) / 2  # rounding may not make the matrix lopsided

    def _blocks(self, run: Sequence[Tensor]) -> Iterable[Sequence[Tensor]]:
        """Cut the vectors together into blocks, all of nearly one length."""
        length = len(run[0])
        if length <= self.block:
            return [run]
        count = -(-length // self.block)
        return zip(*(torch.chunk(vector, count) for vector in run), strict=True)

    def _pairs(self, block: Sequence[Tensor]) -> list[Tensor]:
        """Return the products i <= j, ``[K (K + 1) / 2]``."""
        if block[0].dtype != self._dtype:
            wide = self._scratch(len(block[0]))
            block = [row.copy_(piece) for row, piece in zip(wide, block, strict=True)]
            return self._pairs(block)
        return [torch.stack([torch.dot(a, b) for i, a in enumerate(block) for b in block[i:]])]

    def _panel(self, block: Sequence[Tensor]) -> list[Tensor]:
        """Return all products, ``[K, K]``, of each of the panel's stretches."""
        length = len(block[0])
        panel = self._scratch(length)
        for row, piece in zip(panel, block, strict=True):
            row.copy_(piece)
        even = length - length % DEPTH
        parts: list[Tensor] = []
        if even:
            deep = panel[:, :even].view(self._tasks, -1, DEPTH).transpose(0, 1)
            parts += torch.bmm(deep, deep.mT).unbind(0)
        if even < length:
            rest = panel[:, even:]
            parts.append(rest @ rest.mT)
        return parts

    def _scratch(self, length: int) -> Tensor:
        """Return ``[K, length]``, whatever it holds."""
        if self._memory.numel() < self._tasks * length:
            self._memory = torch.empty(self._tasks * length, dtype=self._dtype, device=self._device)
        return self._memory[: self._tasks * length].view(self._tasks, length)


@functools.cache
def _unpacked(tasks: int, device: torch.device) -> Tensor:
    """Return for each cell ([K, K]) where its product stands in (0, 0), (0, 1), .., (1, 1), .."""
    numbers = torch.arange(tasks, device="cpu")
    i, j = torch.meshgrid(numbers, numbers, indexing="ij")
    low, high = torch.minimum(i, j), torch.maximum(i, j)
    return (low * tasks - low * (low - 1) // 2 + high - low).to(device)
