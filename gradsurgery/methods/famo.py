"""FAMO: all losses fall at one rate, without their gradients (Liu, Feng, Stone & Liu 2023).

"FAMO: Fast Adaptive Multitask Optimization", arXiv:2306.03792, Algorithm 1. With z = softmax(xi),

    update:   sum_k w_k g_k,   w_k = c z_k / L_k,   c = 1 / sum_k (z_k / L_k)               (9)
    then:     xi <- Adam(xi, d + gamma xi),   d = J' (log L(before) - log L(after)),
              J the Jacobian of softmax at xi                                               (10)

so that the tasks whose log losses fall less than the others' gain weight.

Promise: the weights sum to one. All losses times s give the update times s.

Departures. In (10) the authors' code evaluates the batch's losses once more after the step, which
is one forward pass more; here the next step's losses stand for them, on the next batch: no pass
more, and the noise of batches enters, which Adam averages. Their code adds 1e-8 to the losses, an
absolute size to compare them with: here a loss of zero, which cannot fall, has weight zero, as if
its task were absent, and a negative one is refused. Logits of absent tasks stay, and J is that of
the others.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gradsurgery.methods import adam
from gradsurgery.methods.base import State
from gradsurgery.methods.weighting import LossWeighting, check_positive


@final
class FAMO(LossWeighting):
    """Fast adaptive multitask optimization (Liu, Feng, Stone & Liu 2023, Algorithm 1).

    Under ``join`` one backward pass; losses are not negative. The state is one logit for each task,
    Adam's moments, and the last losses. On a GPU the host waits for the losses, to refuse negative
    ones.

    Args:
        lr: Adam's learning rate for the logits, the authors' 0.025.
        gamma: the logits' decay, the authors' 0.01.

    Raises:
        ValueError: for a negative ``lr`` or ``gamma``, and at a step with a negative loss.

    Example:
        The first loss halves and the second stays, so the second gains:

        >>> method = FAMO(lr=0.1)
        >>> state = method.init(1, 2)
        >>> for losses in ([2.0, 1.0], [1.0, 1.0]):
        ...     weights, state = method.weigh(torch.tensor(losses, dtype=torch.float64), state)
        >>> [round(weight, 3) for weight in weights.tolist()]
        [0.45, 0.55]
    """

    def __init__(self, lr: float = 0.025, gamma: float = 0.01) -> None:
        if not (lr >= 0 and gamma >= 0):
            raise ValueError(f"lr and gamma are at least 0, not {lr} and {gamma}")
        self.lr, self.gamma = lr, gamma

    def init(self, segments: int, tasks: int) -> State:
        """Return equal logits; losses of zero are not known."""
        zeros = torch.zeros(tasks, dtype=torch.float64, device="cpu")
        return {"logits": zeros, "moments": adam.initial(tasks), "last": zeros.clone()}

    def weigh(self, losses: Tensor, state: State) -> tuple[Tensor, State]:
        """Let the logits follow the losses' last change, then decide by them."""
        check_positive(losses, self)
        present = losses > 0  # not NaN either
        logits, moments = self._moved(losses, present, state)
        logs = torch.where(present, losses, 1).log()
        weights = _softmax(logits - logs, present)  # z / L, over its sum
        last = torch.where(present, losses, state["last"])
        weights = torch.where(losses.isnan(), 1.0, weights)
        return weights, {"logits": logits, "moments": moments, "last": last}

    def _moved(self, losses: Tensor, present: Tensor, state: State) -> tuple[Tensor, Tensor]:
        logits, last = state["logits"], state["last"]
        known = present & (last > 0)
        fall = torch.where(known, last, 1).log() - torch.where(known, losses, 1).log()
        share = _softmax(logits, known)
        slope = share * (fall - (share * fall).sum())  # J' fall
        return adam.adam(logits, slope + self.gamma * logits, known, state["moments"], self.lr)

    def __repr__(self) -> str:
        return f"FAMO(lr={self.lr}, gamma={self.gamma})"


def _softmax(logits: Tensor, among: Tensor) -> Tensor:
    """Return the softmax ``among`` some of the tasks; zero for the others."""
    largest = torch.where(among, logits, -torch.inf).amax()
    powers = torch.where(among, (logits - largest).exp(), 0)
    return torch.where(among, powers / powers.sum(), 0)
