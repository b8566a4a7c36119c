"""The two passes over the gradients in plain torch: every device and dtype, and what correct means.

    gram:      G[s, i, j] = sum over the parameters p of segment s of  g_i[p] . g_j[p]
    combine_:  g[p] <- sum_k w[s(p), k] g_k[p]        written into a gradient that is there

Both walk the tensors where autograd left them, in blocks that stay in cache while all K tasks use
them, so that each gradient is read from memory once.

Precision: one float32 dot product over tens of millions of elements is wrong in the third digit;
over 64K elements it is right to 1e-7 (1e-5 on bf16 and fp16 inputs), and the blocks are summed in
float64. bf16 and fp16 are widened to float32 block by block, and rounded once on the way back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradsurgery.kernels.walk import blocks, real, side_by_side

#: ``grads[k][p]``: the gradient of task k for parameter p, None where there is none.
Gradients = Sequence[Sequence[Tensor | None]]

#: A float32 sum of squares outside this range may have lost terms to underflow or overflow.
SAFE = (1e-30, 1e37)

#: Elements per block on the CPU. A dot product is kept short for float32's sake; a combination may
#: take what still fits into the cache for a few tasks together.
DOT_BLOCK = 1 << 16
MIX_BLOCK = 1 << 18


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
    walked = [_walked(column) for column in zip(*grads, strict=True)]
    each = _dots(walked, tasks, torch.float32)
    for p in _doubtful(each, walked):
        each[p] = _dots([walked[p]], tasks, torch.float64)[0]
    result = torch.zeros(count, tasks, tasks, dtype=torch.float64, device=each.device)
    result.index_add_(0, torch.tensor(segments, dtype=torch.int64, device=each.device), each)
    result = result + result.mT  # what lies below the diagonal was zero
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


def _walked(column: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """Return one parameter's gradients by task, flat ([N]), all walked in the same order."""
    present = {k: grad for k, grad in enumerate(column) if grad is not None}
    flat = side_by_side(list(present.values()))
    if flat is None:
        flat = [real(grad).reshape(-1) for grad in present.values()]
    return dict(zip(present, flat, strict=True))


def _dots(walked: Sequence[Mapping[int, Tensor]], tasks: int, least: torch.dtype) -> Tensor:
    """Return each parameter's dot products of the tasks i <= j, ``[P, K, K]`` float64.

    Taken block by block, in ``least`` or the gradients' own wider dtype, and summed in float64.
    """
    dots: list[Tensor] = []
    cells: list[int] = []
    for p, column in enumerate(walked):
        dtype = torch.promote_types(next(iter(column.values())).dtype, least) if column else least
        present = list(column)
        pairs = [(p * tasks + i) * tasks + j for a, i in enumerate(present) for j in present[a:]]
        for block in zip(
            *(blocks(flat, _block(flat, DOT_BLOCK)) for flat in column.values()), strict=True
        ):
            wide = [piece.to(dtype) for piece in block]
            dots += [torch.dot(a, b) for i, a in enumerate(wide) for b in wide[i:]]
            cells += pairs
    shape = (len(walked), tasks, tasks)
    if not dots:
        return torch.zeros(shape, dtype=torch.float64)
    values = torch.stack(dots if len({d.dtype for d in dots}) == 1 else [d.double() for d in dots])
    flat_sums = torch.zeros(shape, dtype=torch.float64, device=values.device).view(-1)
    flat_sums.index_add_(0, torch.tensor(cells, device=values.device), values.double())
    return flat_sums.view(shape)


def _doubtful(each: Tensor, walked: Sequence[Mapping[int, Tensor]]) -> list[int]:
    """Return the parameters with a sum of squares in float32 that may have lost terms."""
    square = each.diagonal(dim1=-2, dim2=-1)
    outside = ~((square > SAFE[0]) & (square < SAFE[1]))
    return [
        p
        for p, tasks in enumerate(outside.tolist())
        if any(tasks[k] and flat.dtype != torch.float64 for k, flat in walked[p].items())
    ]


def _mix_(tensors: list[Tensor], weights: list[float]) -> None:
    """Write the weighted sum of ``tensors`` into the first."""
    walked = side_by_side(tensors)
    if walked is None:  # strides differ: elementwise operations walk those, at some cost in speed
        return _mix_block_(tensors, weights)
    for block in zip(*(blocks(flat, _block(flat, MIX_BLOCK)) for flat in walked), strict=True):
        _mix_block_(block, weights)
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


def _block(tensor: Tensor, cpu: int) -> int:
    """Elements per block: ``cpu`` there; elsewhere each block is a launch, so they are larger."""
    return cpu if tensor.device.type == "cpu" else 1 << 22
