"""The two passes over the gradients in plain torch: every device and dtype, and what correct means.

    gram:      G[s, i, j] = sum over the parameters p of segment s of  g_i[p] . g_j[p]
    combine_:  g[p] <- sum_k w[s(p), k] g_k[p]        written into a gradient that is there

Both walk the tensors where autograd left them, in blocks that stay in cache while all K tasks use
them, so that each gradient is read from memory once. Small tensors are taken many at a time.

bf16 and fp16 are widened to float32 block by block, and rounded once on the way back. Where a
weight is beyond float32's range, as that of a gradient of subnormal numbers can be, the sum is in
float64. A device without float64 sends sums to the host, see :mod:`gradsurgery.kernels.narrow`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradsurgery.kernels import narrow
from gradsurgery.kernels.dot_products import Products
from gradsurgery.kernels.layout import Columns, Group, blocks, groups, runs, side_by_side
from gradsurgery.transfer import float64_device

#: A float32 sum of squares outside this range may have lost terms to underflow or overflow.
SAFE = (1e-22, 1e37)

#: Weights of a size within these, and 0, are applied in float32: with them a product leaves its
#: range only where the result does.
ORDINARY = (2.0**-100, 2.0**100)

#: Tensors up to this size are taken together: a call costs what some thousand elements do.
SMALL = 1 << 13

#: Elements per block of a combination on the CPU: what is added up stays in cache.
MIX_BLOCK = 1 << 20

#: The same for bf16 and fp16, which need as many float32 beside them.
HALF_BLOCK = 1 << 18


@torch.no_grad()
def gram(columns: Columns, segments: Sequence[int], count: int, tasks: int) -> Tensor:
    """Return the Gram matrix of K tasks' gradients, once per segment.

    Args:
        columns: ``[P][K]`` tensors or None; those of one p have one shape, dtype and device.
        segments: P integers in ``range(count)``: the segment of each parameter.
        count: the number of segments S.
        tasks: the number of tasks K.

    Returns:
        ``[S, K, K]`` float64 on the gradients' device (the CPU where there is none, or no float64
        on it). Rows and
        columns of absent gradients are zero. Non-finite gradients give non-finite entries; finite
        float32 ones never do, whatever their scale.
    """
    vectors = groups(columns, segments)
    shape = (count, tasks, tasks)
    if not vectors:
        return torch.zeros(shape, dtype=torch.float64, device="cpu")
    dots = _measured(vectors)
    values = torch.cat([d.flatten() for d in dots])
    cells = [
        (group.segment * tasks + i) * tasks + j
        for group in vectors
        for i in group.tasks
        for j in group.tasks
    ]
    result = torch.zeros(shape, dtype=torch.float64, device=values.device)
    places = torch.tensor(cells, dtype=torch.int64, device=values.device)
    result.view(-1).index_add_(0, places, values)
    return result


@torch.no_grad()
def combine_(columns: Columns, weights: Tensor, segments: Sequence[int]) -> list[Tensor | None]:
    """Combine the tasks' gradients of each parameter, in place.

    Args:
        columns: as in :func:`gram`. The first gradient present of each parameter is overwritten; it
            has to own each of its elements (no expanded tensor), as what autograd leaves does.
        weights: ``[S, K]`` float64, finite, of any size. They are applied in float32 or wider, such
            that a sum that the gradients' dtype can hold is right however large or small they are.
        segments: the segment of each parameter.

    Returns:
        P tensors, each the overwritten one of its column, or None where no task has a gradient. A
        sum that their dtype cannot hold is infinite, as it is without surgery.
    """
    factors = weights.tolist()
    extreme = _extreme(weights)
    combined: list[Tensor | None] = []
    together: dict[tuple[float, ...], list[list[Tensor]]] = {}
    for segment, column in zip(segments, columns, strict=True):
        present = [(g, w) for g, w in zip(column, factors[segment], strict=True) if g is not None]
        combined.append(present[0][0] if present else None)
        if present:
            tensors, mixture = [g for g, _ in present], tuple(w for _, w in present)
            if extreme[segment]:
                _mix_wide_(tensors, mixture)
            elif _together(tensors[0]):
                together.setdefault(mixture, []).append(tensors)
            else:
                _mix_(tensors, mixture)
    for mixture, many in together.items():
        _mix_many_(many, mixture)
    return combined


def _extreme(weights: Tensor) -> list[bool]:
    """Return for each segment whether some weight is too large or too small for float32."""
    size = weights.abs()
    ordinary = ((size >= ORDINARY[0]) & (size <= ORDINARY[1])) | (size == 0)
    extreme: list[bool] = (~ordinary).any(-1).tolist()
    return extreme


def _measured(vectors: Sequence[Group]) -> list[Tensor]:
    """Return the dot products of each group's k tasks, ``[k, k]`` float64."""
    device = vectors[0].columns[0][0].device
    if float64_device(device) != device:
        return narrow.dots(vectors, SAFE)
    dots = _dots(vectors, torch.float32)
    doubtful = _doubtful(vectors, dots)
    for number, again in zip(
        doubtful, _dots([vectors[n] for n in doubtful], torch.float64), strict=True
    ):
        dots[number] = again
    return dots


def _dots(vectors: Sequence[Group], least: torch.dtype) -> list[Tensor]:
    """Return the dot products of each group's k tasks, ``[k, k]`` float64.

    Multiplied in ``least`` or the gradients' own wider dtype.
    """
    meters: dict[tuple[int, torch.dtype], Products] = {}
    dots = []
    for group in vectors:
        dtype = torch.promote_types(group.dtype, least)
        key = (len(group.tasks), dtype)
        if key not in meters:
            meters[key] = Products(*key, group.columns[0][0].device)
        measure = meters[key]
        dots.append(measure(runs(group.columns, SMALL, measure.block)))
    return dots


def _doubtful(vectors: Sequence[Group], dots: Sequence[Tensor]) -> list[int]:
    """Return the groups with a sum of squares in float32 that may have lost terms."""
    squares = torch.cat([d.diagonal() for d in dots])
    outside = ~((squares > SAFE[0]) & (squares < SAFE[1]))
    flags = torch.split(outside.cpu(), [len(group.tasks) for group in vectors])
    return [
        number
        for number, (group, flag) in enumerate(zip(vectors, flags, strict=True))
        if group.dtype != torch.float64 and bool(flag.any())
    ]


def _together(tensor: Tensor) -> bool:
    """Whether one call for many tensors serves: small ones, or any on an accelerator."""
    wide = tensor.dtype in (torch.float32, torch.float64)
    return wide and (tensor.numel() <= SMALL or tensor.device.type != "cpu")


def _mix_many_(columns: Sequence[Sequence[Tensor]], weights: Sequence[float]) -> None:
    """Write the weighted sum of each column of tensors into its first."""
    first, *others = (list(task) for task in zip(*columns, strict=True))
    if weights[0] != 1:
        torch._foreach_mul_(first, weights[0])
    for other, weight in zip(others, weights[1:], strict=True):
        torch._foreach_add_(first, other, alpha=weight)


def _mix_wide_(tensors: Sequence[Tensor], weights: Sequence[float]) -> None:
    """Write the weighted sum into the first, added up in float64, on the CPU if need be."""
    first = tensors[0]
    if float64_device(first.device) != first.device:
        tensors = [tensor.cpu() for tensor in tensors]
    _mix_(tensors, weights, torch.float64)
    if tensors[0] is not first:
        first.copy_(tensors[0])


def _mix_(
    tensors: Sequence[Tensor], weights: Sequence[float], least: torch.dtype = torch.float32
) -> None:
    """Write the weighted sum of ``tensors`` into the first, block by block.

    Added up in ``least`` or the gradients' own wider dtype.
    """
    wide = torch.promote_types(tensors[0].dtype, least)
    walked = side_by_side(tensors)
    if walked is None:  # strides differ: elementwise operations walk those, at some cost in speed
        return _mix_block_(tensors, weights, tensors[0].to(wide))
    first, scratch = walked[0], None
    size = first.numel()
    if first.device.type == "cpu":
        size = MIX_BLOCK
        wide = torch.promote_types(first.dtype, least)
        if wide != first.dtype:
            size = min(HALF_BLOCK, first.numel())
            scratch = torch.empty(size, dtype=wide, device=first.device)
    for block in zip(*(blocks(flat, size) for flat in walked), strict=True):
        start = block[0]
        wider = start.to(wide) if scratch is None else scratch[: len(start)].copy_(start)
        _mix_block_(block, weights, wider)
    return None


def _mix_block_(block: Sequence[Tensor], weights: Sequence[float], total: Tensor) -> None:
    """Write the weighted sum of one block, rounded once.

    Args:
        block: the tasks' tensors.
        weights: of each.
        total: the first of the block as it is added up in; the first itself, or a wider copy.
    """
    first = block[0]
    if weights[0] != 1:
        total.mul_(weights[0])
    for other, weight in zip(block[1:], weights[1:], strict=True):
        total.add_(other, alpha=weight)
    if total is not first:
        first.copy_(total)
