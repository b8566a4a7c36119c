"""Sham surgery: PCGrad's weights of the step before, a control of gradient surgery.

What surgery gains over the plain sum may come of the weights that it gives the tasks, whichever
batch they were made for, or of what those weights know of the batch. The sham keeps the first
alone.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from gradsurgery import Method, PCGrad, Verdict


@final
class Sham(Method):
    """PCGrad's weights of the step before, on the gradients of this one.

    The weights are surgery's own in mean, spread and course; only that they belong to another
    batch. The first step takes the plain sum. Nothing is projected, so alterations are not
    counted.

    Args:
        seed: of PCGrad's visiting order.

    Example:
        >>> Sham(seed=1)
        Sham(seed=1)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"order"})

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._surgery = PCGrad(seed=seed)

    def init(self, segments: int, tasks: int) -> dict[str, Tensor]:
        """Ones, [S, K]: the weights of the first step."""
        return {"weights": torch.ones(segments, tasks, dtype=torch.float64)}

    def __call__(self, gram: Tensor, state: dict[str, Tensor], order: Tensor) -> Verdict:
        """Return the weights that wait, [S, K], and keep this step's for the next."""
        here = self._surgery(gram, order=order, state={}).weights
        return Verdict(state["weights"], None, {"weights": here})

    def __repr__(self) -> str:
        return f"Sham(seed={self.seed})"
