"""ConFIG: the direction of equal cosines with all gradients (Liu, Chu & Thuerey 2024).

"ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks", arXiv:2408.11104,
equations (2) and (3). With U the matrix of unit gradients u_k, and unit(x) = x / |x|:

    d = (sum_k g_k . v) v,   v = unit(U^+ 1)                                    (2), (3)

Promise: d has one and the same positive cosine with every gradient, and its length is the sum of
the gradients' projections on it.

Departures: none for independent gradients. Where unit gradients depend on each other, the
pseudoinverse gives the least squares direction, as the authors' code does. A zero gradient has no
direction and takes no part. Where opposed gradients leave no direction of positive cosines, the
update is zero, its limit.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.components import RANK, ROUNDING, components
from gradsurgery.methods.directions import directions


@final
class ConFIG(Method):
    """Conflict-free inverse gradients.

    Example:
        >>> gram = torch.tensor([[[4.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
        >>> ConFIG()(gram, present=torch.ones(1, 2, dtype=torch.bool), state={}).weights
        tensor([[0.7500, 1.5000]], dtype=torch.float64)
    """

    needs = frozenset({"present"})

    def __call__(self, gram: Tensor, *, present: Tensor, state: State) -> Verdict:
        """Decide by (2) and (3): U^+ 1 = U' C^+ 1."""
        unit = directions(gram, present)
        sizes, vectors = components(unit.cosines)
        ones = (vectors.mT @ unit.there.double().unsqueeze(-1)).squeeze(-1)
        # Opposed gradients have no component along 1; that of rounding would be a direction.
        kept = (sizes > RANK * sizes[..., :1]) & (ones.abs() > ROUNDING * sizes.shape[-1])
        best = (vectors @ torch.where(kept, ones / sizes, 0).unsqueeze(-1)).squeeze(-1)
        projections = (unit.norms * unit.dot(best)).sum(-1, keepdim=True)  # times |U^+ 1|
        square = unit.square(best)
        length = torch.where(square > 0, projections / square, 0)
        return unit.verdict(unit.weights(length * best))

    def __repr__(self) -> str:
        return "ConFIG()"
