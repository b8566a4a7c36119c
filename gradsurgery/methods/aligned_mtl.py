"""Aligned-MTL: the gradients' principal components brought to one size (Senushkin et al. 2023).

"Independent Component Alignment for Multi-Task Learning", CVPR 2023, Algorithm 1. With the
eigendecomposition G = V diag(l) V':

    B = sqrt(l_scale) V diag(1 / sqrt(l)) V',   d = sum_k (B 1)_k g_k           (12)

Promise: the balanced gradients sum_k B_ki g_k are orthogonal and of equal length, the condition
number of the system is one.

Choices of l_scale: the paper's smallest eigenvalue, the median (the lower one of two), or the mean.

Departures: as in the authors' code the balanced gradients are added up, B 1 (the paper's weighted
mean with weights 1/K is 1/K of it), and eigenvalues that are rounding are left out, so dependent
gradients span a smaller space and a zero gradient takes no part.
"""

from __future__ import annotations

from typing import Literal, final, get_args

import torch
from torch import Tensor

from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.components import components
from gradsurgery.methods.directions import Directions, directions

Scale = Literal["min", "median", "rmse"]

#: What is below this, relative to the largest (and times K for the cosines), is rounding.
RANK = 2.0**-50


@final
class AlignedMTL(Method):
    """Alignment of the principal components of the gradient matrix.

    Args:
        scale: the common size: ``"min"`` (the paper's), ``"median"`` or ``"rmse"`` of the
            eigenvalues.

    Raises:
        ValueError: for another ``scale``.

    Example:
        >>> gram = torch.tensor([[[4.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
        >>> AlignedMTL()(gram, present=torch.ones(1, 2, dtype=torch.bool), state={}).weights
        tensor([[0.5000, 1.0000]], dtype=torch.float64)
    """

    needs = frozenset({"present"})

    def __init__(self, scale: Scale = "min") -> None:
        if scale not in get_args(Scale):
            raise ValueError(f"scale is one of {get_args(Scale)}, not {scale!r}")
        self.scale = scale

    def __call__(self, gram: Tensor, *, present: Tensor, state: State) -> Verdict:
        """Decide by (12)."""
        unit = directions(gram, present)
        sizes, vectors = _components(unit)  # sqrt(l), descending; V
        kept = sizes > RANK * sizes[..., :1]
        balanced = vectors.sum(-2) / torch.where(kept, sizes, torch.inf)
        weights = (vectors @ balanced.unsqueeze(-1)).squeeze(-1)
        return unit.verdict(weights * self._common(sizes, kept))

    def _common(self, sizes: Tensor, kept: Tensor) -> Tensor:
        """Return sqrt(l_scale), ``[S, 1]``."""
        count = kept.sum(-1, keepdim=True).clamp(min=1)
        if self.scale == "rmse":
            return (torch.where(kept, sizes, 0).square().sum(-1, keepdim=True) / count).sqrt()
        return sizes.gather(-1, count - 1 if self.scale == "min" else count // 2)

    def __repr__(self) -> str:
        return f"AlignedMTL(scale={self.scale!r})"


def _components(unit: Directions) -> tuple[Tensor, Tensor]:
    """Return the square roots of the eigenvalues of G, ``[S, K]`` descending, and V.

    They are the singular values of diag(|g|) C^1/2, which keeps half of the digits that gradients
    of very different length would cost the eigenvalues of G.
    """
    cosines = torch.where(unit.there.unsqueeze(-1), unit.cosines, 0)
    values, vectors = components(cosines)
    rounding = RANK * values.shape[-1] * values[..., :1]
    roots = torch.where(values > rounding, values, 0).sqrt()
    return components(unit.norms.unsqueeze(-1) * vectors * roots.unsqueeze(-2))
