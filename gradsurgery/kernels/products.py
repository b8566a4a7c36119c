"""The dot products of K vectors with each other, a block at a time, in scratch memory that stays.

Three ways. A few float32 vectors on the CPU go to :mod:`gradsurgery.kernels.native`, where it can
be compiled. A few others are multiplied pair by pair with ``torch.dot``, 64K elements at a time.
Many are laid side by side in a panel that is multiplied with its transpose, 4K elements at a time.
float32 adds up along those lengths, so the result is right to 1e-7 on usual data, and to 2e-5 on
the worst, equal elements.

Sizes were measured on two cores (docs/log.md). Fresh memory costs the CPU several times what a warm
copy does, hence one scratch for all blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gradsurgery.kernels import native

#: Up to this many vectors go pair by pair, which also gives equal vectors equal products.
FEW = native.MOST_TASKS

#: Elements of a vector per block, for a few; of all vectors together, for many.
BLOCK = 1 << 16
PANEL = 1 << 20
DEPTH = 1 << 12

#: Elsewhere than on the CPU every block is several launches, so there are few of them.
LAUNCH = 1 << 22


class Products:
    """Dot products in float64 of blocks that are multiplied in ``dtype``.

    Example:
        >>> products = Products(2, torch.float32, torch.device("cpu"))
        >>> products([[torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]]).tolist()
        [[5.0, 11.0], [11.0, 25.0]]
    """

    def __init__(self, tasks: int, dtype: torch.dtype, device: torch.device) -> None:
        self._tasks, self._dtype, self._device = tasks, dtype, device
        self._few = tasks <= FEW
        wanted = self._few and dtype == torch.float32 and device.type == "cpu"
        self._native = wanted and native.available()
        self._memory = torch.empty(0, dtype=dtype, device=device)
        self.block = max(BLOCK if self._few else PANEL // tasks // DEPTH * DEPTH, DEPTH)
        if device.type != "cpu":
            self.block = LAUNCH

    def __call__(self, runs: Iterable[Sequence[Tensor]]) -> Tensor:
        """Return ``[K, K]`` float64, summed over runs of K vectors each ([N], any N)."""
        measure = self._pairs if self._few else self._panel
        found = [part for run in runs for block in self._blocks(run) for part in measure(block)]
        total = torch.stack(found).double().sum(0)
        if self._few:
            return total[_PACKED[self._tasks].to(self._device)]
        # Rounding may not make the matrix lopsided.
        return (total + total.mT) / 2

    def _blocks(self, run: Sequence[Tensor]) -> Iterable[Sequence[Tensor]]:
        """Cut the vectors together into blocks, all of nearly one length."""
        length = len(run[0])
        whole = self._native and run[0].dtype == self._dtype  # no scratch, and cut there
        if whole or length <= self.block:
            return [run]
        count = -(-length // self.block)
        return zip(*(torch.chunk(vector, count) for vector in run), strict=True)

    def _pairs(self, block: Sequence[Tensor]) -> list[Tensor]:
        """Return the products i <= j, ``[K (K + 1) / 2]``."""
        if block[0].dtype != self._dtype:
            wide = self._scratch(self._tasks, len(block[0]))
            block = [row.copy_(piece) for row, piece in zip(wide, block, strict=True)]
        if self._native:
            return [native.products(block)]
        return [torch.stack([torch.dot(a, b) for i, a in enumerate(block) for b in block[i:]])]

    def _panel(self, block: Sequence[Tensor]) -> list[Tensor]:
        """Return all products, ``[K, K]``, of each of the panel's stretches."""
        length = len(block[0])
        panel = self._scratch(self._tasks, length)
        for row, piece in zip(panel, block, strict=True):
            row.copy_(piece)
        whole = length - length % DEPTH
        found: list[Tensor] = []
        if whole:
            deep = panel[:, :whole].view(self._tasks, -1, DEPTH).transpose(0, 1)
            found += torch.bmm(deep, deep.mT).unbind(0)
        if whole < length:
            rest = panel[:, whole:]
            found.append(rest @ rest.mT)
        return found

    def _scratch(self, rows: int, length: int) -> Tensor:
        if self._memory.numel() < rows * length:
            self._memory = torch.empty(rows * length, dtype=self._dtype, device=self._device)
        return self._memory[: rows * length].view(rows, length)


def _packed(tasks: int) -> Tensor:
    """Return for each cell ([K, K]) where its product stands in (0, 0), (0, 1), .., (1, 1), .."""
    cells = torch.empty(tasks, tasks, dtype=torch.int64)
    for number, (i, j) in enumerate(torch.triu_indices(tasks, tasks).T.tolist()):
        cells[i, j] = cells[j, i] = number
    return cells


_PACKED = [_packed(tasks) for tasks in range(FEW + 1)]
