"""Visits in ascending order, on both sides of a comparison.

PCGrad and GradVac visit the other tasks in random order, so two right implementations differ. To be
compared, ours is wrapped in :class:`Ascending` and the others run in :func:`ascending_visits`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final
from unittest import mock

import torch
from torch import Tensor

from gradsurgery import Method, Verdict


@final
class Ascending(Method):
    """Another method that needs an order, with the tasks visited in ascending order."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def init(self, segments: int, tasks: int) -> dict[str, Tensor]:
        """As the method."""
        return self._method.init(segments, tasks)

    def __call__(self, gram: Tensor, state: dict[str, Tensor]) -> Verdict:
        """As the method, in ascending order."""
        tasks = gram.shape[-1]
        order = torch.arange(tasks, device=gram.device).repeat(tasks, 1)
        return self._method(gram, state=state, order=order)

    def __repr__(self) -> str:
        return f"Ascending({self._method!r})"


@contextmanager
def ascending_visits() -> Iterator[None]:
    """Let peers visit the tasks in ascending order: they shuffle, or draw permutations, globally.

    Ours keeps out of the global generators; :class:`Ascending` does the same for it.
    """
    with (
        mock.patch("random.shuffle"),
        mock.patch("torch.randperm", side_effect=torch.arange),
    ):
        yield
