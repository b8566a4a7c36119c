"""Small convex quadratic programs over non-negative variables, many at once.

    minimize  1/2 x' A x - b' x   subject to   x >= 0

with A positive semidefinite and of unit size, as a matrix of cosines is. Its answer is known by the
set of variables that are free, x_F = A_FF^-1 b_F, with no variable below zero (x_F >= 0) and no
slope that would pull another one up (A x - b >= 0). Two searches for that set:

* exchange all variables that break a condition at once: a few rounds, most of the time, but it may
  go in circles (block principal pivoting, Portugal, Judice & Vicente 1994);
* what it leaves unsolved goes to the active-set method of Lawson & Hanson (1974), which frees the
  variable of steepest slope, one at a time, and goes no further than to the first that reaches
  zero: the objective falls with every step, so it ends, also where A is singular.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

#: Added to A's diagonal: a hundred times its rounding. Dependent gradients make A singular.
RIDGE = 1e-14
#: A condition counts as kept within this, relative to the size of b and x.
TOLERANCE = 1e-11
#: Rounds of exchanging before the slower search takes over; they are seldom more than six.
ROUNDS = 10


def nonnegative(matrix: Tensor, linear: Tensor, free: Tensor | None = None) -> Tensor:
    """Minimize ``1/2 x' matrix x - linear' x`` over ``x >= 0``.

    Args:
        matrix: ``[B, K, K]`` float64, positive semidefinite, entries of size one.
        linear: ``[B, K]``.
        free: ``[B, K]`` bool, a guess at the variables above zero.

    Returns:
        ``[B, K]``.

    Example:
        >>> nonnegative(torch.eye(2)[None].double(), torch.tensor([[3.0, -1.0]]).double()).tolist()
        [[3.0, 0.0]]
    """
    matrix = matrix.expand(len(linear), -1, -1)
    x, free, solved = _exchange(matrix, linear, linear > 0 if free is None else free, ROUNDS)
    if not solved.all():
        rest = ~solved
        x[rest], free[rest] = _active_set(matrix[rest], linear[rest], x[rest])
    refined = x - solve_free(matrix, _gradient(matrix, linear, x), free)  # of the ridge's part
    keeps = (refined >= -_tolerance(linear, x)).all(-1, keepdim=True)
    return torch.where(keeps, refined.clamp(min=0), x)


def _exchange(
    matrix: Tensor, linear: Tensor, free: Tensor, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Exchange all at once; return x, the free variables, and where ``[B]`` that is the answer."""
    trial = solve_free(matrix, linear, free)
    wrong = broken(matrix, linear, trial, free)
    x, solved = trial.clamp(min=0), ~wrong.any(-1)
    if rounds == 1 or solved.all():
        return x, free, solved
    free = free ^ wrong
    if not solved.any():
        return _exchange(matrix, linear, free, rounds - 1)
    left = ~solved
    again = _exchange(matrix[left], linear[left], free[left], rounds - 1)
    for values, fresh in zip((x, free, solved), again, strict=True):
        values[left] = fresh
    return x, free, solved


def broken(matrix: Tensor, linear: Tensor, x: Tensor, free: Tensor) -> Tensor:
    """Return the variables ``[B, K]`` bool that keep ``x``, solved on ``free``, from the answer."""
    return torch.where(free, x, _gradient(matrix, linear, x)) < -_tolerance(linear, x)


def _active_set(matrix: Tensor, linear: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Lawson & Hanson's method from ``x`` on; return x and the free variables."""
    tasks = linear.shape[-1]
    x, free = x.clone(), x > 0
    left = torch.arange(len(linear), device=linear.device)
    for _ in range(10 * tasks):
        a, b, f, start = matrix[left], linear[left], free[left], x[left]
        trial = solve_free(a, b, f)
        below = f & (trial <= 0)
        crossing = torch.where(below, start / (start - trial), torch.inf)
        part = crossing.amin(-1, keepdim=True)
        reached = below & (crossing <= part)
        cut = start + part.clamp(max=1) * (trial - start)
        blocked = below.any(-1, keepdim=True)
        point = torch.where(f & ~reached, torch.where(blocked, cut, trial), 0).clamp(min=0)
        slope = torch.where(f, torch.inf, _gradient(a, b, point))
        steepest, entering = slope.min(-1, keepdim=True)
        enters = ~blocked & (steepest < -_tolerance(b, point))
        x[left] = point
        free[left] = (f & ~reached).scatter(-1, entering, enters | f.gather(-1, entering))
        left = left[(blocked | enters).squeeze(-1)]
        if not len(left):
            break
    return x, free


def solve_free(matrix: Tensor, right: Tensor, free: Tensor) -> Tensor:
    """Solve ``A_FF x_F = right_F`` (``[B, K]``); zero outside of F."""
    part = matrix * (free.unsqueeze(-1) & free.unsqueeze(-2))
    part.diagonal(dim1=-2, dim2=-1).add_(torch.where(free, RIDGE, 1.0))
    solution: Tensor = torch.linalg.solve_ex(part, torch.where(free, right, 0))[0]
    return solution


def _gradient(matrix: Tensor, linear: Tensor, x: Tensor) -> Tensor:
    return torch.bmm(matrix, x.unsqueeze(-1)).squeeze(-1) - linear


def _tolerance(linear: Tensor, x: Tensor) -> Tensor:
    largest = partial(torch.linalg.vector_norm, ord=math.inf, dim=-1, keepdim=True)
    tolerance: Tensor = TOLERANCE * (largest(linear) + largest(x))
    return tolerance
