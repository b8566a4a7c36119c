"""Dynamic weight average: more weight where the loss falls less (Liu, Johns & Davison 2019).

"End-to-End Multi-Task Learning with Attention", arXiv:1803.10704, equation 7:

    w_k = K exp(r_k / T) / sum_i exp(r_i / T),   r_k = L_k(t - 1) / L_k(t - 2)

with L_k(t) the mean loss of epoch t, and w = 1 in the first two.

Promise: the weights of K tasks sum to K; equal where all losses fall at one rate.

Departures. An epoch is ``period`` steps; with 1 the losses of single batches are compared, whose
noise is larger than what an epoch changes. A task that did not run within a period keeps its mean,
and a ratio that does not exist, because a mean is not positive, counts as 1. The softmax is over
all tasks, so the weights of the present ones sum to less than K where some are absent.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gradsurgery.methods.base import State
from gradsurgery.methods.weighting import LossWeighting


@final
class DynamicWeightAverage(LossWeighting):
    """Dynamic weight average, DWA (Liu, Johns & Davison 2019, eq. 7).

    Under ``join`` one backward pass; the state is the mean losses of the last two periods, and the
    losses of this one.

    Args:
        temperature: T, above zero; the paper's 2. The larger, the more equal the weights.
        period: the steps of an epoch, over which losses are averaged.

    Raises:
        ValueError: for a ``temperature`` or ``period`` out of range.

    Example:
        >>> method = DynamicWeightAverage()
        >>> state = method.init(1, 2)
        >>> for losses in ([4.0, 1.0], [2.0, 1.0], [1.0, 1.0]):
        ...     weights, state = method.weigh(torch.tensor(losses, dtype=torch.float64), state)
        >>> [round(weight, 3) for weight in weights.tolist()]
        [0.876, 1.124]
    """

    def __init__(self, temperature: float = 2.0, period: int = 1) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is above 0, not {temperature}")
        if not (isinstance(period, int) and period >= 1):
            raise ValueError(f"period is a number of steps of at least 1, not {period}")
        self.temperature, self.period = temperature, period

    def init(self, segments: int, tasks: int) -> State:
        """Return no history: means of zero, which are not known."""
        zeros = torch.zeros(2, tasks, dtype=torch.float64, device="cpu")
        return {
            "means": zeros,  # of period t - 2, and t - 1
            "totals": zeros.clone(),  # sum and count of period t
            "steps": zeros[0, :1].clone(),  # of period t
        }

    def weigh(self, losses: Tensor, state: State) -> tuple[Tensor, State]:
        """Decide by the means of the last two periods, then add these losses to the third."""
        before, last = state["means"]
        ratio = torch.where((last > 0) & (before > 0), last / before, 1.0)
        ratio = ratio.clamp(max=torch.finfo(ratio.dtype).max)
        weights = len(losses) * torch.softmax(ratio / self.temperature, 0)
        return torch.where(losses.isfinite(), weights, 1.0), self._with(losses, state)

    def _with(self, losses: Tensor, state: State) -> State:
        known = losses.isfinite()
        sums, counts = state["totals"] + torch.stack(
            [torch.where(known, losses, 0), known.to(losses.dtype)]
        )
        steps = state["steps"] + 1
        ends = steps == self.period
        last = state["means"][1]
        mean = torch.where(counts > 0, sums / counts, last)
        return {
            "means": torch.where(ends, torch.stack([last, mean]), state["means"]),
            "totals": torch.where(ends, 0, torch.stack([sums, counts])),
            "steps": torch.where(ends, 0, steps),
        }

    def __repr__(self) -> str:
        return f"DynamicWeightAverage(temperature={self.temperature}, period={self.period})"
