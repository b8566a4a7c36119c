"""IMTL-G: an update with equal projections on all task gradients (Liu et al. 2021).

"Towards Impartial Multi-task Learning", ICLR 2021, equation (5). With u_k = g_k / |g_k|:

    d . u_1 = d . u_k  for all k,   d = sum_k w_k g_k,   sum_k w_k = 1          (5)

Promise: d . u_k is the same for all tasks. Weights may be negative, and where the weights of
equal projections sum to nearly nothing, normalizing them makes d long; both are the paper's.

Departures: the paper eliminates w_1 and inverts a (K-1) x (K-1) matrix, which dependent gradients
make singular. Here (5) is solved together with the common projection as an unknown, which is
regular also where gradients are opposed (d = 0); of several solutions the one of least
sum_k (w_k |g_k|)^2 is taken, and where there is none, the least squares one. As a gradient shrinks
to zero, the update does, so it is zero with a zero gradient of a present task.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.directions import directions, uniform

#: Singular values below this, relative to the largest, are rounding: unit gradients depend.
RANK = 1e-12


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
        # [[C, -1], [1/|g|, 0]] (w |g|, projection) = (0, 1)
        bordered = F.pad(unit.cosines, (0, 1, 0, 1))
        bordered[..., :-1, -1] = -unit.there.double()
        bordered[..., -1, :-1] = unit.inverse
        weights = torch.linalg.pinv(bordered, rtol=RANK)[..., :-1, -1] * unit.inverse
        stopped = unit.zero.any(-1, keepdim=True)
        return unit.verdict(torch.where(stopped, uniform(unit.zero), weights), gram.device)

    def __repr__(self) -> str:
        return "IMTLG()"
