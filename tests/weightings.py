"""The weightings of losses as their papers write them, with autograd and torch's Adam.

Each takes the losses of successive steps, ``[T, K]``, all tasks present, and returns the weights of
each, ``[T, K]``. Nothing here is shared with the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Too small to matter: the library has none.
EPSILON = 1e-300


def uncertainty(losses: Tensor, lr: float) -> Tensor:
    """Kendall et al. 2018, twice equation 7, the noise levels trained beside the network."""
    log_variance = torch.zeros(losses.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log_variance], lr=lr, eps=EPSILON)
    weights = []
    for step in losses:
        sigma_squared = log_variance.exp()
        weights.append((1 / sigma_squared).detach())
        optimizer.zero_grad()
        (2 * (step / (2 * sigma_squared) + sigma_squared.sqrt().log())).sum().backward()
        optimizer.step()
    return torch.stack(weights)


def dwa(losses: Tensor, temperature: float, period: int) -> Tensor:
    """Liu et al. 2019, equation 7, an epoch being ``period`` steps."""
    weights = []
    for step in range(len(losses)):
        epoch = step // period
        if epoch < 2:
            weights.append([1.0] * losses.shape[1])
            continue
        last, before = (
            losses[(epoch - back) * period : (epoch - back + 1) * period].mean(0).tolist()
            for back in (1, 2)
        )
        powers = [math.exp(a / b / temperature) for a, b in zip(last, before, strict=True)]
        weights.append([len(powers) * power / sum(powers) for power in powers])
    return torch.tensor(weights, dtype=torch.float64)


def _derivative(losses: Tensor, scalar: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = losses.clone().requires_grad_()
    rows = [torch.autograd.grad(scalar(row), leaf, retain_graph=True)[0] for row in leaf]
    return torch.stack([row[t] for t, row in enumerate(rows)])


def geometric(losses: Tensor) -> Tensor:
    """Chennupati et al. 2019: the derivative of the losses' geometric mean."""
    return _derivative(losses, lambda row: row.prod() ** (1 / len(row)))


def tchebycheff(losses: Tensor, mu: float, preference: Tensor, ideal: Tensor) -> Tensor:
    """Lin et al. 2024: the derivative of the smooth Tchebycheff scalarization."""
    return _derivative(losses, lambda row: mu * (preference * (row - ideal) / mu).exp().sum().log())


def famo(losses: Tensor, lr: float, gamma: float) -> Tensor:
    """Liu et al. 2023, Algorithm 1; the losses after a step are those of the next."""
    xi = torch.zeros(losses.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([xi], lr=lr, weight_decay=gamma, eps=EPSILON)
    weights, before = [], None
    for step in losses:
        if before is not None:
            delta = before.log() - step.log()
            (xi.grad,) = torch.autograd.grad(torch.softmax(xi, 0), xi, delta)
            optimizer.step()
        z = torch.softmax(xi.detach(), 0)
        weights.append(z / step / (z / step).sum())
        before = step
    return torch.stack(weights)


def gradnorm(losses: Tensor, norms: Tensor, alpha: float, lr: float) -> Tensor:
    """Chen et al. 2018, Algorithm 1, given the norms of the unweighted gradients, ``[T, K]``."""
    tasks = losses.shape[1]
    w = torch.ones(tasks, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=lr, eps=EPSILON)
    weights = []
    for step, norm in zip(losses, norms, strict=True):
        weights.append(w.detach().clone())
        lengths = w * norm
        rates = step / losses[0]
        rates = rates / rates.mean()
        target = (lengths.mean() * rates**alpha).detach()
        optimizer.zero_grad()
        (lengths - target).abs().sum().backward()
        optimizer.step()
        with torch.no_grad():
            w *= tasks / w.sum()
    return torch.stack(weights)
