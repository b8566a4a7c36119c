"""Smooth Tchebycheff: the largest of the weighted losses, smoothed (Lin et al. 2024).

"Smooth Tchebycheff Scalarization for Multi-Objective Optimization", arXiv:2402.19078, equation 8:

    L = mu log sum_k exp(p_k (L_k - z_k) / mu),   so   w_k = p_k softmax(p (L - z) / mu)_k

with p the preference, a point of the simplex, and z the ideal losses.

Promise: every minimum is weakly Pareto optimal, and every Pareto optimum is the minimum for some
preference if mu is small enough. As mu goes to zero, the task with the largest p_k (L_k - z_k) is
trained alone; as it grows, w tends to p / K.

Departures: none. The softmax is over the present tasks. Losses times s act as mu / s: mu is in the
losses' units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from gradsurgery.methods.base import State
from gradsurgery.methods.weighting import LossWeighting
from gradsurgery.transfer import to_device


@final
class SmoothTchebycheff(LossWeighting):
    """Smooth Tchebycheff scalarization, STCH (Lin et al. 2024, eq. 8).

    Under ``join`` one backward pass; no state.

    Args:
        mu: the smoothing, above zero, in units of the losses.
        preference: how much each task counts, in task order, above zero; divided by their sum. None
            for equal parts.
        ideal: the least that each loss can be, in task order, or one number for all.

    Raises:
        ValueError: for a ``mu`` or ``preference`` out of range, or numbers for other tasks.

    Example:
        >>> losses = torch.tensor([2.0, 2.0], dtype=torch.float64)
        >>> SmoothTchebycheff().weigh(losses, {})[0].tolist()
        [0.25, 0.25]
    """

    def __init__(
        self,
        mu: float = 1.0,
        preference: Sequence[float] | None = None,
        ideal: float | Sequence[float] = 0.0,
    ) -> None:
        if not mu > 0:
            raise ValueError(f"mu is above 0, not {mu}")
        if preference is not None and not all(0 < p < math.inf for p in preference):
            raise ValueError(f"preference is a number above 0 for each task, not {preference}")
        self.mu = mu
        self.preference = None if preference is None else tuple(map(float, preference))
        self.ideal = float(ideal) if isinstance(ideal, int | float) else tuple(map(float, ideal))

    def init(self, segments: int, tasks: int) -> State:
        """Return no state; check that preference and ideal fit."""
        for name, values in (("preference", self.preference), ("ideal", self.ideal)):
            if isinstance(values, tuple) and len(values) != tasks:
                raise ValueError(
                    f"{name} {values} does not fit {tasks} tasks: give one number for each"
                )
        return {}

    def weigh(self, losses: Tensor, state: State) -> tuple[Tensor, State]:
        """Decide; the state is kept as it is."""
        present = losses.isfinite()
        preference = torch.ones_like(losses)
        if self.preference is not None:
            preference = _sent(self.preference, losses)
        preference = preference / preference.sum()
        ideal = _sent(self.ideal, losses)
        distance = torch.where(present, preference * (losses - ideal) / self.mu, -torch.inf)
        weights = preference * torch.softmax(distance, 0)
        return torch.where(present, weights, 1.0), state

    def __repr__(self) -> str:
        preference = None if self.preference is None else list(self.preference)
        ideal = list(self.ideal) if isinstance(self.ideal, tuple) else self.ideal
        return f"SmoothTchebycheff(mu={self.mu}, preference={preference}, ideal={ideal})"


def _sent(values: float | Sequence[float], losses: Tensor) -> Tensor:
    """Return ``values`` on the losses' device."""
    return to_device(torch.tensor(values, dtype=losses.dtype, device="cpu"), losses.device)
