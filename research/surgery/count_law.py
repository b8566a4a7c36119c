"""The count law: under the copied rule, how often GradVac alters does not depend on the tasks.

GradVac alters a gradient where a cosine c lies below its target t. The paper's targets follow every
cosine (Wang et al. 2020, equation 3); a much-copied implementation moves one only where it altered,

    t <- t + beta (c - t)   if c < t,

so targets only sink. Let p be the probability of c < t. A step moves t by -beta E max(t - c, 0) in
the mean. For a lower tail that falls off exponentially, p ~ exp(t / s), that expectation is s p,
whence dp / dn = -beta p^2: after n steps p = p0 / (1 + beta p0 n), in which s is gone. Summed over
an epoch of N steps and over the ordered pairs of tasks,

    alterations in epoch e = pairs / beta ln((1 + beta p0 N e) / (1 + beta p0 N (e - 1))),

which for beta p0 N far above 1 is pairs / beta ln(e / (e - 1)) from the second epoch on: neither
the cosines nor the number of steps is in it. Other tails change a factor, no more: a normal one
gives 1.57 times as many where t is at the mean and 1.1 times as many at 2.5 standard deviations
below it, a tail that ends (a uniform one) twice as many.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gradsurgery import GradVac


def expected_alterations(
    epoch: int, *, beta: float, pairs: int = 6, steps: int | None = None, start: float = 0.5
) -> float:
    """Alterations in an epoch under the copied rule, over all pairs.

    Args:
        epoch: from 1; from 2 without `steps`.
        beta: rate of the targets, above 0.
        pairs: ordered pairs of tasks, six for three tasks.
        steps: of an epoch; None for the limit of many steps.
        start: probability of an alteration in the first step, a half where targets start at the
            median.

    Raises:
        ValueError: for the first epoch without `steps`, where the limit does not exist.

    >>> round(expected_alterations(2, beta=0.01))
    416
    >>> [round(expected_alterations(e, beta=0.01, steps=18_000)) for e in (1, 2)]
    [2707, 413]
    """
    if steps is None:
        if epoch < 2:
            raise ValueError(f"epoch = {epoch}: the limit of many steps begins at epoch 2")
        return pairs / beta * math.log(epoch / (epoch - 1))
    rate = beta * start * steps
    return pairs / beta * math.log((1 + rate * epoch) / (1 + rate * (epoch - 1)))


def replay(
    norms: NDArray[np.float64],
    cosines: NDArray[np.float64],
    *,
    beta: float,
    update: Literal["always", "on_alter"] = "on_alter",
    epochs: int = 10,
    seed: int = 0,
) -> list[int]:
    """Alterations per epoch when GradVac is given the gradients of a run that was logged.

    The run itself is not changed by it: the same gradients are seen with every beta. A trailing
    part of an epoch is left out.

    Args:
        norms: [T, K], of the gradients of T steps.
        cosines: [T, K, K], between them.
        beta: rate of the targets.
        update: GradVac's rule.
        epochs: that the T steps are divided into.
        seed: of the visiting orders.

    >>> cosines = np.broadcast_to(np.eye(2), (8, 2, 2))
    >>> replay(np.ones((8, 2)), cosines - 0.1 * (1 - np.eye(2)), beta=1.0, epochs=2)
    [2, 0]
    """
    method, generator = GradVac(beta=beta, update=update), np.random.default_rng(seed)
    tasks, steps = norms.shape[1], len(norms) // epochs
    state = method.init(1, tasks)
    grams = torch.from_numpy(cosines * norms[:, :, None] * norms[:, None, :])[:, None]
    counts = []
    for epoch in range(epochs):
        altered = 0
        for gram in grams[epoch * steps : (epoch + 1) * steps]:
            order = np.stack([generator.permutation(tasks) for _ in range(tasks)])
            verdict = method(gram, order=torch.from_numpy(order), state=state)
            assert verdict.altered is not None
            state, altered = verdict.state, altered + int(verdict.altered.sum())
        counts.append(altered)
    return counts


def replays(record: dict[str, Any], betas: tuple[float, ...]) -> dict[str, Any]:
    """The replays of a long run's record under the copied rule, plain values.

    Args:
        record: `norms` [T][K], `cosines` [T][pairs i < j], `epochs`, as `records.steps_of` gives
            them.
        betas: rates of the targets.

    Returns:
        steps: of an epoch; pairs: ordered ones; start: share of negative cosines in the first
        tenth; counts: beta -> alterations of each epoch.
    """
    norms, flat = np.array(record["norms"]), np.array(record["cosines"])
    tasks, epochs = norms.shape[1], record["epochs"]
    cosines = np.broadcast_to(np.eye(tasks), (len(norms), tasks, tasks)).copy()
    i, j = np.triu_indices(tasks, 1)
    cosines[:, i, j] = cosines[:, j, i] = flat
    return {
        "steps": len(norms) // epochs,
        "pairs": tasks * (tasks - 1),
        "start": float((flat[: max(1, len(flat) // 10)] < 0).mean()),
        "counts": {f"{beta:g}": replay(norms, cosines, beta=beta, epochs=epochs) for beta in betas},
    }
