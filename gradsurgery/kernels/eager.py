"""The two passes over the gradients in plain torch: every device and dtype, and what correct means.

    gram:      G[s, i, j] = sum over the parameters p of segment s of  g_i[p] . g_j[p]
    combine_:  g[p] <- sum_k w[s(p), k] g_k[p]        written into a gradient that is there

Both walk the tensors where autograd left them, in blocks that stay in cache while all K tasks use
them, so each gradient is read from memory once.

Precision: one float32 dot product over tens of millions of elements is wrong in the third digit;
over 64K elements it is right to 1e-7 (1e-5 on bf16 and fp16 inputs), and the blocks are summed in
float64. bf16 and fp16 are widened to float32 block by block, and rounded once on the way back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradsurgery.kernels.walk import blocks, real, side_by_side

#: ``grads[k][p]``: the gradient of task k for parameter p, None where there is none.
Gradients = Sequence[Sequence[Tensor | None]]

#: A float32 sum of squares outside this range may have lost terms to underflow or overflow.
SAFE = (1e-30, 1e37)


@torch.no_grad()
def gram(grads: Gradients, segments: Sequence[int], count: int) -> Tensor:
    """Return the Gram matrix of K tasks' gradients, once per segment.

    Args:
        grads: ``[K][P]`` tensors or None; those of one p have one shape, dtype and device.
        segments: P integers in ``range(count)``: the segment of each parameter.
        count: the number of segments S.

    Returns:
        ``[S, K, K]`` float64 on the gradients' device (the CPU where there is none). Rows and
        columns of absent gradients are zero. Non-finite gradients give non-finite entries; finite
        float32 ones never do, whatever their scale.
    """
    tasks = len(grads)
    sums, cells = [], []  # type: list[Tensor], list[tuple[int, int, int]]
    for segment, column in zip(segments, zip(*grads, strict=True), strict=True):
        present = [k for k in range(tasks) if column[k] is not None]
        if present:
            sums.append(_dots([g for g in column if g is not None]))
            cells += [(segment, i, j) for a, i in enumerate(present) for j in present[a:]]
    if not sums:
        return torch.zeros(count, tasks, tasks, dtype=torch.float64)
    values = torch.cat(sums)
    result = torch.zeros(count, tasks, tasks, dtype=torch.float64, device=values.device)
    where = torch.tensor(cells, device=values.device).unbind(-1)
    result.index_put_(where, values, accumulate=True)
    result = result + result.mT  # the lower half was zero
    result.diagonal(dim1=-2, dim2=-1).div_(2)
    return result


@torch.no_grad()
def combine_(grads: Gradients, weights: Tensor, segments: Sequence[int]) -> list[Tensor | None]:
    """Combine the tasks' gradients of each parameter, in place.

    Args:
        grads: as in :func:`gram`. The first gradient present of each parameter is overwritten; it
            has to own each of its elements (no expanded tensor), as what autograd leaves does.
        weights: ``[S, K]``.
        segments: the segment of each parameter.

    Returns:
        P tensors, each the overwritten one of ``grads``, or None where no task has a gradient.
    """
    factors = weights.tolist()
    combined: list[Tensor | None] = []
    for segment, column in zip(segments, zip(*grads, strict=True), strict=True):
        present = [(g, w) for g, w in zip(column, factors[segment], strict=True) if g is not None]
        if present:
            _mix_([g for g, _ in present], [w for _, w in present])
        combined.append(present[0][0] if present else None)
    return combined


def _dots(tensors: list[Tensor]) -> Tensor:
    """Return the dot products of the pairs (i <= j) of one parameter's gradients, float64."""
    walked = side_by_side(tensors) or [real(t).reshape(-1) for t in tensors]
    dots = _sum_blocks(walked, torch.float32)
    if walked[0].dtype != torch.float64:
        square = dots[_diagonal(len(tensors))]
        if not bool(((square > SAFE[0]) & (square < SAFE[1])).all()):
            return _sum_blocks(walked, torch.float64)
    return dots


def _sum_blocks(walked: list[Tensor], least: torch.dtype) -> Tensor:
    """Dot products by block, in ``least`` or the tensors' own wider dtype, summed in float64."""
    dtype = torch.promote_types(walked[0].dtype, least)
    dots = []
    for together in zip(*(blocks(flat, _block(flat)) for flat in walked), strict=True):
        wide = [block.to(dtype) for block in together]
        dots += [torch.dot(a, b) for i, a in enumerate(wide) for b in wide[i:]]
    pairs = len(walked) * (len(walked) + 1) // 2
    return torch.stack(dots).view(-1, pairs).double().sum(0)


def _diagonal(tasks: int) -> list[int]:
    """Positions of the pairs (i, i) among the pairs (i <= j), row by row."""
    return [i * tasks - i * (i - 1) // 2 for i in range(tasks)]


def _mix_(tensors: list[Tensor], weights: list[float]) -> None:
    """Write the weighted sum of ``tensors`` into the first."""
    walked = side_by_side(tensors)
    if walked is None:  # strides differ: elementwise operations walk those, at some cost in speed
        return _mix_block_(tensors, weights)
    for together in zip(*(blocks(flat, _block(flat)) for flat in walked), strict=True):
        _mix_block_(together, weights)
    return None


def _mix_block_(block: Sequence[Tensor], weights: list[float]) -> None:
    """The weighted sum of one block, accumulated in float32 or wider, rounded once."""
    first = block[0]
    total = first.to(torch.promote_types(first.dtype, torch.float32))
    if weights[0] != 1:
        total.mul_(weights[0])
    for other, weight in zip(block[1:], weights[1:], strict=True):
        total.add_(other, alpha=weight)
    if total is not first:
        first.copy_(total)


def _block(tensor: Tensor) -> int:
    """Elements per block: on the CPU three fit in a core's cache; elsewhere launches cost."""
    return 1 << 16 if tensor.device.type == "cpu" else 1 << 22
