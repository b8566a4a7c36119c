"""What the papers ask of the weights, and by how much weights break it.

A condition takes a Gram matrix ``[K, K]`` and weights ``[K]``, and returns by how much the paper's
own equation or inequality is broken: relative to its terms, after what rounding of the Gram matrix
explains. Nothing here is of the library; its tests use these conditions, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Condition = Callable[[Array, Array], float]

EPSILON = 2.0**-52


class Progress:
    """A Gram matrix and weights in unit gradients, and what their rounding explains.

    ``along[k]`` is d . u_k, ``noise[k]`` what rounding of the Gram matrix does to it.
    """

    def __init__(self, gram: Array, weights: Array) -> None:
        self.norms = np.sqrt(gram.diagonal())
        there = self.norms > 0
        self.norms, self.weights = self.norms[there], weights[there]
        self.cosines = gram[np.ix_(there, there)] / self.norms[:, None] / self.norms
        self.parts = self.weights * self.norms
        self.along = self.cosines @ self.parts
        self.length = self.length_of(self.parts)
        self.noise = 16 * EPSILON * len(self.parts) * np.abs(self.parts).sum()

    def length_of(self, parts: Array) -> float:
        """The length of ``sum_k parts[k] * u_k``."""
        return math.sqrt(max(float(parts @ self.cosines @ parts), 0.0))

    def beyond(self, amount: Array, size: Array | float) -> float:
        """The largest ``amount`` that rounding does not explain, relative to ``size``."""
        return float(((amount - self.noise) / np.maximum(size, 1e-300)).max(initial=0.0))


def mgda_condition(gram: Array, weights: Array) -> float:
    """d . g_k >= |d|^2, w >= 0 of sum one."""
    p = Progress(gram, weights)
    if weights.min() < 0 or abs(weights.sum() - 1) > 1e-12:
        return np.inf
    return p.beyond(p.length**2 / p.norms - p.along, p.length)


def upgrad_condition(gram: Array, weights: Array) -> float:
    """No task goes backwards."""
    p = Progress(gram, weights)
    return p.beyond(-p.along, p.length)


def dual_proj_condition(gram: Array, weights: Array) -> float:
    """No task goes backwards; v >= p, and v_k > p_k only where d . g_k = 0."""
    p = Progress(gram, weights)
    more = p.weights - 1 / len(weights)
    if (more < -1e-12).any():
        return np.inf
    held = np.where(more * p.norms > 1e-9 * p.norms.max(), np.abs(p.along), -p.along)
    return p.beyond(held, float(np.linalg.norm(p.norms)) / len(p.norms))


def cagrad_condition(gram: Array, weights: Array, c: float) -> float:
    """Within the ball, and no d of the ball has a better worst task: the dual says so."""
    p, tasks = Progress(gram, weights), len(weights)
    start = p.norms / tasks
    mean = p.length_of(start)
    radius, detour = c * mean, p.parts - start
    away = p.length_of(detour)
    bound, share = 0.0, detour / p.norms  # of the worst task's progress: g_w . g_0 + radius |g_w|
    if share.sum() > 0 and away >= radius * (1 - 1e-6):
        bound = (detour @ p.cosines @ start + radius * away) / share.sum()
    broken = p.beyond(bound / p.norms - p.along, (1 + c) * mean)
    return max(broken, p.beyond(np.array([away - radius]), radius))


def imtl_g_condition(gram: Array, weights: Array) -> float:
    """Equal projections, weights of sum one."""
    p = Progress(gram, weights)
    if abs(weights.sum() - 1) > 1e-8 * np.abs(weights).sum():
        return np.inf
    return p.beyond(p.along - p.along.mean(), abs(p.along.mean()))


def fair_condition(gram: Array, weights: Array, power: float) -> float:
    """G w = w^-power."""
    p = Progress(gram, weights)
    if p.weights.min() <= 0:
        return np.inf
    asked = p.weights**-power / p.norms
    return p.beyond(np.abs(p.along - asked), asked)


def config_condition(gram: Array, weights: Array) -> float:
    """Equal positive cosines; the length is the sum of the projections."""
    p = Progress(gram, weights)
    length = (p.norms * p.along).sum() / p.length
    unequal = p.beyond(np.abs(p.along - p.along.mean()), p.along.mean())
    return max(unequal, p.beyond(np.array([abs(length - p.length)]), p.length))


def aligned_condition(gram: Array, weights: Array, scale: str) -> float:
    """G^(1/2) w = sqrt(l) 1: the balanced gradients are orthogonal, and as long as said."""
    values, vectors = np.linalg.eigh(gram)
    tasks = len(weights)
    common = {"min": values[0], "median": values[(tasks - 1) // 2], "rmse": values.mean()}[scale]
    balanced = vectors.T @ weights * np.sqrt(values.clip(0) / common)
    aim = vectors.T @ np.ones(tasks)
    noise = 16 * EPSILON * tasks * values[-1] / values[0]
    return float((np.abs(balanced - aim).max() - noise).clip(0))


CONDITIONS: dict[str, Condition] = {
    "mgda": mgda_condition,
    "cagrad": partial(cagrad_condition, c=0.5),
    "cagrad_0.9": partial(cagrad_condition, c=0.9),
    "imtl_g": imtl_g_condition,
    "nash_mtl": partial(fair_condition, power=1.0),
    "fairgrad": partial(fair_condition, power=0.5),
    "fairgrad_0.5": partial(fair_condition, power=2.0),
    "fairgrad_5": partial(fair_condition, power=0.2),
    "upgrad": upgrad_condition,
    "dual_proj": dual_proj_condition,
    "config": config_condition,
}
