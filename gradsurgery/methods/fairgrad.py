"""FairGrad: alpha-fair progress of the tasks (Ban & Ji 2024).

"Fair Resource Allocation in Multi-Task Learning", arXiv:2402.15638, equation (4). The progress
g_k . d is treated as a resource whose alpha-fair utility is to be maximal, which asks for

    G w = w^(-1 / alpha),   w > 0                                               (4)

alpha = 1 is Nash-MTL; towards 0 the plain sum, and towards infinity the same progress for all.

Promise: every task progresses, g_k . d = w_k^(-1 / alpha).

Length: losses times s give the update times s^((1 - alpha) / (1 + alpha)), shorter for larger
losses when alpha > 1.

Departures: solved exactly where the authors' code stops a least-squares search early. A zero
gradient takes no part (as a gradient shrinks to zero, its w would grow without bound). Where a
convex combination of the gradients is zero, (4) has no solution, and the part of the tasks in it
vanishes, see :mod:`gradsurgery.methods.balance`. For alpha below a half and norms orders of
magnitude apart, (4) may ask for less progress of a task than rounding of the Gram matrix can tell
from none: the update is then right to rounding, and the equation need not be.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gradsurgery.methods.balance import balance
from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.directions import directions, on_cpu


@final
class FairGrad(Method):
    """Alpha-fair allocation of progress.

    Args:
        alpha: how much the tasks behind count, in [0.1, 5]: beyond, the powers of equation (4)
            leave the range of numbers.

    Raises:
        ValueError: for an ``alpha`` out of range.

    Example:
        >>> gram = torch.tensor([[[4.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
        >>> present = torch.ones(1, 2, dtype=torch.bool)
        >>> FairGrad()(gram, present=present, state={}).weights  # 4 w = w^(-1/2)
        tensor([[0.3969, 1.0000]], dtype=torch.float64)
    """

    needs = frozenset({"present"})

    def __init__(self, alpha: float = 2.0) -> None:
        if not 0.1 <= alpha <= 5:
            raise ValueError(f"alpha is in [0.1, 5], not {alpha}")
        self.alpha = alpha
        self.degree = (1 - alpha) / (1 + alpha)

    def __call__(self, gram: Tensor, *, present: Tensor, state: State) -> Verdict:
        """Decide by (4), which for z = w |g| reads C z = |g|^(1/alpha - 1) z^(-1/alpha)."""
        unit, power = directions(*on_cpu(gram, present)), 1 / self.alpha
        factors = torch.where(unit.there, unit.norms, 1) ** (power - 1)
        fair = balance(unit.cosines, factors, power)
        weights = unit.weights(fair) * unit.longest ** (-2 / (1 + power))
        return unit.verdict(weights, gram.device)

    def __repr__(self) -> str:
        return f"FairGrad(alpha={self.alpha})"
