"""The magnitude of float64 gradients: scaled, where their squares would leave float64.

The squares of float32 numbers fit into float64, and so do those of float64 numbers from 1e-154 to
1e154. Beyond, a gradient would count as infinite, or as absent. So where the Gram matrix of float64
gradients looks like that, it is taken again of the gradients times a power of two, which is exact.
Looking costs nothing beside the pass that follows only then.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradsurgery.distributed.local import LocalGradients
from gradsurgery.distributed.placement import Placement
from gradsurgery.kernels.layout import real

#: The dtypes that this is about.
WIDE = {torch.float64, torch.complex128}
#: The largest element is scaled to 2^TOP: its squares leave room for 2^60 of them, and the smallest
#: gradient beside it may be 2^-990 of its size.
TOP = 480
#: A sum of squares below this may have lost terms to underflow.
LOW = 2.0**-960


def gram_in_range(
    gram: Tensor, local: LocalGradients, placement: Placement
) -> tuple[Tensor, float]:
    """Return a Gram matrix that float64 can hold, and the power of two that its gradients carry.

    Args:
        gram: ``[S, K, K]`` on the CPU, of the gradients as they are.
        local: the gradients.
        placement: how the whole gradients lie on the processes.

    Returns:
        ``gram`` and 1, unless float64 gradients are too large or too small for it.
    """
    if not _doubtful(gram, local):
        return gram, 1.0
    present = [grad for column in local.columns for grad in column if grad is not None]
    peaks = [torch.linalg.vector_norm(real(g), math.inf).double() for g in present if g.numel()]
    zero = gram.new_zeros(())
    peak = float(placement.largest(torch.stack([zero.to(present[0].device), *peaks]).amax()))
    if not 0 < peak < math.inf:
        return gram, 1.0
    factor = 2.0 ** min(TOP - math.frexp(peak)[1], 1000)
    columns = [
        [None if grad is None else _wide(grad) * factor for grad in column]
        for column in local.columns
    ]
    scaled = placement.gram(local._replace(columns=columns)).cpu()
    square, before = (matrix.diagonal(dim1=-2, dim2=-1) for matrix in (scaled, gram))
    gained = ~before.isfinite() | ((before < LOW) & (square > 0))
    return (scaled, factor) if bool(gained.any()) else (gram, 1.0)


def _doubtful(gram: Tensor, local: LocalGradients) -> bool:
    """Whether some float64 gradient's sum of squares left float64's range, or may have."""
    there = [[False] * local.tasks for _ in range(local.segment_count)]
    for segment, column in zip(local.segments, local.columns, strict=True):
        for task, grad in enumerate(column):
            if grad is not None and grad.dtype in WIDE:
                there[segment][task] = True
    square = gram.diagonal(dim1=-2, dim2=-1)
    outside = ~((square >= LOW) & square.isfinite())
    return bool((outside & torch.tensor(there, dtype=torch.bool, device="cpu")).any())


def _wide(grad: Tensor) -> Tensor:
    return grad.to(torch.complex128 if grad.is_complex() else torch.float64)
