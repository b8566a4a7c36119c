"""GradNorm: gradients of one length, longer for tasks that lag behind (Chen et al. 2018).

"GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks",
arXiv:1711.02257, Algorithm 1. With G_k = |w_k g_k|, l_k = L_k / L_k(0) and r_k = l_k / mean l,

    update:   sum_k w_k g_k
    then:     w <- Adam(w, d/dw sum_k | G_k - mean(G) r_k^alpha |),                         (2)
              mean(G) r^alpha held constant, so that the derivative is sign(.) |g_k|
              w <- w K / sum w

Promise: where it settles, G_k is proportional to r_k^alpha. The weights sum to K.

Departures. The paper measures the gradients at the last shared layer; here it is all shared
parameters, whose norms are known anyway, and one weight for each task in all segments. Adam, with a
rate of 0.025, is the experiments' (section 5.1); the algorithm leaves the rule open, and Adam does
not see the gradients' scale. Weights that Adam would make negative become zero, from where (2)
raises them again. Weights of absent tasks stay, and those of the others keep their sum; L_k(0) is
the first loss above zero, and a negative one is refused.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gradsurgery.methods import adam
from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.weighting import check_positive


@final
class GradNorm(Method):
    """Gradient normalization (Chen et al. 2018, Algorithm 1).

    Parameters that only one task has get their gradient times the task's weight, which is that of a
    loss. The state is one weight for each task, Adam's moments, and the first losses.

    Args:
        alpha: how strongly a task that lags is pulled forward, at least 0; the paper's 1.5 for its
            experiments on NYUv2. Zero makes all gradients equally long.
        lr: Adam's learning rate for the weights, the paper's 0.025 (section 5.1).

    Raises:
        ValueError: for a negative ``alpha`` or ``lr``, and at a step with a negative loss.

    Example:
        The first gradient is three times as long, so its weight falls:

        >>> method, one = GradNorm(lr=0.1), torch.ones(2, dtype=torch.float64)
        >>> gram = torch.diag(torch.tensor([9.0, 1.0], dtype=torch.float64))[None]
        >>> facts = {"losses": one, "scale": one[0], "present": torch.ones(1, 2, dtype=torch.bool)}
        >>> verdict = method(gram, state=method.init(1, 2), **facts)
        >>> verdict.weights.tolist(), verdict.state["weights"].tolist()
        ([[1.0, 1.0]], [0.9, 1.1])
    """

    needs = frozenset({"losses", "present", "scale"})
    task_only = "weighted"

    def __init__(self, alpha: float = 1.5, lr: float = 0.025) -> None:
        if not (alpha >= 0 and lr >= 0):
            raise ValueError(f"alpha and lr are at least 0, not {alpha} and {lr}")
        self.alpha, self.lr = alpha, lr

    def init(self, segments: int, tasks: int) -> State:
        """Return weights of one; first losses of zero are not known."""
        ones = torch.ones(tasks, dtype=torch.float64, device="cpu")
        return {"weights": ones, "moments": adam.initial(tasks), "first": torch.zeros_like(ones)}

    def check_state(self, state: State) -> None:
        """Check that the weights are those of a step: not negative, with K as their sum."""
        super().check_state(state)
        weights = state.get("weights")
        if weights is None:
            return
        total, count = weights.sum().item(), len(weights)
        if (weights < 0).any() or abs(total - count) > 1e-6 * count:
            raise ValueError(
                f"the state 'weights' of {self!r} is not negative and sums to {count}, unlike "
                f"{weights.tolist()}"
            )

    def __call__(
        self, gram: Tensor, *, losses: Tensor, present: Tensor, scale: Tensor, state: State
    ) -> Verdict:
        """Decide by the weights, then move them for the next step."""
        check_positive(losses, self)
        weights, first = state["weights"], state["first"]
        first = torch.where((first == 0) & (losses > 0), losses, first)
        norms = gram.diagonal(dim1=-2, dim2=-1).sum(0).sqrt() / scale  # [K], over all segments
        moves = present.any(0) & (losses >= 0) & (first > 0)
        slope = self._slope(weights, norms, losses / first, moves)
        moved, moments = adam.adam(weights, slope, moves, state["moments"], self.lr)
        state = {"weights": _renormalized(moved, weights, moves), "moments": moments}
        decided = torch.where(losses.isnan(), 1.0, weights)
        return Verdict(decided.expand(gram.shape[:-1]).clone(), None, {**state, "first": first})

    def _slope(self, weights: Tensor, norms: Tensor, ratios: Tensor, moves: Tensor) -> Tensor:
        """Return the derivative of (2), ``[K]``."""
        count = moves.sum().clamp(min=1)
        lengths = torch.where(moves, weights * norms, 0)
        ratios = torch.where(moves, ratios, 0)
        mean = ratios.sum() / count
        rates = torch.where(mean > 0, ratios / mean, 1)
        target = lengths.sum() / count * rates**self.alpha
        return (lengths - target).sign() * norms

    def __repr__(self) -> str:
        return f"GradNorm(alpha={self.alpha}, lr={self.lr})"


def _renormalized(moved: Tensor, before: Tensor, moves: Tensor) -> Tensor:
    """Return ``moved`` without negative weights, with the sum that those that move had before."""
    moved = torch.where(moves, moved.clamp(min=0), 0)
    total = moved.sum()
    kept = torch.where(moves, before, 0).sum()
    return torch.where(moves & (total > 0), moved * (kept / total), before)
