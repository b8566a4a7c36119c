"""Uncertainty weighting: a learned noise level for each task (Kendall, Gal & Cipolla 2018).

"Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics",
arXiv:1705.07115. With s_k = log sigma_k^2, trained together with the network,

    minimize  sum_k exp(-s_k) L_k + s_k                                 (twice equation 7)

so w_k = exp(-s_k), and dL/ds_k = 1 - exp(-s_k) L_k.

Promise: where a loss stands still, its weight tends to 1 / L_k.

Departures. The paper halves the loss of a regression (7) and not that of a classification (10); the
two differ by a shift of s_k. Here all have the form of the authors' published example, which starts
from s = 0 as the plain sum. The paper trains s with the network's own optimizer; here it has an
Adam of its own, with the rate that Chen et al. (2018, section 5.1) take for this method.

IMTL-L (Liu et al. 2021, "Towards Impartial Multi-task Learning") minimizes exp(s_k) L_k - s_k: it
is this method, with the other sign of s.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gradsurgery.methods import adam
from gradsurgery.methods.base import State
from gradsurgery.methods.weighting import LossWeighting


@final
class UncertaintyWeighting(LossWeighting):
    """Homoscedastic uncertainty weighting (Kendall, Gal & Cipolla 2018, eq. 7); also IMTL-L.

    Under ``join`` one backward pass; the state is one log variance for each task, and Adam's
    moments.

    Args:
        lr: Adam's learning rate for the log variances. A weight changes by a factor of up to
            exp(lr) in a step.

    Raises:
        ValueError: for a negative ``lr``.

    Example:
        >>> method = UncertaintyWeighting(lr=0.1)
        >>> losses = torch.tensor([4.0, 0.5], dtype=torch.float64)
        >>> weights, state = method.weigh(losses, method.init(1, 2))
        >>> weights.tolist(), state["log_variance"].tolist()
        ([1.0, 1.0], [0.1, -0.1])
    """

    def __init__(self, lr: float = 0.025) -> None:
        if not lr >= 0:
            raise ValueError(f"lr is a learning rate of at least 0, not {lr}")
        self.lr = lr

    def init(self, segments: int, tasks: int) -> State:
        """Return log variances of zero."""
        start = torch.zeros(tasks, dtype=torch.float64, device="cpu")
        return {"log_variance": start, "moments": adam.initial(tasks)}

    def weigh(self, losses: Tensor, state: State) -> tuple[Tensor, State]:
        """Decide by the log variances, then let them follow the losses."""
        variance, known = state["log_variance"], losses.isfinite()
        weights = (-variance).exp()
        slope = 1 - weights * losses
        variance, moments = adam.adam(variance, slope, known, state["moments"], self.lr)
        return torch.where(known, weights, 1.0), {"log_variance": variance, "moments": moments}

    def __repr__(self) -> str:
        return f"UncertaintyWeighting(lr={self.lr})"
