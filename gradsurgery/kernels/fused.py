"""The two passes as Triton kernels: one launch each over all tensors, without a copy of any.

    gram:      partial[c, i, j] = sum_{e in chunk c} g_i[e] g_j[e]           (one program per chunk)
               G[s, i, j]       = sum_{c in segment s} partial[c, i, j]      (in float64)
    combine_:  g[e] <- sum_k w[s, k] g_k[e]                                  (one program per chunk)

Each chunk of K gradients is read once. Partial sums have a place of their own each and are added in
a fixed order: no atomics, the same bits every time. Up to ``FEW`` tasks the products are taken lane
by lane in float32, a few dozen terms to a lane; more tasks go through the matrix units, float32 as
three tf32 products (which restores its precision), 64 elements at a time before float64 takes over.
A chunk whose sum of squares may have left float32's range is taken again in float64 on the spot, so
that nobody has to wait for the host to look.

Needs triton, on a GPU or with ``TRITON_INTERPRET=1``; :mod:`gradsurgery.kernels.eager` is the
definition of correct.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradsurgery.kernels import eager, triton_kernels
from gradsurgery.kernels.address_tables import Table, tables, walked_as_they_are
from gradsurgery.kernels.layout import Column, Columns, side_by_side
from gradsurgery.transfer import to_device

#: Up to this many tasks each pair of rows is multiplied by itself; beyond, matrices are.
FEW = 8

TYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@torch.no_grad()
def gram(columns: Columns, segments: Sequence[int], count: int, tasks: int) -> Tensor:
    """Return ``[S, K, K]`` float64, see :func:`gradsurgery.kernels.eager.gram`."""
    addressed = tables(columns, segments, count)
    if not addressed:
        return eager.gram(columns, segments, count, tasks)
    device = addressed[0].addresses.device
    result = torch.zeros(count, tasks, tasks, dtype=torch.float64, device=device)
    for table in addressed:
        _add_gram(table, result)
    return result


@torch.no_grad()
def combine_(columns: Columns, weights: Tensor, segments: Sequence[int]) -> list[Tensor | None]:
    """Combine in place, see :func:`gradsurgery.kernels.eager.combine_`.

    ``weights`` ([S, K]) stay on their device, which is the gradients'.
    """
    stubborn: list[int] = []
    if not walked_as_they_are([grad for column in columns for grad in column if grad is not None]):
        stubborn = [p for p, column in enumerate(columns) if not _fits(column)]
    for p in stubborn:
        _combine_alone_(columns[p], weights[segments[p]])
    rest = [p for p in range(len(columns)) if p not in stubborn]
    for table in tables([columns[p] for p in rest], [segments[p] for p in rest], len(weights)):
        _add_up(table, weights.to(table.addresses.device, torch.float64).contiguous())
    return [next((grad for grad in column if grad is not None), None) for column in columns]


def _fits(column: Column) -> bool:
    """Whether the gradients can be written where they lie."""
    return side_by_side([grad for grad in column if grad is not None]) is not None


def _combine_alone_(column: Column, weights: Tensor) -> None:
    """The weighted sum of gradients whose strides differ, by elementwise operations."""
    present = [(grad, k) for k, grad in enumerate(column) if grad is not None]
    if not present:
        return
    first = present[0][0]
    wide = torch.promote_types(first.dtype, torch.float64)
    factors = weights.to(first.device, torch.float64)
    total = torch.stack([grad.to(wide) * factors[k].to(wide) for grad, k in present]).sum(0)
    first.copy_(total)


def _add_gram(table: Table, result: Tensor) -> None:
    """Add one table's products to ``result``."""
    tasks, parameters = table.addresses.shape
    chunks = len(table.chunks)
    few = tasks <= FEW
    pairs = tasks * (tasks + 1) // 2
    width = pairs if few else tasks * tasks
    partial = torch.empty(chunks, width, dtype=torch.float64, device=result.device)
    with _on(result.device):
        arguments = (table.addresses, table.chunks, partial, parameters)
        meaning = {"K": tasks, "DTYPE": TYPES[table.dtype], "ALIGNED": table.aligned}
        if few:
            triton_kernels.pairs[(chunks,)](*arguments, **meaning, **_small(tasks))
        else:
            triton_kernels.panel[(chunks,)](*arguments, **meaning, **_large(tasks))
        block = min(32, triton.next_power_of_2(pairs))
        triton_kernels.reduce[(len(result), triton.cdiv(pairs, block))](
            partial,
            table.first,
            _cells(tasks, few, result.device),
            result,
            WIDTH=width,
            PAIRS=pairs,
            K=tasks,
            BLOCK=block,
            ROWS=8192 // block,
            num_warps=8,
        )


def _add_up(table: Table, weights: Tensor) -> None:
    tasks, parameters = table.addresses.shape
    with _on(weights.device):
        triton_kernels.combine[(len(table.chunks),)](
            table.addresses,
            table.chunks,
            weights,
            parameters,
            K=tasks,
            DTYPE=TYPES[table.dtype],
            ALIGNED=table.aligned,
            BLOCK=_lane_block(table.dtype),
            num_warps=4,
        )


def _on(device: torch.device) -> torch.cuda.device:
    """Triton launches on the current device."""
    return torch.cuda.device(device if device.type == "cuda" else -1)


def _lane_block(dtype: torch.dtype) -> int:
    """Elements per turn such that each of 128 threads makes two 16-byte loads."""
    return 128 * 2 * 16 // dtype.itemsize


def _small(tasks: int) -> dict[str, int]:
    """Block and warps for the pairs: K (K + 1) / 2 sums per lane have to stay in registers."""
    return {"BLOCK": 1024 if tasks <= 4 else 256, "num_warps": 4}


def _large(tasks: int) -> dict[str, int]:
    rows = max(16, triton.next_power_of_2(tasks))
    return {"ROWS": rows, "BLOCK": 64, "num_warps": 8 if rows == 64 else 4}


@functools.lru_cache(maxsize=64)
def _cells(tasks: int, few: bool, device: torch.device) -> Tensor:
    """Return ``[3, PAIRS]`` int32: where a pair's partial stands in its row, i, and j."""
    i, j = torch.triu_indices(tasks, tasks, device="cpu")
    where = torch.arange(len(i), device="cpu") if few else i * tasks + j
    return to_device(torch.stack([where, i, j]).to(torch.int32), device)
