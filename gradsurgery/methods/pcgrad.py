"""PCGrad: project each gradient off the gradients it conflicts with (Yu et al. 2020, Algorithm 1).

"Gradient Surgery for Multi-Task Learning", arXiv:2001.06782. For each task i, over the other tasks
j in random order, with g_i' starting as g_i:

    if g_i' . g_j < 0:   g_i' <- g_i' - (g_i' . g_j / |g_j|^2) g_j          (1)

and the update is sum_i g_i'. The projection is against the *original* g_j.
"""

from __future__ import annotations

from typing import final

from torch import Tensor

from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.projection import CANCELLED, Visits


def pcgrad(gram: Tensor, order: Tensor) -> Verdict:
    """PCGrad on a Gram matrix.

    Args:
        gram: ``[..., K, K]`` float64, the dot products of the K gradients (any leading shape).
        order: ``[K, K]`` int64, row i a permutation of the tasks: the order of i's visits.

    Returns:
        The :class:`~gradsurgery.methods.base.Verdict`, with empty state.

    Example:
        Two gradients (1, 0) and (-1, 1), which conflict; the update is (0.5, 1.5):

        >>> import torch
        >>> gram = torch.tensor([[1.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)
        >>> pcgrad(gram, torch.tensor([[0, 1], [0, 1]])).weights.tolist()
        [2.0, 1.5]
    """
    visits, altered = Visits(gram, order), []
    for partner, other, possible in visits:
        dot, square, pieces = visits.measure(partner)
        there = possible & (square > (CANCELLED * pieces) ** 2)
        conflict = there & (dot < -(CANCELLED**2) * pieces * other)
        visits.add(partner, -dot / other**2, conflict)
        altered.append(conflict)
    return Verdict(visits.weights, visits.by_task(altered), {})


@final
class PCGrad(Method):
    """Projecting conflicting gradients (Yu et al. 2020, Algorithm 1).

    Args:
        seed: of the visiting order, which is drawn afresh at every step from a generator that is
            saved with the optimizer and shared with nobody.

    Example:
        >>> PCGrad(seed=1)
        PCGrad(seed=1)
    """

    needs = frozenset({"order"})

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, gram: Tensor, order: Tensor, state: State) -> Verdict:
        """Decide; the state is empty."""
        return pcgrad(gram, order)

    def __repr__(self) -> str:
        return f"PCGrad(seed={self.seed})"
