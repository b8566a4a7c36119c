"""One number for each task: preferences and constant weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradsurgery.methods.directions import uniform


def numbers(what: str, values: Sequence[float] | Tensor, smallest: float) -> tuple[float, ...]:
    """Return ``values`` as plain numbers.

    Raises:
        ValueError: when they are not finite, or below ``smallest``; ``what`` names them.

    Example:
        >>> numbers("preference", [1, 2], smallest=0)
        (1.0, 2.0)
    """
    plain = tuple(float(value) for value in values)
    if not plain or not all(math.isfinite(value) and value >= smallest for value in plain):
        at_least = f" of at least {smallest}" if math.isfinite(smallest) else ""
        raise ValueError(f"{what} is a finite number{at_least} for each task, not {values}")
    return plain


def check_count(what: str, values: Sequence[float] | None, tasks: int) -> None:
    """Check that there is a number for each of the tasks.

    Raises:
        ValueError: when there is not.
    """
    if values is not None and len(values) != tasks:
        raise ValueError(
            f"{what} {values} does not fit {tasks} tasks: give one number for each, in task order"
        )


def preference_or_mean(values: Sequence[float] | None, present: Tensor) -> Tensor:
    """Return the preference, or equal parts for the present tasks where there is none.

    Args:
        values: the K preferences, or None.
        present: ``[S, K]`` bool.

    Returns:
        ``[S, K]`` float64, zero for absent tasks.
    """
    if values is None:
        return uniform(present)
    return torch.where(present, torch.tensor(values, dtype=torch.float64, device=present.device), 0)
