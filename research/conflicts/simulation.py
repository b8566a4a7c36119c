"""The model-free curve: how often GradVac alters when there is no model and no task at all.

Similarities are independent draws from one normal distribution, and only GradVac's targets remain
(Wang et al. 2020, arXiv:2010.05874, Algorithm 1): a draw c below its target t counts as an
alteration, and the target moves, t <- (1 - beta) t + beta c,

* rule "always": at every step, as the paper has it. t follows the mean, so half of the draws lie
  below it for ever;
* rule "on_alter": only when c < t. Such a t can only sink, so alterations die out, whatever the
  similarities are.

A falling count under the second rule is therefore no observation about tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

RULES = ("always", "on_alter")
CHUNK = 4096  # draws of so many steps are made at a time


def alterations(
    *,
    steps: int,
    epochs: int,
    mean: float | Sequence[float] = 0.05,
    sd: float | Sequence[float] = 0.05,
    beta: float = 0.01,
    pairs: int = 6,
    seeds: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Alterations per epoch under both rules, on the same draws.

    Args:
        steps: per epoch.
        epochs: to count.
        mean, sd: of the similarities, or of each pair's.
        beta: rate of the targets, which start at 0.
        pairs: ordered pairs of tasks, six for three tasks.
        seeds: independent repetitions.
        seed: of the draws.

    Returns:
        The arguments, and under each rule's name the alterations of each epoch, over all pairs and
        averaged over the repetitions.

    >>> counts = alterations(steps=1000, epochs=2)
    >>> counts["on_alter"][1] < counts["on_alter"][0] < counts["always"][0]
    True
    """
    generator = np.random.default_rng(seed)
    target = np.zeros((len(RULES), seeds, pairs))
    always = np.array([True, False])[:, None, None]
    counts = np.zeros((epochs, len(RULES), seeds, pairs))
    for epoch in range(epochs):
        for start in range(0, steps, CHUNK):
            size = (min(CHUNK, steps - start), seeds, pairs)
            for cosine in generator.normal(mean, sd, size).clip(-1, 1):
                altered = cosine < target
                counts[epoch] += altered
                target += np.where(altered | always, beta, 0.0) * (cosine - target)
    per_epoch = counts.sum(-1).mean(-1)  # [epochs, rules]
    return {
        "steps": steps,
        "epochs": epochs,
        "mean": mean,
        "sd": sd,
        "beta": beta,
        "pairs": pairs,
        "seeds": seeds,
        **{rule: per_epoch[:, r].tolist() for r, rule in enumerate(RULES)},
    }
