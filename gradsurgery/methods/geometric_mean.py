"""Geometric mean: the product of the losses instead of their sum (Chennupati et al. 2019).

"MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task Learning",
arXiv:1904.08492, equation 3:

    L = prod_k L_k^(1/K),   so   w_k = dL/dL_k = L / (K L_k)

Promise: a loss in other units gives the same direction. All losses times s give the update times s.

Departures: none. The mean is over the present tasks. A loss of zero cannot fall, and has weight
zero, as if its task were absent; a negative one is refused.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gradsurgery.methods.base import State
from gradsurgery.methods.weighting import LossWeighting, check_positive


@final
class GeometricMean(LossWeighting):
    """The geometric mean of the losses (Chennupati et al. 2019, eq. 3); they are not negative.

    Under ``join`` one backward pass; no state. On a GPU the host waits for the losses, to refuse
    negative ones.

    Raises:
        ValueError: at a step with a negative loss.

    Example:
        >>> losses = torch.tensor([4.0, 1.0], dtype=torch.float64)
        >>> GeometricMean().weigh(losses, {})[0].tolist()
        [0.25, 1.0]
    """

    def weigh(self, losses: Tensor, state: State) -> tuple[Tensor, State]:
        """Decide; the state is kept as it is."""
        check_positive(losses, self)
        counts = losses > 0  # not NaN either
        logs = torch.where(counts, losses, 1).log()
        number = counts.sum().clamp(min=1)
        weights = (logs.sum() / number - logs).exp() / number
        return torch.where(counts, weights, torch.where(losses == 0, 0.0, 1.0)), state

    def __repr__(self) -> str:
        return "GeometricMean()"
