"""Sum: plain joint training, the control, with its conflicts counted and nothing changed."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gradsurgery.methods.base import Method, State, Verdict


@final
class Sum(Method):
    """The plain sum of the gradients: every weight is one.

    Example:
        >>> gram = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
        >>> Sum()(gram, {}).weights.tolist()
        [1.0, 1.0]
    """

    def __call__(self, gram: Tensor, state: State) -> Verdict:
        """Decide nothing; the state is kept as it is."""
        weights = torch.ones(gram.shape[:-1], dtype=gram.dtype, device=gram.device)
        return Verdict(weights, torch.zeros_like(gram, dtype=torch.bool), state)

    def __repr__(self) -> str:
        return "Sum()"
