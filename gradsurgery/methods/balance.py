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
STEPS = torch.tensor([1.0, 30.0, 5.0, 0.3, 0.05], dtype=torch.float64, device="cpu")
DAMPED = torch.tensor([1.0, 0.1], dtype=torch.float64, device="cpu")
FLOOR = 0.05
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
    soft = matrix + ridge * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    rough, _ = _newton(soft, factors, power, _start(soft, factors, power), 100, ROUGH)
    z, solved = _newton(matrix, factors, power, rough, 40, RESIDUAL)
    if not solved.all():
        lost = ~solved
        z[lost], _ = _newton(soft[lost], factors[lost], power, rough[lost], 100, RESIDUAL)
    return z


def _start(matrix: Tensor, factors: Tensor, power: float) -> Tensor:
    """Return the answer for C = I, scaled so that the sum of all equations times z holds."""
    z = factors ** (1 / (1 + power))
    ratio = (factors * z ** (1 - power)).sum(-1) / (z * _times(matrix, z)).sum(-1)
    return z * ratio.unsqueeze(-1) ** (1 / (1 + power))


def _newton(
    matrix: Tensor, factors: Tensor, power: float, start: Tensor, rounds: int, residual: float
) -> tuple[Tensor, Tensor]:
    """Return the last iterate, and where ``[S]`` it solves the equations."""
    z = start.clone()
    solved = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    left = torch.arange(len(z), device=z.device)
    for _ in range(rounds):
        point, c, f = z[left], matrix[left], factors[left]
        fair = f * point ** (1 - power)
        excess = point * _times(c, point) - fair
        noise = 4 * EPSILON * point * point.sum(-1, keepdim=True)
        holds = (excess.abs() <= residual * fair + noise).all(-1)
        solved[left] = holds & (noise < LOST * fair).all(-1)
        open_ = ~holds & (noise < fair).all(-1)  # else z grows without bound
        left = left[open_]
        if not len(left):
            break
        point, c, f, fair, excess = (v[open_] for v in (point, c, f, fair, excess))
        hessian = point.unsqueeze(-1) * c * point.unsqueeze(-2)
        hessian.diagonal(dim1=-2, dim2=-1).add_(power * fair)
        # To a unit diagonal: entries of z may be twenty orders of magnitude apart.
        scale = hessian.diagonal(dim1=-2, dim2=-1).rsqrt()
        scaled = scale.unsqueeze(-1) * hessian * scale.unsqueeze(-2)
        step = scale * torch.linalg.solve_ex(scaled, -scale * excess)[0]
        near = bool((step.abs() < 0.1).all())  # nothing to search for
        z[left] = point * (1 + step) if near else _best(c, f, power, point, step)
    return z, solved


def _best(matrix: Tensor, factors: Tensor, power: float, z: Tensor, step: Tensor) -> Tensor:
    """Return the lowest point along ``z (1 + t step)``; the full step where rounding decides."""
    inside = 0.9 / (-step).amax(-1, keepdim=True).clamp(min=0.9)
    tried = torch.cat([STEPS[:, None, None] * step, DAMPED[:, None, None] * inside * step])
    growth = (1 + tried).clamp(min=FLOOR)
    points = growth * z  # [T, S, K]
    if power == 1:
        gain = factors * growth.log()
    else:
        gain = factors * (points ** (1 - power) - z ** (1 - power)) / (1 - power)
    change = ((points - z) * _times(matrix, points + z) / 2 - gain).sum(-1)
    noise = 8 * EPSILON * (z.sum(-1) ** 2 + gain.abs().amax(0).sum(-1))
    index = torch.where(change[0] <= 0.3 * change.amin(0) + noise, 0, change.argmin(0))
    return points[index, torch.arange(len(z), device=z.device)]


def _times(matrix: Tensor, z: Tensor) -> Tensor:
    return (matrix @ z.unsqueeze(-1)).squeeze(-1)
