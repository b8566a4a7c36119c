"""PCGrad and GradVac on explicit float64 vectors, from the two papers alone.

The library never forms a modified gradient: it works on the K x K Gram matrix. Here everything is
done the way the papers write it, on vectors of N numbers, and no line is shared with the library.

* PCGrad: Yu et al. 2020, "Gradient Surgery for Multi-Task Learning", Algorithm 1.
* GradVac: Wang et al. 2020, "Gradient Vaccine", Algorithm 1, with the documented cap.

How to compare. A Gram matrix known to a relative ``precision`` fixes the part of one gradient
across another only to sqrt(precision), and a visit with a target near one multiplies that part.
``Answer.doubt`` bounds what this can do to the update, so a test asks for
``|update - answer.update| <= tolerance * sum of norms + answer.doubt``: for well-conditioned
gradients the doubt is of the order of the precision. A decision can be told apart from
rounding only where ``Answer.certain`` says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

CAP = 100.0  # no visit grows a gradient beyond CAP |s| / K, s the plain sum of K gradients
LARGEST_TARGET = 1 - 1e-15  # where cosines of float64 can still be told from one
ZERO = 1e-7  # a modified gradient this small against its parts has been cancelled


@dataclass
class Answer:
    """What the papers say, and how well a Gram matrix can know it."""

    update: np.ndarray  # [N]
    parts: np.ndarray  # [K, N], the modified gradients; the update is their sum
    altered: np.ndarray  # [K, K] bool, g_i' received a multiple of g_j
    target: np.ndarray  # [K, K], after the step
    certain: np.ndarray  # [K, K] bool, the decision altered[i, j] is beyond rounding
    doubt: float  # bound on the update's error, absolute
    target_doubt: np.ndarray  # [K, K], bound on the targets' error


def pcgrad(grads: np.ndarray, order: np.ndarray, precision: float = 1e-14) -> Answer:
    """Yu et al. 2020, Algorithm 1, for ``grads`` [K, N] and the visiting ``order`` [K, K].

    For each i: g_i' = g_i; for j in order[i], j != i: if g_i' . g_j < 0 then
    g_i' = g_i' - (g_i' . g_j) / |g_j|^2 g_j, with g_j the original gradient. Update = sum_i g_i'.
    """
    tasks = len(grads)
    norms = np.array([_norm(g) for g in grads])
    parts = grads.astype(np.float64).copy()
    altered = np.zeros((tasks, tasks), dtype=bool)
    certain = np.ones((tasks, tasks), dtype=bool)
    doubt = 0.0
    for i in range(tasks):
        if norms[i] == 0:
            continue
        reach = norms[i]  # the sum of the norms of what g_i' is made of
        error = 0.0
        for j in map(int, order[i]):
            if j == i or norms[j] == 0:
                continue
            unit = grads[j] / norms[j]
            along = float(parts[i] @ unit)
            error += 8 * precision * reach
            certain[i, j] = abs(along) > error
            if along < 0:
                parts[i] -= along * unit
                altered[i, j] = True
                reach += -along
        doubt += error
    return Answer(
        parts.sum(0), parts, altered, np.zeros((tasks, tasks)), certain, doubt,
        np.zeros((tasks, tasks)),
    )  # fmt: skip


def gradvac(
    grads: np.ndarray,
    order: np.ndarray,
    target: np.ndarray,
    beta: float,
    update: str = "always",
    precision: float = 1e-14,
) -> Answer:
    """Wang et al. 2020, Algorithm 1, for ``grads`` [K, N], ``order`` and ``target`` [K, K].

    For each i: g_i' = g_i; for j in order[i], j != i, with c = cos(g_i', g_j) and t = target_ij:

    * if c < t: g_i' = g_i' + |g_i'| (t sqrt(1 - c^2) - c sqrt(1 - t^2)) / (|g_j| sqrt(1 - t^2)) g_j
      (Equation 2), after which cos(g_i', g_j) = t,
      where t acts as LARGEST_TARGET at most;
    * then target_ij = (1 - beta) t + beta c (Equation 3), or with update="on_alter" only if c < t.

    The part across g_j, p = |g_i'| sqrt(1 - c^2), stays, and the part along g_j becomes
    p t / sqrt(1 - t^2). Hence the cap: with B = CAP |s| / K a visit uses
    min(t, sqrt(1 - (p / B)^2)) for a positive t, and |g_i'| never grows beyond B.
    A task without gradient is not there: it does not count in K, neither acts nor is acted upon.
    """
    tasks = len(grads)
    norms = np.array([_norm(g) for g in grads])
    present = max(int((norms > 0).sum()), 1)
    plain = _norm(grads.sum(0))
    bound = CAP * plain / present
    bound_error = CAP / present * _root_error(plain, 8 * precision * norms.sum() ** 2)
    parts = grads.astype(np.float64).copy()
    new = target.astype(np.float64).copy()
    altered = np.zeros((tasks, tasks), dtype=bool)
    certain = np.ones((tasks, tasks), dtype=bool)
    target_doubt = np.zeros((tasks, tasks))
    doubt = 0.0
    for i in range(tasks):
        known = _Known(precision, norms[i])
        for j in map(int, order[i]):
            if j == i or norms[i] == 0 or norms[j] == 0:
                continue
            t = min(float(target[i, j]), LARGEST_TARGET)
            unit = grads[j] / norms[j]
            along = float(parts[i] @ unit)
            across = _norm(parts[i] - along * unit)
            length = _norm(parts[i])
            wanted = _along(across, t, bound)
            if length > ZERO * known.reach:
                altered[i, j] = along < wanted
                if altered[i, j] or update == "always":
                    cosine = min(max(along / length, -1.0), 1.0)
                    new[i, j] = (1 - beta) * target[i, j] + beta * cosine
                if altered[i, j]:
                    parts[i] += (wanted - along) * unit
            margin = known.visit(along, across, wanted, _spread(across, t, bound, bound_error))
            certain[i, j], cosine_error = margin
            if update == "on_alter" and not certain[i, j]:
                cosine_error = 2.0
            target_doubt[i, j] = beta * cosine_error
        doubt += known.error
    return Answer(parts.sum(0), parts, altered, new, certain, doubt, target_doubt)


class _Known:
    """What a Gram matrix of some precision knows of one modified gradient, visit by visit."""

    def __init__(self, precision: float, norm: float) -> None:
        self.precision = precision
        self.reach = norm  # the sum of the norms of what the modified gradient is made of
        self.error = 0.0  # bound on the distance to the exact one

    def visit(
        self, along: float, across: float, wanted: float, spread: Callable[[float], float]
    ) -> tuple[bool, float]:
        """Account for one visit; returns whether it is beyond rounding, and the cosine's error."""
        length = np.hypot(along, across)
        along_error = self.error + 8 * self.precision * self.reach
        across_error = self.error + _root_error(across, 16 * self.precision * self.reach**2)
        wanted_error = spread(across_error)
        # Between exactly cancelled and clearly there, rounding decides which of the two it is.
        exact = self.precision <= 1e-12
        cancelled = exact and length < 1e-9 * self.reach
        unsure = not cancelled and length < 1e3 * np.sqrt(self.precision) * self.reach
        certain = cancelled or (not unsure and abs(along - wanted) > along_error + wanted_error)
        if not cancelled and along - along_error <= wanted + wanted_error:
            self.error = along_error + wanted_error
            self.reach += max(wanted - along, 0.0)
        else:
            self.error = along_error
        if cancelled:
            return certain, 0.0
        return certain, 2.0 if unsure else min(2.0, 4 * along_error / length)


def visit(part: np.ndarray, other: np.ndarray, t: float) -> np.ndarray:
    """Equation 2 of Wang et al. 2020 to the letter, without cap: cos(part, other) becomes t."""
    c = float(part @ other) / (_norm(part) * _norm(other))
    if c >= t:
        return part
    a = _norm(part) * (t * np.sqrt(max(1 - c * c, 0.0)) - c * np.sqrt(1 - t * t))
    return part + a / (_norm(other) * np.sqrt(1 - t * t)) * other


def segmentwise(
    method: str,
    grads: Sequence[Sequence[np.ndarray | None]],
    segments: Sequence[int],
    order: np.ndarray,
    target: np.ndarray | None = None,
    **options: float | str,
) -> tuple[list[np.ndarray | None], list[Answer]]:
    """Every segment as a problem of its own; ``grads[k][p]`` may be None, ``target`` is [S, K, K].

    Returns the update per parameter (None where no task has one) and the answer per segment.
    """
    tasks, count = len(grads), len(segments)
    update: list[np.ndarray | None] = [None] * count
    answers = []
    for segment in range(max(segments, default=-1) + 1):
        mine = [
            p for p in range(count)
            if segments[p] == segment and any(grads[k][p] is not None for k in range(tasks))
        ]  # fmt: skip
        shapes = [next(g[p] for g in grads if g[p] is not None).shape for p in mine]
        rows = [
            np.concatenate(
                [np.zeros(0)]
                + [
                    np.zeros(int(np.prod(shape)))
                    if grads[k][p] is None
                    else np.asarray(grads[k][p], dtype=np.float64).ravel()
                    for p, shape in zip(mine, shapes, strict=True)
                ]
            )
            for k in range(tasks)
        ]
        if method == "pcgrad":
            answer = pcgrad(np.stack(rows), order, **options)
        else:
            start = np.zeros((tasks, tasks)) if target is None else target[segment]
            answer = gradvac(np.stack(rows), order, start, **options)
        answers.append(answer)
        at = 0
        for p, shape in zip(mine, shapes, strict=True):
            size = int(np.prod(shape))
            update[p] = answer.update[at : at + size].reshape(shape)
            at += size
    return update, answers


def _norm(vector: np.ndarray) -> float:
    """|vector|, safe where squares would leave the range of float64."""
    largest = float(np.abs(vector).max(initial=0.0))
    return largest * float(np.linalg.norm(vector / largest)) if largest > 0 else 0.0


def _along(across: float, t: float, bound: float) -> float:
    """The part along g_j that a visit wants: across t / sqrt(1 - t^2), capped for positive t."""
    if t <= -1:
        return -np.inf
    if across == 0:
        return 0.0
    if t > 0 and across >= bound:
        return 0.0
    sine = np.sqrt(max(1 - t, 0.0) * (1 + t))
    if t > 0 and across > bound * sine:  # t is above sqrt(1 - (across / bound)^2)
        return float(np.sqrt((bound - across) * (bound + across)))
    return float(across * t / sine)


def _spread(across: float, t: float, bound: float, bound_error: float) -> Callable[[float], float]:
    """How far ``_along`` can move for an error of across, and of bound, as a function of it."""

    def of(error: float) -> float:
        if t <= -1:
            return 0.0
        low, high = max(across - error, 0.0), across + error
        peak = bound * np.sqrt(max(1 - t * t, 0.0))  # where the cap begins to act
        bounds = [max(bound - bound_error, 0.0), bound + bound_error] if t > 0 else [bound]
        wanted = _along(across, t, bound)
        return max(
            abs(_along(p, t, b) - wanted)
            for p in (low, high, min(max(peak, low), high))
            for b in bounds
        )

    return of


def _root_error(root: float, square_error: float) -> float:
    """The error of a root whose square has this error."""
    return float(np.sqrt(root * root + square_error) - root)
