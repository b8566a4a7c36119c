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
from gradsurgery.methods.directions import directions

#: Eigenvalues of the cosines below this, relative to the largest, are rounding.
RANK = 1e-12


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
        inverse = torch.linalg.pinv(unit.cosines, rtol=RANK, hermitian=True)
        best = (inverse @ unit.there.double().unsqueeze(-1)).squeeze(-1)
        projections = (unit.norms * unit.dot(best)).sum(-1, keepdim=True)  # times |U^+ 1|
        square = unit.square(best)
        length = torch.where(square > 0, projections / square, 0)
        return unit.verdict(unit.weights(length * best), gram.device)

    def __repr__(self) -> str:
        return "ConFIG()"
