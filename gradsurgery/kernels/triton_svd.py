"""Singular values and left singular vectors of small matrices as one Triton launch.

One-sided Jacobi (Hestenes 1958), a program for each matrix, in float64. The rows of [A | 1] are
rotated in pairs until those of the left half are orthogonal:

    [A | 1]  ->  [Q A | Q],   Q A = diag(s) V',   A = Q' diag(s) V'

so s are the lengths of the rows on the left, and the rows of Q the left singular vectors. Each is
as exact as its own row is, also where the rows of A are of very different length.

torch's decompositions wait for the device to look whether they have converged. Here the number of
sweeps is fixed. A sweep rotates each pair of rows once: row i meets row i xor d, for d = 1, 2, ...,
which is all rows at once. The longer row of a pair goes to the front, which also sorts the values:
without it, singular matrices take many more sweeps (de Rijk 1989). Tiles are padded to a power of
two; padded rows are zero on the left, which no rotation changes.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradsurgery.kernels.fused import _on


def left_svd(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Decompose each matrix.

    Args:
        matrix: ``[S, K, K]`` float64, finite.

    Returns:
        Singular values ``[S, K]``, descending, and left singular vectors as columns, ``[S, K, K]``.
    """
    segments, tasks, _ = matrix.shape
    matrix = matrix.contiguous()
    sizes = torch.empty(segments, tasks, dtype=torch.float64, device=matrix.device)
    vectors = torch.empty_like(matrix)
    with _on(matrix.device):
        _jacobi_kernel[(segments,)](
            matrix, sizes, vectors, K=tasks, **_shape(tasks), enable_fp_fusion=False
        )
    return sizes, vectors


def _shape(tasks: int) -> dict[str, int]:
    """Return the tile's rows, sweeps (a third more than ever seemed to be needed), and warps."""
    rows = max(2, triton.next_power_of_2(tasks))
    sweeps = 3 * (rows.bit_length() - 1)
    return {"ROWS": rows, "SWEEPS": sweeps, "num_warps": {16: 2, 32: 4, 64: 16}.get(rows, 1)}


@triton.jit
def _jacobi_kernel(
    matrix, sizes, vectors, K: tl.constexpr, ROWS: tl.constexpr, SWEEPS: tl.constexpr
):
    """All sweeps of one matrix."""
    start = tl.program_id(0).to(tl.int64) * K * K
    i = tl.arange(0, ROWS)
    row = i[:, None]
    column = tl.arange(0, 2 * ROWS)[None, :]
    left = column < ROWS
    inside = (row < K) & (column < K)
    identity = (column - ROWS == row).to(tl.float64)
    tile = tl.load(matrix + start + row * K + column, mask=inside, other=0.0)
    tile = tl.where(left, tile, identity)
    for turn in range(SWEEPS * (ROWS - 1)):
        partner = i ^ (turn % (ROWS - 1) + 1)
        other = tl.gather(tile, tl.broadcast_to(partner[:, None], (ROWS, 2 * ROWS)), 0)
        square = tl.sum(tl.where(left, tile * tile, 0.0), axis=1)
        theirs = tl.gather(square, partner, 0)  # to the bit what they have: a swap takes both
        dot = tl.sum(tl.where(left, tile * other, 0.0), axis=1)
        # The rows of a pair each compute the angle, of opposite sign.
        rotates = tl.abs(dot) > tl.sqrt(square) * tl.sqrt(theirs) * (2.0**-53)
        double = (theirs - square) / tl.where(rotates, 2 * dot, 1.0)  # cotangent of twice the angle
        positive = (double > 0) | ((double == 0) & (i < partner))
        tangent = 1 / (tl.abs(double) + tl.sqrt(1 + double * double))
        tangent = tl.where(rotates, tl.where(positive, tangent, -tangent), 0.0)
        cosine = 1 / tl.sqrt(1 + tangent * tangent)
        swaps = ((i < partner) & (square < theirs)) | ((i > partner) & (square > theirs))
        own = tl.where(swaps, tangent, 1.0) * cosine
        added = tl.where(swaps, 1.0, -tangent) * cosine
        tile = own[:, None] * tile + added[:, None] * other
    square = tl.sum(tl.where(left, tile * tile, 0.0), axis=1)
    tl.store(sizes + start // K + i, tl.sqrt(square), mask=i < K)
    task = column - ROWS
    turned = vectors + start + task * K + row  # a row of Q is a column
    tl.store(turned, tile, mask=(row < K) & (task >= 0) & (task < K))
