"""Cosines of expected gradients judged together: intervals that hold all at once (max-t).

M cosines have jackknife pseudo-values p[B, M] over the same B blocks, so their t statistics are
correlated. The interval of each is estimate +- q * error with q the 95 % quantile of max_m |t_m|,
drawn from normal pseudo-values with the correlation of those that were seen, each draw divided by
an error of its own (Hothorn, Bretz and Westfall 2008, with B - 1 degrees of freedom). Stages are
probed with examples of their own, so theirs are drawn independently. That all M intervals hold the
truth has then a chance of 95 %, where 95 % intervals of 63 cosines miss three on average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from bert_mtl_demo.study.intervals import Interval
from research.conflicts.counter import Array
from research.conflicts.estimate import Expected, Probed, expected_values

DRAWS = 4000


class Cosine(NamedTuple):
    """Of which stage, part of the encoder (None: the whole) and two tasks."""

    stage: str
    part: str | None
    i: int
    j: int


def of_pairs(probes: Mapping[str, Probed]) -> dict[Cosine, Expected]:
    """Every stage and pair over the whole encoder, judged together."""
    return judged(probes, [None])


def of_layers(probes: Mapping[str, Probed]) -> dict[Cosine, Expected]:
    """Every stage, part of the encoder and pair, judged together."""
    return judged(probes, next(iter(probes.values())).segments)


def judged(
    probes: Mapping[str, Probed], parts: Sequence[str | None], level: float = 0.95
) -> dict[Cosine, Expected]:
    """The cosines of these parts with intervals that hold all at once."""
    singles: dict[Cosine, tuple[Interval, Array] | None] = {}
    for stage, probed in probes.items():
        for part in parts:
            blocks = probed.kept(part)
            for i, j in combinations(range(len(probed.tasks)), 2):
                singles[Cosine(stage, part, i, j)] = expected_values(blocks, i, j)
    known = {
        key: single for key, single in singles.items() if single and single[0].half is not None
    }
    stages = [
        np.stack([values for key, (_, values) in known.items() if key.stage == stage], axis=1)
        for stage in probes
        if any(key.stage == stage for key in known)
    ]
    highest = maxima(stages) if known else np.zeros(1)
    critical = float(np.quantile(highest, level))
    return {key: _widened(single, critical, highest) for key, single in singles.items()}


def _widened(single: tuple[Interval, Array] | None, critical: float, highest: Array) -> Expected:
    if single is None:
        return Expected(None)
    cosine, _ = single
    if cosine.error is None:
        return Expected(cosine)
    margin = critical * cosine.error
    wide = replace(cosine, low=cosine.mean - margin, high=cosine.mean + margin)
    p = float(np.mean(highest >= abs(cosine.mean) / cosine.error))
    return Expected(wide, p=max(p, 1 / len(highest)))


def maxima(stages: Sequence[Array], seed: int = 0, draws: int = DRAWS) -> Array:
    """Draws of the largest |t| over all columns of some [B, M], [D], if every mean is 0."""
    rng = np.random.default_rng(seed)
    highest = np.zeros(draws)
    for values in stages:
        blocks = len(values)
        centred = values - values.mean(0)
        scaled = centred / np.maximum(np.sqrt((centred**2).sum(0)), 1e-300)
        drawn = rng.normal(size=(draws, blocks, blocks)) @ scaled  # [D, B, M]
        t = drawn.mean(1) / (drawn.std(1, ddof=1) / np.sqrt(blocks))
        highest = np.maximum(highest, np.abs(t).max(1))
    return highest
