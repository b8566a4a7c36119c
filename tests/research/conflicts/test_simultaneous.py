"""Intervals that hold all at once, and a change without bias at zero: calibrated by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from research.conflicts import findings, simultaneous
from research.conflicts.counter import Array, upper_levels
from research.conflicts.estimate import Probed, change, expected_products
from research.conflicts.limit import expected_change
from research.conflicts.simultaneous import maxima

CONFLICT = np.array([[1, -0.5, 0], [-0.5, 1, 0], [0, 0, 1]])


def gram(cosines: Array, noise: float, seed: int) -> Array:
    """[B, K, B, K] of 16 blocks of unit expectations at those cosines, plus noise."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(60, 3)))
    blocks = np.linalg.cholesky(cosines) @ basis.T + noise * rng.normal(size=(16, 3, 60))
    products: Array = np.einsum("ain,bjn->aibj", blocks, blocks)
    return products


def probed(cosines: Array, noise: float, seed: int) -> Probed:
    """The same as a probe of one part."""
    grams = gram(cosines, noise, seed)[None]
    levels = {8 * 2**n: level for n, level in enumerate(upper_levels(grams))}
    return Probed(["sst", "para", "sts"], ["all"], levels, grams)


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_all_intervals_hold_at_once_in_95_percent(correlation: float) -> None:
    rng, hits, alone = np.random.default_rng(0), 0, 0
    repeats = 200
    for _ in range(repeats):
        shared = rng.normal(size=(2, 16, 1))
        values = correlation**0.5 * shared + (1 - correlation) ** 0.5 * rng.normal(size=(2, 16, 9))
        t = np.abs(values.mean(1) / (values.std(1, ddof=1) / 4)).max()
        hits += t <= np.quantile(maxima(list(values), draws=1000), 0.95)
        alone += t <= stats.t.ppf(0.975, 15)
    assert hits / repeats == pytest.approx(0.95, abs=0.046)  # three Monte-Carlo errors
    assert alone / repeats < 0.8


def test_one_cosine_alone_has_students_quantile() -> None:
    values = np.random.default_rng(1).normal(size=(16, 1))
    assert np.quantile(maxima([values]), 0.95) == pytest.approx(stats.t.ppf(0.975, 15), rel=0.05)
    # Copies of one column are one cosine; independent stages widen.
    copies = maxima([np.repeat(values, 9, axis=1)])
    assert np.quantile(copies, 0.95) == pytest.approx(stats.t.ppf(0.975, 15), rel=0.05)
    assert np.quantile(maxima([values] * 9), 0.95) > 3


def test_orthogonal_tasks_seldom_conflict_anywhere() -> None:
    wrong = 0
    for seed in range(60):
        probes = {
            stage: probed(np.eye(3), 0.25, 10 * seed + n) for n, stage in enumerate(("a", "b"))
        }
        wrong += any(
            e.verdict in ("conflict", "agree") for e in simultaneous.of_pairs(probes).values()
        )
    assert wrong <= 8  # of 3 expected; more than 8 has a chance below 1 %


def test_the_headline_follows_from_the_numbers() -> None:
    sure = findings.headline({"halfway": probed(CONFLICT, 0.1, 0)})
    assert sure.startswith("Of 3 pairs and stages judged together, 1 conflict: sst/para halfway (p")
    nothing = findings.headline({"halfway": probed(1e-6 * np.eye(3), 1.0, 0)})
    assert nothing.startswith("No expected gradient can be told from zero")
    # One that stands out by itself is named as not enough.
    for seed in range(100):
        probes = {"halfway": probed(np.eye(3), 0.25, seed)}
        judged = simultaneous.of_pairs(probes)
        alone = {key: findings.p_alone(e.cosine) or 1.0 for key, e in judged.items()}
        if min(alone.values()) < 0.05 and all(e.verdict == "open" for e in judged.values()):
            said = findings.headline(probes)
            assert "judged together, 0 conflict; 0 agree. By itself " in said
            assert "not enough among 3" in said
            return
    raise AssertionError("no seed has such a pair")


def test_the_change_is_zero_on_average_where_nothing_conflicts() -> None:
    old, new, covered = [], [], 0
    for seed in range(120):
        blocks = gram(np.eye(3), 0.25, seed)
        old.append(float(change(expected_products(blocks)[None])[0]))
        limit = expected_change(blocks)
        assert limit is not None
        new.append(limit.mean)
        covered += (limit.low or 0) <= 0 <= (limit.high or 0)
    error = np.std(new, ddof=1) / len(new) ** 0.5
    assert abs(np.mean(new)) < 3 * error + 0.002
    assert np.mean(old) > 10 * error  # what a positive part makes of noise
    assert covered / len(new) > 0.89


def test_a_clear_conflict_keeps_its_change() -> None:
    truth = float(change(CONFLICT[None])[0])
    limits = [expected_change(gram(CONFLICT, 0.1, seed)) for seed in range(40)]
    means = [limit.mean for limit in limits if limit]
    assert np.mean(means) == pytest.approx(truth, rel=0.05)
    hits = [(limit.low or 0) <= truth <= (limit.high or 0) for limit in limits if limit]
    assert np.mean(hits) > 0.85
    # With more noise the halves disagree, and the change is given as too small, not too large.
    noisy = [expected_change(gram(CONFLICT, 0.3, seed)) for seed in range(20)]
    assert 0 < np.mean([limit.mean for limit in noisy if limit]) < truth


def test_too_few_blocks_have_no_limit() -> None:
    assert expected_change(gram(CONFLICT, 0.1, 0)[:4, :, :4]) is None
