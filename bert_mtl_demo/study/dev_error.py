"""The error that comes of dev being a sample: answers scored on resampled examples.

A score over n seeds and N dev examples varies because of both. All seeds, and both rows of a
comparison, answer the same examples, so these are crossed factors. With score_s that of seed s,

    Var(mean) = seeds + examples - both,

seeds = Var(score_s) / n over seeds, examples = the variance of the mean score under a bootstrap
of the examples (one resample for all seeds), and `both`, the seed-by-example interaction which the
two terms share: its resampled variance around the mean of the seeds, over n (n - 1). Leaving it
in would count it twice (Owen 2007, "The pigeonhole bootstrap"). The seeds' level needs no
resampling: drawing n seeds with replacement has the variance (n - 1) / n times the first term, in
closed form, and too small by that factor.

Few seeds are no normal distribution, so the interval is Student's t with Satterthwaite's degrees of
freedom: the seeds' share of the variance has n - 1 of them, the rest very many.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bert_mtl_demo.study.intervals import Interval, interval
from bert_mtl_demo.study.results import THREE, Evaluation, Result

Array = NDArray[np.float64]
RESAMPLES = 500


def two_level(
    values: Mapping[int, float], resampled: Mapping[int, Array], level: float = 0.95
) -> Interval:
    """Mean over seeds, with the interval over seeds and examples.

    Args:
        values: seed -> score, or difference of two scores of the same seed and examples.
        resampled: seed -> [B], the same on B resamples of the examples; of all seeds or it is not
            used.
        level: of confidence.

    >>> draws = np.random.default_rng(0).normal(0, 0.02, RESAMPLES)
    >>> sure = {0: 0.50, 1: 0.51, 2: 0.52}
    >>> wider = two_level(sure, {seed: score + draws for seed, score in sure.items()})
    >>> str(two_level(sure, {})), str(wider)
    ('.510 ± .025', '.510 ± .041')
    """
    seeds = [seed for seed, value in values.items() if math.isfinite(value)]
    plain = interval([values[seed] for seed in seeds], level)
    n = len(seeds)
    if n < 2 or not all(seed in resampled for seed in seeds):
        return plain
    draws = np.stack([resampled[seed] for seed in seeds])  # [n, B]
    over_seeds = float(np.var([values[seed] for seed in seeds], ddof=1)) / n
    mean = draws.mean(0)
    over_examples = float(mean.var(ddof=1))
    both = float((draws - mean).var(axis=1, ddof=1).sum()) / (n * (n - 1))
    variance = max(over_seeds + over_examples - both, over_seeds, over_examples)
    if variance == 0:
        return plain
    df = (n - 1) * (variance / over_seeds) ** 2 if over_seeds else math.inf
    df = min(df, 1e6)
    error = math.sqrt(variance)
    half = float(stats.t.ppf((1 + level) / 2, df)) * error
    return Interval(plain.mean, plain.mean - half, plain.mean + half, n, error, df)


def resampled_scores(result: Result, score: str) -> Array | None:
    """A score of a result on resamples of dev, [B]; None if the answers were not kept.

    The resamples depend on the task and on the number of its examples alone, so that results which
    share dev share them.
    """
    if score in ("mean", "leaderboard"):
        if set(result.scores) != set(THREE):
            return None
        parts = {task: resampled_scores(result, task) for task in THREE}
        known = [part for part in parts.values() if part is not None]
        if len(known) < len(THREE):
            return None
        total: Array = np.sum(known, axis=0)
        if score == "leaderboard":
            total = total - known[THREE.index("sts")] / 2 + 0.5
        return total / len(THREE)
    evaluation = result.evaluation.get(score)
    if evaluation is None or not evaluation.found:
        return None
    if abs(evaluation.score - result.scores.get(score, math.nan)) > 1e-6:
        return None  # the answers are those of other examples, or of another epoch
    draws: Array = _resampled(evaluation, score)
    return draws if bool(np.isfinite(draws).all()) else None


def _resampled(evaluation: Evaluation, task: str) -> Array:
    """Accuracy of classes, or Pearson's r, of every resample."""
    truth, found = np.asarray(evaluation.truth), np.asarray(evaluation.found)
    counts = _counts(len(truth), zlib.crc32(task.encode()))
    if evaluation.confusion:
        right: Array = _means(counts, (truth == found)[None].astype(float))[0]
        return right
    x, y = truth - truth.mean(), found - found.mean()
    mx, my, xx, yy, xy = _means(counts, np.stack([x, y, x * x, y * y, x * y]))
    with np.errstate(invalid="ignore", divide="ignore"):
        r: Array = (xy - mx * my) / np.sqrt((xx - mx**2) * (yy - my**2))
    return r


def _means(counts: NDArray[np.float32], columns: Array) -> Array:
    """[C, B] means of columns [C, N] under resamples' counts [B, N]."""
    means: Array = columns @ counts.T / counts.shape[1]
    return means


@lru_cache(maxsize=4)
def _counts(examples: int, seed: int) -> NDArray[np.float32]:
    """How often each resample has each example, [B, N]."""
    rng = np.random.default_rng([seed, examples])
    drawn = rng.integers(0, examples, (RESAMPLES, examples))
    return np.stack([np.bincount(row, minlength=examples) for row in drawn]).astype(np.float32)
