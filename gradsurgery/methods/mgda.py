"""MGDA: the shortest convex combination of the gradients (Desideri 2012; Sener & Koltun 2018).

"Multi-Task Learning as Multi-Objective Optimization", arXiv:1810.04650, equation (3):

    min |sum_k w_k g_k|^2   subject to   w >= 0,  sum_k w_k = 1                 (3)

Promise: no task's loss rises to first order, d . g_k >= |d|^2 for every task, with equality where
w_k > 0; d = 0 exactly where a convex combination of the gradients is zero (Pareto stationary).

Departures: solved exactly where the paper runs Frank-Wolfe, and on the gradients as they are,
without the normalization by losses or norms that the authors' code offers. The minimum over x >= 0
of |sum_k x_k g_k|^2 + (1 - sum_k x_k)^2 is a multiple of w (the gradients being scaled so that the
shortest has length one), which makes (3) a problem without the equality.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.directions import Directions, directions, on_cpu, uniform
from gradsurgery.methods.quadratic import nonnegative


@final
class MGDA(Method):
    """Multiple-gradient descent: the shortest point of the gradients' convex hull.

    A zero gradient of a present task is that point: the update is zero.

    Example:
        >>> gram = torch.tensor([[[4.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
        >>> present = torch.ones(1, 2, dtype=torch.bool)
        >>> MGDA()(gram, present=present, state={}).weights.tolist()
        [[0.2, 0.8]]
    """

    needs = frozenset({"present"})

    def __call__(self, gram: Tensor, *, present: Tensor, state: State) -> Verdict:
        """Decide by (3)."""
        unit = directions(*on_cpu(gram, present))
        stopped = unit.zero.any(-1, keepdim=True)
        hull = shortest(unit) * unit.inverse
        return unit.verdict(torch.where(stopped, uniform(unit.zero), hull), gram.device)

    def __repr__(self) -> str:
        return "MGDA()"


def shortest(unit: Directions) -> Tensor:
    """Return the shortest point ``[S, K]``, in unit gradients over that of the shortest gradient.

    Times ``unit.inverse``, these are weights that sum to one.
    """
    inverse = unit.inverse
    lifted = unit.cosines + inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
    x = nonnegative(lifted, inverse)
    total = (x * inverse).sum(-1, keepdim=True)
    return torch.where(total > 0, x / total, 0)
