"""What the papers' methods answer, from the gradients themselves: NumPy and SciPy, slow and direct.

Nothing here is of the library, and nothing is a function of the Gram matrix but the conditions.

* An oracle takes the gradients ``[K, N]`` and returns the update ``[N]``.
* A condition takes a Gram matrix and weights, and returns by how much the paper's own equation or
  inequality is broken: relative to its terms, after what rounding of the Gram matrix explains.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import least_squares, minimize, nnls

Array = np.ndarray
EPSILON = 2.0**-52


def hull(grads: Array) -> Array:
    """Weights of the shortest point of the convex hull, by non-negative least squares."""
    size = np.linalg.norm(grads, axis=1).min()
    lifted = np.vstack([grads.T / size, np.ones(len(grads))])
    x = nnls(lifted, np.append(np.zeros(grads.shape[1]), 1.0), maxiter=10_000)[0]
    return x / x.sum()


def onto_dual_cone(grads: Array, vector: Array) -> Array:
    """The vector closest to ``vector`` that has no negative dot product with a gradient."""
    units = grads / np.linalg.norm(grads, axis=1, keepdims=True)
    return vector + units.T @ nnls(units.T, -vector, maxiter=10_000)[0]


def mgda(grads: Array) -> Array:
    return hull(grads) @ grads


def upgrad(grads: Array) -> Array:
    return np.mean([onto_dual_cone(grads, g) for g in grads], axis=0)


def dual_proj(grads: Array) -> Array:
    return onto_dual_cone(grads, grads.mean(0))


def cagrad(grads: Array, c: float) -> Array:
    """Equation (4), the dual on the simplex, from a few starts."""
    mean, tasks = grads.mean(0), len(grads)
    radius = c * np.linalg.norm(mean)

    def dual(w: Array) -> float:
        return float(w @ grads @ mean + radius * np.linalg.norm(w @ grads))

    starts = [np.full(tasks, 1 / tasks), *(0.9 * np.eye(tasks) + 0.1 / tasks)]
    sums = {"type": "eq", "fun": lambda w: w.sum() - 1}
    options = {"ftol": 1e-15, "maxiter": 1000}
    results = [
        minimize(dual, w, bounds=[(0, 1)] * tasks, constraints=sums, options=options)
        for w in starts
    ]
    best = min(results, key=lambda result: result.fun).x @ grads
    return mean + radius * best / np.linalg.norm(best)


def imtl_g(grads: Array) -> Array:
    """The paper's closed form."""
    units = grads / np.linalg.norm(grads, axis=1, keepdims=True)
    between, across = grads[0] - grads[1:], units[0] - units[1:]
    rest = grads[0] @ across.T @ np.linalg.inv(between @ across.T)
    return np.append(1 - rest.sum(), rest) @ grads


def fair(grads: Array, power: float) -> Array:
    """``G w = w ** -power``: the minimum of a convex function, then the equation itself."""
    gram = grads @ grads.T

    def equations(logarithms: Array) -> Array:
        w = np.exp(logarithms)
        return w**power * (gram @ w) - 1

    def objective(logarithms: Array) -> tuple[float, Array]:
        w = np.exp(logarithms)
        utility = logarithms if power == 1 else w ** (1 - power) / (1 - power)
        return w @ gram @ w / 2 - utility.sum(), w * (gram @ w) - w ** (1 - power)

    start = -np.log(gram.diagonal()) / (1 + power)
    near = minimize(objective, start, jac=True, method="BFGS").x
    return np.exp(least_squares(equations, near, xtol=1e-15, ftol=1e-15, gtol=1e-15).x) @ grads


def aligned(grads: Array, scale: str) -> Array:
    left, values, right = np.linalg.svd(grads, full_matrices=False)
    kept = values > 1e-12 * values[0]
    left, values, right = left[:, kept], values[kept], right[kept]
    common = {
        "min": values[-1],
        "median": values[len(values) // 2],
        "rmse": np.sqrt((values**2).mean()),
    }
    return common[scale] * left.sum(0) @ right


def config(grads: Array) -> Array:
    units = grads / np.linalg.norm(grads, axis=1, keepdims=True)
    best = np.linalg.pinv(units) @ np.ones(len(grads))
    best /= np.linalg.norm(best)
    return (grads @ best).sum() * best


ORACLES: dict[str, Callable[[Array], Array]] = {
    "mgda": mgda,
    "cagrad": lambda grads: cagrad(grads, 0.5),
    "cagrad_0.9": lambda grads: cagrad(grads, 0.9),
    "imtl_g": imtl_g,
    "nash_mtl": lambda grads: fair(grads, 1.0),
    "fairgrad": lambda grads: fair(grads, 0.5),
    "fairgrad_0.5": lambda grads: fair(grads, 2.0),
    "fairgrad_5": lambda grads: fair(grads, 0.2),
    "aligned_mtl": lambda grads: aligned(grads, "min"),
    "aligned_mtl_median": lambda grads: aligned(grads, "median"),
    "aligned_mtl_rmse": lambda grads: aligned(grads, "rmse"),
    "upgrad": upgrad,
    "dual_proj": dual_proj,
    "config": config,
}


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
        self.length = np.sqrt(max(self.parts @ self.along, 0.0))
        self.noise = 16 * EPSILON * len(self.parts) * np.abs(self.parts).sum()

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
    return p.beyond(held, np.linalg.norm(p.norms) / len(p.norms))


def cagrad_condition(gram: Array, weights: Array, c: float) -> float:
    """Within the ball, and no d of the ball has a better worst task: the dual says so."""
    p, tasks = Progress(gram, weights), len(weights)
    start = p.norms / tasks
    mean = np.sqrt(max(start @ p.cosines @ start, 0.0))
    radius, detour = c * mean, p.parts - start
    away = np.sqrt(max(detour @ p.cosines @ detour, 0.0))
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


CONDITIONS: dict[str, Callable[[Array, Array], float]] = {
    "mgda": mgda_condition,
    "cagrad": lambda gram, weights: cagrad_condition(gram, weights, 0.5),
    "cagrad_0.9": lambda gram, weights: cagrad_condition(gram, weights, 0.9),
    "imtl_g": imtl_g_condition,
    "nash_mtl": lambda gram, weights: fair_condition(gram, weights, 1.0),
    "fairgrad": lambda gram, weights: fair_condition(gram, weights, 0.5),
    "fairgrad_0.5": lambda gram, weights: fair_condition(gram, weights, 2.0),
    "fairgrad_5": lambda gram, weights: fair_condition(gram, weights, 0.2),
    "upgrad": upgrad_condition,
    "dual_proj": dual_proj_condition,
    "config": config_condition,
}
