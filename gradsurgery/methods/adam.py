"""Adam for learned weights, on a vector with an entry for each task (Kingma & Ba 2015, Alg. 1).

Entries of absent tasks stay, moments and all. There is no epsilon, which would compare gradients
with an absolute size: an entry whose gradients have all been zero stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETAS = 0.9, 0.999

#: The rows of the state: first moment, second moment, and the steps that the entry has taken.
ROWS = 3


def initial(tasks: int) -> Tensor:
    """Return Adam's state before the first step, ``[3, K]`` float64."""
    return torch.zeros(ROWS, tasks, dtype=torch.float64, device="cpu")


def adam(
    values: Tensor, grads: Tensor, moves: Tensor, moments: Tensor, lr: float
) -> tuple[Tensor, Tensor]:
    """Take one step.

    Args:
        values: ``[K]``.
        grads: ``[K]``.
        moves: ``[K]`` bool, the entries that take the step.
        moments: ``[3, K]``, see :func:`initial`.
        lr: the learning rate.

    Returns:
        The new values and moments.

    Example:
        >>> values, grads = torch.zeros(2).double(), torch.tensor([5.0, 1.0]).double()
        >>> adam(values, grads, torch.tensor([True, False]), initial(2), lr=0.1)[0].tolist()
        [-0.1, 0.0]
    """
    first, second = BETAS
    grads = torch.where(moves, grads, 0)
    mean = first * moments[0] + (1 - first) * grads
    square = second * moments[1] + (1 - second) * grads**2
    steps = moments[2] + 1
    length = (square / (1 - second**steps)).sqrt()
    step = torch.where(length > 0, mean / (1 - first**steps) / length, 0)
    kept = torch.where(moves, torch.stack([mean, square, steps]), moments)
    return torch.where(moves, values - lr * step, values), kept
