"""Fair weights: the positive solution of C z = f z^-p, by Newton's method, many at once.

For C positive definite and f, p > 0 it is the only minimum of the strictly convex

    1/2 z' C z - sum_k f_k z_k^(1 - p) / (1 - p)        (log z_k where p = 1),  z > 0

Newton steps are taken relative to z, so nothing depends on the sizes of its entries. Where a convex
combination of the unit gradients is zero there is no solution: the z of these tasks grow without
bound, and what they add up to, along with it, is lost in rounding. There the solution of
(C + s I) z = f z^-p with a small s takes its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: How long z may grow where it cancels, for f = 1: float32 gradients still add up to four digits.
LONG = 1e4
#: How exactly each equation is to hold, relative, beyond the rounding of C.
RESIDUAL = 1e-10
#: How exactly before the last, quadratic part of the search.
ROUGH = 0.3
#: A solution whose equations rounding of C can break by more than this is none: for p = 1 that is
#: where z is 1e5 times as long as what it adds up to.
LOST = 1e-5
#: Parts of a Newton step that are tried, the best is taken; z falls to no less than a twentieth.
STEPS = torch.tensor([1.0, 30.0, 5.0, 0.3, 0.05], dtype=torch.float64, device="cpu").view(
    -1, 1, 1, 1
)
DAMPED = torch.tensor([1.0, 0.1], dtype=torch.float64, device="cpu").view(-1, 1, 1, 1)
FLOOR = 0.05
#: Equations broken by less than this, relative, take the full step.
NEAR = 0.5
EPSILON = 2.0**-52


def balance(matrix: Tensor, factors: Tensor, power: float) -> Tensor:
    """Solve ``matrix @ z = factors * z ** -power`` for z > 0.

    Args:
        matrix: ``[S, K, K]`` float64, positive semidefinite with a unit diagonal.
        factors: ``[S, K]``, positive.
        power: positive.

    Returns:
        ``[S, K]``, positive and finite.

    Example:
        >>> balance(torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]).double(), torch.ones(1, 2).double(), 1)
        tensor([[0.8165, 0.8165]], dtype=torch.float64)
    """
    ridge = LONG ** -min(1 + power, 3)
    soft = matrix / (1 + ridge)
    soft.diagonal(dim1=-2, dim2=-1).fill_(1)
    factors = factors.unsqueeze(-1)
    rough, _ = _newton(soft, factors, power, _start(soft, factors, power), 100, ROUGH)
    z, unsolved = _newton(matrix, factors, power, rough, 40, RESIDUAL)
    if unsolved:
        lost = torch.tensor(unsolved, dtype=torch.int64, device=z.device)
        z[lost], _ = _newton(soft[lost], factors[lost], power, rough[lost], 100, RESIDUAL)
    return z.squeeze(-1)


def _start(matrix: Tensor, factors: Tensor, power: float) -> Tensor:
    """Return the answer for C = I, scaled so that the sum of all equations times z holds."""
    z = factors ** (1 / (1 + power))
    ratio = _fair(factors, power, z).sum(-2, keepdim=True) / (z.mT @ (matrix @ z))
    return z * ratio ** (1 / (1 + power))


def _fair(factors: Tensor, power: float, z: Tensor) -> Tensor:
    """Return the right-hand sides times z."""
    return factors if power == 1 else factors * z ** (1 - power)


def _newton(
    matrix: Tensor, factors: Tensor, power: float, start: Tensor, rounds: int, residual: float
) -> tuple[Tensor, list[int]]:
    """Return the last iterate ``[S, K, 1]``, and the segments whose equations it does not solve."""
    z, unsolved = start.clone(), set(range(len(start)))
    left, point, c, f = list(unsolved), start, matrix, factors
    for _ in range(rounds):
        fair = _fair(f, power, point)
        excess = point * (c @ point) - fair
        noise = point * (4 * EPSILON * point.sum(-2, keepdim=True))
        # By segment, relative: by how much an equation is broken, what rounding can break it by.
        broken = (torch.cat([excess.abs() - noise, noise], -1) / fair).amax(-2).tolist()
        unsolved -= {
            s
            for s, (by, least) in zip(left, broken, strict=True)
            if by <= residual and least < LOST
        }
        # Where rounding breaks an equation by all of it, z grows without bound.
        open_ = [n for n, (by, least) in enumerate(broken) if by > residual and least < 1]
        if not open_:
            break
        if len(open_) < len(left):
            z[left] = point
            left = [left[n] for n in open_]
            point, c, f, fair, excess = (v[open_] for v in (point, c, f, fair, excess))
        # To a unit diagonal: entries of z may be twenty orders of magnitude apart.
        scale = (point * point + power * fair).rsqrt()
        unit = scale * point
        hessian = unit * c * unit.mT
        hessian.diagonal(dim1=-2, dim2=-1).fill_(1)
        step = scale * torch.linalg.solve_ex(hessian, -scale * excess)[0]
        near = all(broken[n][0] < NEAR for n in open_)  # nothing to search for
        point = point * (1 + step).clamp(min=FLOOR) if near else _best(c, f, power, point, step)
    z[left] = point
    return z, sorted(unsolved)


def _best(matrix: Tensor, factors: Tensor, power: float, z: Tensor, step: Tensor) -> Tensor:
    """Return the lowest point along ``z (1 + t step)``; the full step where rounding decides."""
    inside = 0.9 / (-step).amax(-2, keepdim=True).clamp(min=0.9)
    tried = torch.cat([STEPS * step, DAMPED * inside * step])  # [T, S, K, 1]
    growth = (1 + tried).clamp(min=FLOOR)
    points = growth * z
    if power == 1:
        gain = factors * growth.log()
    else:
        gain = factors * (points ** (1 - power) - z ** (1 - power)) / (1 - power)
    change = ((points - z) * (matrix @ (points + z)) / 2 - gain).sum((-2, -1))
    noise = 8 * EPSILON * (z.sum((-2, -1)) ** 2 + gain.abs().amax(0).sum((-2, -1)))
    index = torch.where(change[0] <= 0.3 * change.amin(0) + noise, 0, change.argmin(0))
    return points[index, torch.arange(len(z), device=z.device)]
