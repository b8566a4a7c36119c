"""Principal components of small matrices: singular values and left singular vectors, no waiting.

torch's decompositions wait for a GPU to say whether they have converged. Where the fused kernels
serve, theirs takes their place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradsurgery.kernels import fused_on

#: Components of cosines below this, relative to the largest, are rounding: unit gradients depend.
RANK = 1e-12
#: Rounding of a dot product with one of K components, relative and over K.
ROUNDING = 2.0**-50


def components(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Decompose ``A = U diag(s) V'``.

    Args:
        matrix: ``[S, K, K]`` float64, finite; where it is positive semidefinite, U = V but for
            components that are rounding.

    Returns:
        s ``[S, K]``, descending, and U ``[S, K, K]``.

    Example:
        >>> components(torch.tensor([[[1.0, 0.6], [0.6, 1.0]]], dtype=torch.float64))[0]
        tensor([[1.6000, 0.4000]], dtype=torch.float64)
    """
    if fused_on(matrix.device, matrix.shape[-1]):
        from gradsurgery.kernels import triton_svd  # needs triton

        return triton_svd.left_svd(matrix)
    vectors, sizes, _ = torch.linalg.svd(matrix)
    return sizes, vectors


def symmetric_components(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Decompose a symmetric ``A = V diag(l) V'``, l of either sign.

    Args:
        matrix: as in :func:`components`.

    Returns:
        l ``[S, K]``, descending, to rounding of the largest sum of a row, and V ``[S, K, K]``.

    Example:
        >>> symmetric_components(torch.tensor([[[0.0, 2.0], [2.0, 0.0]]], dtype=torch.float64))[0]
        tensor([[ 2., -2.]], dtype=torch.float64)
    """
    shift = matrix.abs().sum(-1, keepdim=True).amax(-2, keepdim=True)  # no eigenvalue is below -it
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    sizes, vectors = components(matrix + shift * unit)
    return sizes - shift.squeeze(-1), vectors
