"""Random weights: the litmus test of every other weighting (Lin et al. 2022).

"Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning",
arXiv:2111.10603, random gradient weighting. At each step, afresh:

    w = softmax(x),   x_k ~ N(0, 1)

Promise: none; a method that is no better than this has shown nothing. The mean update is 1/K of the
plain sum.

Departures: none. One draw serves all segments; the softmax is over the present tasks.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gradsurgery.methods.base import Method, State, Verdict


@final
class RandomWeights(Method):
    """Weights drawn at random at each step, that sum to one.

    Args:
        seed: of the draws, which come from a generator that is saved with the optimizer, shared
            with nobody, and the same on all ranks.

    Example:
        >>> gram, draws = torch.eye(2, dtype=torch.float64)[None], torch.zeros(2).double()
        >>> present = torch.ones(1, 2, dtype=torch.bool)
        >>> RandomWeights()(gram, draws=draws, present=present, state={}).weights.tolist()
        [[0.5, 0.5]]
    """

    needs = frozenset({"draws", "present"})

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, gram: Tensor, *, draws: Tensor, present: Tensor, state: State) -> Verdict:
        """Decide by the draws; the state is kept as it is."""
        among = torch.where(present, draws, -torch.inf)
        weights = torch.where(present, torch.softmax(among, -1), 0)
        return Verdict(weights, None, state)

    def __repr__(self) -> str:
        return f"RandomWeights(seed={self.seed})"
