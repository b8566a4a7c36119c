"""DualProj: the mean gradient, projected onto the dual cone (Lopez-Paz & Ranzato 2017).

"Gradient Episodic Memory for Continual Learning", arXiv:1706.08840, equation (11). The update is
the vector closest to the mean gradient that has a non-negative dot product with every gradient:

    min_d |d - sum_k p_k g_k|^2   subject to   g_k . d >= 0 for all k,  p_k = 1/K

d = sum_k v_k g_k with the v >= p of least v' G v, the dual problem.

Promise: no task's loss rises to first order, and no such update is closer to the mean gradient.

Departures: GEM projects the gradient of the task being learned off those of tasks before it; for
tasks learned together it is the mean that is projected, as Quinton & Rey (2024) do. Solved exactly
and in unit gradients. A zero gradient constrains nothing.
"""

from __future__ import annotations

from typing import final

from torch import Tensor

from gradsurgery.methods.base import State, Verdict
from gradsurgery.methods.directions import directions, on_cpu
from gradsurgery.methods.preference import Preferring
from gradsurgery.methods.quadratic import nonnegative


@final
class DualProj(Preferring):
    """Projection of the mean gradient onto the dual cone.

    Args:
        preference: p, a non-negative number for each task in order; None for 1/K each, K being the
            number of present tasks.

    Raises:
        ValueError: for numbers that are negative or not finite.

    Example:
        >>> import torch
        >>> gram = torch.tensor([[[1.0, -1.0], [-1.0, 2.0]]], dtype=torch.float64)
        >>> DualProj()(gram, present=torch.ones(1, 2, dtype=torch.bool), state={}).weights.tolist()
        [[0.5, 0.5]]
    """

    def __call__(self, gram: Tensor, *, present: Tensor, state: State) -> Verdict:
        """Decide by the dual problem."""
        unit = directions(*on_cpu(gram, present))
        preference = self.preference_of(unit.present)
        beyond = nonnegative(unit.cosines, -unit.dot(preference * unit.norms))
        return unit.verdict(preference + unit.weights(beyond), gram.device)
