"""Constant: fixed weights, the control that a hand-tuned sum of the losses is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.preference import check_count, numbers
from gradsurgery.transfer import to_device


@final
class Constant(Method):
    """The same weights at every step.

    Args:
        weights: a number for each task, in task order.

    Raises:
        ValueError: for numbers that are not finite.

    Example:
        >>> Constant([1, 0.5])(torch.eye(2, dtype=torch.float64)[None], {}).weights.tolist()
        [[1.0, 0.5]]
    """

    def __init__(self, weights: Sequence[float] | Tensor) -> None:
        self.weights = numbers("weights", weights, float("-inf"))

    def init(self, segments: int, tasks: int) -> State:
        """Return no state; check that the weights fit."""
        check_count("weights", self.weights, tasks)
        return {}

    def __call__(self, gram: Tensor, state: State) -> Verdict:
        """Decide nothing; the state is kept as it is."""
        host = torch.tensor(self.weights, dtype=torch.float64, device="cpu")
        weights = to_device(host, gram.device)
        return Verdict(weights.expand(gram.shape[:-1]).clone(), None, state)

    def __repr__(self) -> str:
        return f"Constant({list(self.weights)})"
