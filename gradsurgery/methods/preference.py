"""One number for each task: constant weights, and preferences with the methods that have one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradsurgery.methods.base import Method, State
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


class Preferring(Method):
    """A method that combines the tasks by a preference p, and has no state.

    Args:
        preference: p, a non-negative number for each task in order; None for 1/K each, K being the
            number of present tasks.

    Raises:
        ValueError: for numbers that are negative or not finite.
    """

    needs = frozenset({"present"})

    def __init__(self, preference: Sequence[float] | Tensor | None = None) -> None:
        self.preference = None if preference is None else numbers("preference", preference, 0)

    def init(self, segments: int, tasks: int) -> State:
        """Return no state; check that the preference fits."""
        check_count("preference", self.preference, tasks)
        return {}

    def preference_of(self, present: Tensor) -> Tensor:
        """Return p, zero for absent tasks: ``[S, K]`` float64, as ``present`` ([S, K] bool)."""
        if self.preference is None:
            return uniform(present)
        preference = torch.tensor(self.preference, dtype=torch.float64, device=present.device)
        return torch.where(present, preference, 0)

    def __repr__(self) -> str:
        preference = "" if self.preference is None else f"preference={self.preference}"
        return f"{type(self).__name__}({preference})"
