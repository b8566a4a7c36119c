"""Primary: auxiliary tasks help where they agree with the primary one (Du et al. 2018, and after).

"Adapting Auxiliary Losses Using Gradient Similarity", arXiv:1812.02224, lets an auxiliary gradient
pass where its cosine with the primary one g_p is not negative. Where it is, what opposes g_p is
removed, and not the whole gradient (the projection of Yu et al. 2020, one way only):

    g_k' = g_k - min(0, g_k . g_p) / |g_p|^2 g_p         for every k but p      (1)

and the update is g_p + sum_k g_k', or with another method g_p + what that makes of the g_k'.

Promise: the primary task progresses as if alone or better, g_p . d >= |g_p|^2, and its gradient is
never touched.

Departures: Du et al. drop a conflicting gradient; (1) keeps what is orthogonal to g_p. Where a
method gives negative weights, its sum of the g_k' may oppose g_p: (1) is applied to that sum too.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, final

import torch
from torch import Tensor

from gradsurgery.methods.base import Method, State, Verdict, check_method
from gradsurgery.methods.projection import CANCELLED


@final
class Primary(Method):
    """One task whose progress the others may not hinder.

    Args:
        task: the primary one, by name, or by its position among the tasks.
        method: combines the auxiliary gradients, once they are projected; None for their sum. To
            it, the primary task is absent and has no loss.

    Raises:
        TypeError: when ``method`` is not one.
        ValueError: once the tasks are known, when the primary one is not among them.

    Example:
        Gradients (1, 0) and (-1, 1); the update is (1, 1):

        >>> gram = torch.tensor([[[1.0, -1.0], [-1.0, 2.0]]], dtype=torch.float64)
        >>> Primary(0)(gram, state={}).weights.tolist()
        [[2.0, 1.0]]
    """

    def __init__(self, task: str | int, method: Method | None = None) -> None:
        if method is not None:
            check_method(method)
            self.needs = method.needs | {"present"}  # type: ignore[misc]
            self.seed, self.degree = method.seed, method.degree
        self.task, self.method = task, method
        self._settings = repr(method)  # what tells ranks with different methods apart
        self._index = task if isinstance(task, int) else None

    def bind(self, tasks: Sequence[str]) -> Method:
        """Return the method that knows the primary task's position."""
        bound = copy(self)
        if isinstance(self.task, str):
            if self.task not in tasks:
                raise ValueError(f"the primary task {self.task!r} is none of {list(tasks)}")
            bound._index = list(tasks).index(self.task)
        if self.method is not None:
            bound.method = self.method.bind(tasks)
        return bound

    def init(self, segments: int, tasks: int) -> State:
        """Return the state of the auxiliary tasks' method."""
        self._position(tasks)
        return {} if self.method is None else self.method.init(segments, tasks)

    def check_state(self, state: State) -> None:
        """Check the state of the auxiliary tasks' method."""
        if self.method is not None:
            self.method.check_state(state)

    def __call__(self, gram: Tensor, *, state: State, **facts: Any) -> Verdict:
        """Decide; the state is that of the auxiliary tasks' method."""
        tasks = gram.shape[-1]
        index = self._position(tasks)
        primary = torch.arange(tasks, device=gram.device) == index
        dots, size = gram[..., index, :], gram[..., index, index, None]  # g_k . g_p and |g_p|^2
        opposing = torch.where((size > 0) & ~primary, dots / size, 0).clamp(max=0)
        projection = torch.eye(tasks, dtype=gram.dtype, device=gram.device)
        projection = projection - torch.where(primary, opposing.unsqueeze(-1), 0)  # row k: g_k'
        inner = self._combined(_projected(gram, projection, primary), primary, state, facts)
        weights = torch.where(primary, 0, inner.weights)
        weights = (weights.unsqueeze(-2) @ projection).squeeze(-2)
        along = (weights * dots).sum(-1, keepdim=True)
        excess = torch.where(size > 0, along / size, 0).clamp(max=0)
        altered = (opposing < 0).unsqueeze(-1) & primary
        if inner.altered is not None:
            altered = altered | inner.altered
        return Verdict(weights + torch.where(primary, 1 - excess, 0), altered, inner.state)

    def _combined(
        self, gram: Tensor, primary: Tensor, state: State, facts: dict[str, Any]
    ) -> Verdict:
        """Let the method combine the auxiliary gradients; the primary one is absent."""
        if self.method is None:
            return Verdict(torch.ones_like(gram[..., 0]), None, state)
        if "losses" in facts:
            facts["losses"] = torch.where(primary, torch.nan, facts["losses"])
        facts["present"] = facts["present"] & ~primary
        needed = {need: facts[need] for need in self.method.needs}
        return self.method(gram, state=state, **needed)

    def _position(self, tasks: int) -> int:
        if self._index is None:
            raise ValueError(
                f"{self!r} does not know which task {self.task!r} is: wrap it in GradientSurgery, "
                "or name the task by its position"
            )
        if not 0 <= self._index < tasks:
            raise ValueError(f"the primary task {self._index} is none of 0 to {tasks - 1}")
        return self._index

    def __repr__(self) -> str:
        method = "" if self.method is None else f", {self.method!r}"
        return f"Primary({self.task!r}{method})"


def _projected(gram: Tensor, projection: Tensor, primary: Tensor) -> Tensor:
    """Return the Gram matrix of the g_k', without the primary gradient.

    A g_k' of which rounding alone is left is zero: it has no direction.
    """
    rest = projection @ gram @ projection.mT
    before, after = (matrix.diagonal(dim1=-2, dim2=-1) for matrix in (gram, rest))
    gone = primary | (after <= CANCELLED**2 * before)
    return torch.where(gone.unsqueeze(-1) | gone.unsqueeze(-2), 0, rest)
