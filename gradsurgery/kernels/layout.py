"""Gradients in memory order: flat views of a column's tensors, copied only where needed.

The gradients of one parameter share its strides, contiguous or not (channels-last, transposed), so
the K of them can be walked side by side as they lie in memory. ``view(-1)`` would refuse that,
``reshape(-1)`` would copy, and a result written into the copy would be lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: The gradients of one parameter, ``[K]``: by task, None where a task has none.
Column = Sequence[Tensor | None]

#: ``columns[p][k]``: the gradient of task k for parameter p.
Columns = Sequence[Column]


class Group(NamedTuple):
    """Parameters that can be measured as one vector.

    Attributes:
        segment: where their dot products belong.
        dtype: of all gradients, a real one.
        tasks: those that have a gradient there, ascending.
        columns: per parameter, the tasks' gradients flat ([N] each), in the order of ``tasks``.
    """

    segment: int
    dtype: torch.dtype
    tasks: tuple[int, ...]
    columns: list[list[Tensor]]


def groups(columns: Columns, segments: Sequence[int]) -> list[Group]:
    """Sort parameters by segment, dtype and the tasks that have a gradient.

    Args:
        columns: ``[P][K]``; those of one parameter have one shape and dtype.
        segments: the segment of each parameter.
    """
    by_kind: dict[tuple[int, torch.dtype, tuple[int, ...]], list[list[Tensor]]] = {}
    for segment, column in zip(segments, columns, strict=True):
        tasks = tuple(k for k, grad in enumerate(column) if grad is not None)
        if tasks:
            flat = walked([grad for grad in column if grad is not None])
            by_kind.setdefault((segment, flat[0].dtype, tasks), []).append(flat)
    return [Group(*kind, flats) for kind, flats in by_kind.items()]


def runs(columns: Iterable[list[Tensor]], small: int, most: int) -> Iterator[list[Tensor]]:
    """Yield flat tensors of all tasks side by side, worth an operation each.

    A column of more than ``small`` elements is yielded as it is. Smaller ones are concatenated, up
    to ``most`` elements at a time: a copy, of what stays in cache.
    """
    waiting: list[list[Tensor]] = []
    size = 0
    for column in columns:
        length = column[0].numel()
        if length > small:
            yield column
            continue
        if size + length > most:
            yield _joined(waiting)
            waiting, size = [], 0
        waiting.append(column)
        size += length
    if waiting:
        yield _joined(waiting)


def _joined(columns: list[list[Tensor]]) -> list[Tensor]:
    if len(columns) == 1:
        return columns[0]
    return [torch.cat(pieces) for pieces in zip(*columns, strict=True)]


def walked(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the elements of each tensor flat ([N]), in one order; views where possible."""
    return side_by_side(tensors) or [real(t).contiguous().view(-1) for t in tensors]


def side_by_side(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """Return flat views ([N] each) that visit the same elements together, or None if none exist.

    Args:
        tensors: of one shape. Complex ones are walked as pairs of reals.

    Example:
        >>> a = torch.arange(4.0).view(2, 2).t()
        >>> [flat.tolist() for flat in side_by_side([a, 2 * a])]
        [[0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 4.0, 6.0]]
    """
    if all(t.is_contiguous() for t in tensors):
        return [real(t).view(-1) for t in tensors]
    tensors = [real(t) for t in tensors]
    if same_walk(tensors):
        return [t.as_strided((t.numel(),), (1,)) for t in tensors]
    return None


def same_walk(tensors: Sequence[Tensor]) -> bool:
    """Whether the memory of all, walked from its start, visits the same elements together."""
    return all(t.is_contiguous() for t in tensors) or (
        len({t.stride() for t in tensors}) == 1 and dense(tensors[0])
    )


def real(tensor: Tensor) -> Tensor:
    """Return ``tensor``, a complex one as reals ([..., 2]); the inner product is that of R^2N."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def blocks(flat: Tensor, size: int) -> tuple[Tensor, ...]:
    """Cut a flat tensor into views of ``size`` elements, the last one shorter."""
    return torch.split(flat, size) if flat.numel() > size else (flat,)


def dense(tensor: Tensor) -> bool:
    """Whether the elements fill their stretch of memory once, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
