"""What the papers' methods answer, from the gradients themselves: NumPy and SciPy, slow and direct.

Nothing here is of the library, and nothing is a function of the Gram matrix: an oracle takes the
gradients ``[K, N]`` and returns the update ``[N]``. What the papers ask of the weights is in
``benchmarks.peers.conditions``, which the benchmark of the methods reports.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import least_squares, minimize, nnls

Array = np.ndarray


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
