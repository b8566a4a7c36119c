"""Walking gradients in memory order: flat views, in blocks, without a copy where there is a choice.

The gradients of one parameter share its strides, contiguous or not (channels-last, transposed), so
the K of them can be walked side by side as they lie in memory. ``view(-1)`` would refuse that,
``reshape(-1)`` would copy, and a result written into the copy would be lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def side_by_side(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """Return flat views ([N] each) that visit the same elements together, or None if none exist.

    Args:
        tensors: of one shape. Complex ones are walked as pairs of reals.

    Example:
        >>> a = torch.arange(4.0).view(2, 2).t()
        >>> [flat.tolist() for flat in side_by_side([a, 2 * a])]
        [[0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 4.0, 6.0]]
    """
    tensors = [real(t) for t in tensors]
    if all(t.is_contiguous() for t in tensors):
        return [t.view(-1) for t in tensors]
    if len({t.stride() for t in tensors}) == 1 and _dense(tensors[0]):
        return [t.as_strided((t.numel(),), (1,)) for t in tensors]
    return None


def real(tensor: Tensor) -> Tensor:
    """Return ``tensor``, a complex one as reals ([..., 2]); the inner product is that of R^2N."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def blocks(flat: Tensor, size: int) -> tuple[Tensor, ...]:
    """Cut a flat tensor into views of ``size`` elements, the last one shorter."""
    return torch.split(flat, size) if flat.numel() > size else (flat,)


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill their stretch of memory once, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
