"""CAGrad: the best progress of the worst task, close to the mean gradient (Liu et al. 2021).

"Conflict-Averse Gradient Descent for Multi-task Learning", arXiv:2110.14048. With the mean gradient
g_0 = 1/K sum_k g_k:

    max_d min_k g_k . d   subject to   |d - g_0| <= c |g_0|                     (3)

whose solution is d = g_0 + c |g_0| g_w / |g_w| for a convex combination g_w of the gradients
(Algorithm 1). Solved from the other end: among the d with g_k . d >= t for all k, the closest to
g_0 is a quadratic program, its distance a convex and increasing function of t, and Newton's method
finds the t at which it is c |g_0|.

Promise: no d within the ball has a larger min_k g_k . d.

Departures: solved exactly. The update is d itself: the authors' code divides it by 1 + c^2 by
default (`rescale=1`). Where a convex combination of the gradients is zero, no d has a positive
minimum, and the direction of g_w may be undefined: of the d that reach the best minimum, the one
closest to g_0 is taken.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gradsurgery.methods.base import Method, State, Verdict
from gradsurgery.methods.directions import Directions, directions, on_cpu
from gradsurgery.methods.mgda import shortest
from gradsurgery.methods.projection import CANCELLED
from gradsurgery.methods.quadratic import broken, nonnegative, solve_free

#: The radius is met within this, relative; Newton's method converges quadratically.
PRECISION = 1e-12
ROUNDS = 50
EPSILON = 2.0**-50


@final
class CAGrad(Method):
    """Conflict-averse gradient descent.

    Args:
        c: the radius of the search around the mean gradient, relative to its length; the paper's
            0.5. Zero is the mean gradient; the paper proves convergence below one.

    Raises:
        ValueError: for a negative ``c``.

    Example:
        >>> gram = torch.eye(2, dtype=torch.float64)[None]
        >>> CAGrad(c=0.5)(gram, present=torch.ones(1, 2, dtype=torch.bool), state={}).weights
        tensor([[0.7500, 0.7500]], dtype=torch.float64)
    """

    needs = frozenset({"present"})

    def __init__(self, c: float = 0.5) -> None:
        if not c >= 0:
            raise ValueError(f"c is a radius relative to the mean gradient, at least 0, not {c}")
        self.c = c

    def __call__(self, gram: Tensor, *, present: Tensor, state: State) -> Verdict:
        """Decide by (3)."""
        unit = directions(*on_cpu(gram, present))
        start = unit.mean * unit.norms
        detour = _detour(unit, start, self.c * unit.square(start).sqrt())
        return unit.verdict(unit.mean + unit.weights(detour), gram.device)

    def __repr__(self) -> str:
        return f"CAGrad(c={self.c})"


def _detour(unit: Directions, start: Tensor, radius: Tensor) -> Tensor:
    """Return d - g_0 in unit gradients, ``[S, K]``: d . u_k >= t * unit.inverse for the best t.

    Args:
        unit: the unit gradients.
        start: ``[S, K]``, g_0 in them.
        radius: ``[S, 1]``, of the ball around g_0.
    """
    along, hull = unit.dot(start), shortest(unit)
    height = unit.square(hull).sqrt()
    # No d of the ball does more for any convex combination of the gradients, so none does for t:
    over_hull = (hull * along).sum(-1, keepdim=True) + radius * height
    over_task = torch.where(unit.there, (along + radius) / unit.inverse, torch.inf)
    bound = torch.minimum(over_hull, over_task.amin(-1, keepdim=True))
    detour = torch.zeros_like(start)
    searched = radius > 0
    stuck = unit.zero.any(-1, keepdim=True) | (height <= CANCELLED * hull.sum(-1, keepdim=True))
    if stuck.any():  # t = 0 is as good as it gets, if the ball reaches that far
        at_zero = nonnegative(unit.cosines, -along)
        reached = stuck & (unit.square(at_zero).sqrt() < radius)
        detour = torch.where(reached, at_zero, detour)
        bound = torch.where(stuck, bound.clamp(max=0), bound)
        searched = searched & ~reached
    if searched.all():
        return _reach(unit, along, radius, bound, hull > 0)
    index = searched.squeeze(-1).nonzero().squeeze(-1)
    if len(index):
        part = unit.segments(index)
        detour[index] = _reach(part, *(value[index] for value in (along, radius, bound, hull > 0)))
    return detour


def _reach(unit: Directions, along: Tensor, radius: Tensor, t: Tensor, free: Tensor) -> Tensor:
    """Lower ``t`` until the closest d with d . u_k >= t * unit.inverse lies at ``radius``.

    ``free`` is a guess at the tasks whose constraints are tight.
    """
    inverse, low = unit.inverse, torch.full_like(t, -torch.inf)
    z = nonnegative(unit.cosines, t * inverse - along, free)
    for _ in range(ROUNDS):
        distance = unit.square(z).sqrt()
        off = distance - radius
        rounding = EPSILON * z.sum(-1, keepdim=True) ** 2 / radius
        if bool((off.abs() <= PRECISION * radius + rounding).all()):
            break
        low = torch.where(off < 0, t, low)  # known to be less than the answer
        # As long as the same constraints stay tight, z is linear in t:
        free = z > 0
        growth = solve_free(unit.cosines, inverse, free)
        step = _step(t - low, z * inverse, growth * inverse, distance, off)
        t, z = t + step, z + step * growth
        linear = t * inverse - along
        wrong = broken(unit.cosines, linear, z, free)
        z = nonnegative(unit.cosines, linear, free ^ wrong) if wrong.any() else z.clamp(min=0)
    return z


def _step(room: Tensor, slope: Tensor, bend: Tensor, distance: Tensor, off: Tensor) -> Tensor:
    """Return how far t is to move for the distance to become shorter by ``off``.

    Half of the slope of the squared distance is the sum of ``slope``, half of its curvature that of
    ``bend``, while the same constraints stay tight. Where that goes down by ``room`` or more, it is
    Newton's step, which does not overshoot.
    """
    half, half_bend = (value.sum(-1, keepdim=True) for value in (slope, bend))
    excess = off * (2 * distance - off)  # of the squared distance
    root = (half**2 - half_bend * excess).clamp(min=0).sqrt()
    exact, newton = -excess / (half + root), -off * distance / half
    return torch.where(half > 0, torch.where(-exact < room, exact, newton), 0)
