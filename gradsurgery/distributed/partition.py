"""The partition of a parameter over ranks: which rank owns which of its elements.

Every parameter is cut into one run of consecutive elements (in memory order) per rank. The cut
depends on the parameter's size and the number of ranks alone, so that the pieces of different
tasks, steps and messages always meet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradsurgery.kernels.layout import dense

#: A piece begins at a multiple of so many elements: aligned, whatever the dtype.
ALIGNED = 16


def length(elements: int, ranks: int) -> int:
    """Return the elements of a piece; the last ranks' may be cut short, or empty.

    Example:
        >>> length(100, 2), length(5, 2)
        (64, 16)
    """
    share = -(-elements // ranks)
    return -(-share // ALIGNED) * ALIGNED


def piece(flat: Tensor, rank: int, ranks: int) -> Tensor:
    """Return the view of ``flat`` ([N]) that ``rank`` owns.

    Example:
        >>> [piece(torch.arange(20), rank, 2).tolist()[:3] for rank in range(2)]
        [[0, 1, 2], [16, 17, 18]]
    """
    size = length(flat.numel(), ranks)
    return flat[rank * size : (rank + 1) * size]


def strides(parameter: Tensor) -> tuple[int, ...]:
    """Return the strides that a gradient of ``parameter`` is exchanged with, on every rank."""
    if parameter.is_contiguous() or dense(parameter):
        return parameter.stride()
    return torch.empty(parameter.shape, dtype=parameter.dtype, device="meta").stride()


def dtype(parameter: Tensor) -> torch.dtype:
    """Return the dtype of a gradient of ``parameter``, also where there is none to look at."""
    return getattr(parameter, "grad_dtype", None) or parameter.dtype


def fits(grad: Tensor, parameter: Tensor) -> bool:
    """Whether a gradient of ``parameter`` can be exchanged in the memory where it lies."""
    return grad.dtype == dtype(parameter) and grad.stride() == strides(parameter)


def shaped(flat: Tensor, parameter: Tensor) -> Tensor:
    """Return ``flat`` ([N]) as a gradient of ``parameter``: a view."""
    if parameter.is_contiguous():
        return flat.view(parameter.shape)
    return flat.as_strided(parameter.shape, strides(parameter), flat.storage_offset())


def flattened(grad: Tensor) -> Tensor:
    """Return what :func:`shaped` or autograd gave, in memory order ([N]): a view."""
    if grad.is_contiguous():
        return grad.view(-1)
    return grad.as_strided((grad.numel(),), (1,), grad.storage_offset())
