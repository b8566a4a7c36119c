"""The loss scale of the step under way: the factor that the captured gradients carry.

A task's factor is the sum of those that its backward passes got from ``join``: n
micro-batches with 1/n each are one batch with 1. The step's is the largest of its tasks', so that
tasks may come in different micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gradsurgery.transfer import float64, to_device


class StepScale:
    """The tasks' factors.

    Args:
        tasks: the tasks' names, in order.

    Example:
        >>> scale = StepScale(("a", "b", "c"))
        >>> scale.add("a", torch.tensor(512.0))
        >>> scale.add("a", torch.tensor(512.0))
        >>> scale.add("b", torch.tensor(512.0))
        >>> factors = scale.vector(torch.device("cpu"))
        >>> factors.tolist(), largest(factors).item()
        ([1024.0, 512.0, nan], 1024.0)
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self._tasks = tuple(tasks)
        self._factors: dict[str, Tensor] = {}

    def add(self, task: str, factor: Tensor) -> None:
        """Add the factor of one backward pass of ``task``."""
        factor = _scalar(factor)
        self._factors[task] = self._factors[task] + factor if task in self._factors else factor

    def settle(self, ran: Iterable[str], scale: Tensor | float | None) -> None:
        """Take ``scale`` for the tasks that ``ran``; with None, one where nothing is known."""
        for task in ran:
            if scale is not None or task not in self._factors:
                self._factors[task] = _scalar(1.0 if scale is None else scale)

    def drop(self, task: str) -> None:
        """Forget the factor of ``task``."""
        self._factors.pop(task, None)

    def clear(self) -> None:
        """Forget all factors."""
        self._factors = {}

    def vector(self, device: torch.device) -> Tensor:
        """Return ``[K]`` float64 on ``device``, NaN for a task that did not run."""
        unknown = _scalar(math.nan)
        factors = [self._factors.get(task, unknown) for task in self._tasks]
        return torch.stack([f.to(device) if f.is_cuda else to_device(f, device) for f in factors])


def largest(factors: Tensor) -> Tensor:
    """Return the scale of a step from the tasks' factors ([K]); one where it is zero."""
    scale = torch.where(factors.isnan(), -math.inf, factors).amax()
    return torch.where(scale.isfinite() & (scale != 0), scale, 1.0)


def _scalar(value: Tensor | float) -> Tensor:
    return float64(value).reshape(())
