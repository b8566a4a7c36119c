"""UPGrad: the mean of the gradients, each projected onto the dual cone (Quinton & Rey 2024).

"Jacobian Descent for Multi-Objective Optimization", arXiv:2406.16232, equation (4). With pi(g) the
vector closest to g that has a non-negative dot product with every gradient:

    d = sum_k p_k pi(g_k),   p_k = 1/K                                          (4)

and pi(g_k) = sum_j v_j g_j with the v >= e_k of least v' G v (Proposition 1).

Promise: no task's loss rises to first order, g_k . d >= 0 for every task, and d is linear under a
scaling of each gradient.

Departures: solved exactly and in unit gradients, without the authors' regularization (1e-4 of the
trace) and normalization, which let small gradients go backwards. A zero gradient takes no part.
"""

from __future__ import annotations

from typing import final

from torch import Tensor

from gradsurgery.methods.base import State, Verdict
from gradsurgery.methods.directions import directions, on_cpu
from gradsurgery.methods.preference import Preferring
from gradsurgery.methods.quadratic import nonnegative


@final
class UPGrad(Preferring):
    """Unconflicting projection of gradients.

    Args:
        preference: p, a non-negative number for each task in order; None for 1/K each, K being the
            number of present tasks.

    Raises:
        ValueError: for numbers that are negative or not finite.

    Example:
        >>> import torch
        >>> gram = torch.tensor([[[1.0, -1.0], [-1.0, 2.0]]], dtype=torch.float64)
        >>> UPGrad()(gram, present=torch.ones(1, 2, dtype=torch.bool), state={}).weights.tolist()
        [[1.0, 0.75]]
    """

    def __call__(self, gram: Tensor, *, present: Tensor, state: State) -> Verdict:
        """Decide by (4): row k of v is the projection of u_k."""
        unit = directions(*on_cpu(gram, present))
        preference = self.preference_of(unit.present)
        tasks = preference.shape[-1]
        matrix = unit.cosines.repeat_interleave(tasks, 0)
        beyond = nonnegative(matrix, -unit.cosines.reshape(-1, tasks)).view(-1, tasks, tasks)
        shares = (preference * unit.norms).unsqueeze(-2)
        return unit.verdict(preference + unit.weights((shares @ beyond).squeeze(-2)), gram.device)
