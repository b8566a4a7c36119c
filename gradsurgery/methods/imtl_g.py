"""IMTL-G: an update with equal projections on all task gradients (Liu et al. 2021).

"Towards Impartial Multi-task Learning", ICLR 2021, equation (5). With u_k = g_k / |g_k|:

    d . u_1 = d . u_k  for all k,   d = sum_k w_k g_k,   sum_k w_k = 1          (5)

Promise: d . u_k is the same for all tasks. Weights may be negative, and where the weights of
equal projections sum to nearly nothing, normalizing them makes d long; both are the paper's.

Departures: the paper eliminates w_1 and inverts a (K-1) x (K-1) matrix, which dependent gradients
make singular. With C the cosines and x_k = w_k |g_k|, (5) asks of x that C x is the same for all
tasks and that sum_k x_k / |g_k| = 1. The x of equal projections are the multiples of C^+ 1 (none
but zero where gradients are opposed, C C^+ 1 != 1) and what C takes to zero. Of those with the sum,
the one of least |x|, so of least sum_k (w_k |g_k|)^2, is taken: along the projection of the vector
of 1 / |g_k| onto them. Where that is zero there is none, and the update is zero. As a gradient
shrinks to zero, the update does, so it is zero with a zero gradient of a present task.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.components import RANK, ROUNDING, components
from gradsurgery.methods.directions import directions, uniform


@final
class IMTLG(Method):
    """Impartial multi-task learning by gradients (the losses' half of the paper is IMTL-L).

    Example:
        >>> gram = torch.tensor([[[4.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
        >>> weights = IMTLG()(gram, present=torch.ones(1, 2, dtype=torch.bool), state={}).weights
        >>> (3 * weights).round().tolist()
        [[1.0, 2.0]]
    """

    needs = frozenset({"present"})

    def __call__(self, gram: Tensor, *, present: Tensor, state: State) -> Verdict:
        """Decide by (5)."""
        unit = directions(gram, present)
        sizes, vectors = components(unit.cosines)
        kept = sizes > RANK * sizes[..., :1]
        # In components: 1, the vector to project, and C^+ 1.
        sides = torch.stack([unit.there.double(), unit.inverse], -1)
        ones, aim = (vectors.mT @ sides).unbind(-1)
        equal = torch.where(kept, ones / sizes, 0)
        rounding = ROUNDING * sizes.shape[-1] * sizes[..., :1] * _length(equal)
        opposed = _length(torch.where(kept, 0, ones)) > rounding
        equal = torch.where(opposed, 0, equal)
        best = torch.where(kept, _share(equal, aim) * equal, aim)
        there = _length(best) > RANK * _length(aim)
        best = torch.where(there, best / _length(best) ** 2, 0)
        weights = (vectors @ best.unsqueeze(-1)).squeeze(-1) * unit.inverse
        stopped = unit.zero.any(-1, keepdim=True)
        return unit.verdict(torch.where(stopped, uniform(unit.zero), weights))

    def __repr__(self) -> str:
        return "IMTLG()"


def _length(parts: Tensor) -> Tensor:
    return parts.square().sum(-1, keepdim=True).sqrt()


def _share(direction: Tensor, vector: Tensor) -> Tensor:
    """Return how many times ``direction`` the projection of ``vector`` onto it is."""
    square = direction.square().sum(-1, keepdim=True)
    return torch.where(square > 0, (direction * vector).sum(-1, keepdim=True) / square, 0)
