"""Nash-MTL: the Nash bargaining solution among the tasks (Navon et al. 2022).

"Multi-Task Learning as a Bargaining Game", arXiv:2202.01017, Claim 3.1. With G the Gram matrix:

    G w = 1 / w,   w > 0                                                        (2)

Promise: every task progresses, g_k . d = 1 / w_k, and the product of all progresses is the largest
that an update of this length can have.

Length: the update of (2) has |d|^2 = w' G w = K whatever the losses' scale, so its degree is zero.
The authors' code cuts it to length one at most (`max_norm=1`): divide the learning rate by sqrt(K),
or clip to norm one, for theirs.

Departures: solved exactly, at every step (theirs is a sequence of convex programs, stopped at a
residual of 1e-3, optionally every few steps). A zero gradient has no direction and takes no part.
Where tasks oppose each other, so that a convex combination of their gradients is zero, (2) has no
solution: their part of the update vanishes, see :mod:`gradsurgery.methods.balance`.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gradsurgery.methods.balance import balance
from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.directions import directions, on_cpu


@final
class NashMTL(Method):
    """The update that all tasks would agree on in a bargaining game.

    Example:
        >>> gram = torch.tensor([[[4.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
        >>> NashMTL()(gram, present=torch.ones(1, 2, dtype=torch.bool), state={}).weights.tolist()
        [[0.5, 1.0]]
    """

    needs = frozenset({"present"})

    degree = 0.0

    def __call__(self, gram: Tensor, *, present: Tensor, state: State) -> Verdict:
        """Decide by (2)."""
        unit = directions(*on_cpu(gram, present))
        fair = balance(unit.cosines, torch.ones_like(unit.norms), 1)
        return unit.verdict(unit.weights(fair) / unit.longest, gram.device)

    def __repr__(self) -> str:
        return "NashMTL()"
