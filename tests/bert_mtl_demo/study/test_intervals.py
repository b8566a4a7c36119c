"""Intervals over seeds: hand-computed, against scipy, and their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bert_mtl_demo.study.intervals import Interval, compare, holm, interval


def test_three_values_by_hand() -> None:
    # mean .50, s = .02, t(2) at 97.5% = 4.302653 (any table): half = 4.302653 * .02 / sqrt(3)
    found = interval([0.48, 0.50, 0.52])
    assert found.mean == pytest.approx(0.50)
    assert found.high == pytest.approx(0.50 + 0.0496828, abs=1e-7)
    assert found.low == pytest.approx(0.50 - 0.0496828, abs=1e-7)
    assert str(found) == ".500 ± .050"


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 10])
def test_agrees_with_scipy(n: int, level: float) -> None:
    values = np.random.default_rng(n).normal(0.5, 0.01, n)
    low, high = stats.t.interval(level, n - 1, loc=values.mean(), scale=stats.sem(values))
    found = interval(list(values), level)
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), n)


def test_covers_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(0.0, 1.0, (2000, 3))
    hits = [(found := interval(list(row))).low <= 0 <= found.high for row in draws]  # type: ignore[operator]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)  # three standard errors


def test_shift_and_scale() -> None:
    values = [0.1, 0.4, 0.35]
    base, moved = interval(values), interval([10 * value - 2 for value in values])
    assert moved.mean == pytest.approx(10 * base.mean - 2)
    assert moved.half == pytest.approx(10 * (base.half or 0))


def test_one_value_has_no_bounds_and_none_no_mean() -> None:
    assert interval([0.5]) == Interval(0.5, None, None, 1)
    assert str(interval([0.5])) == ".500"
    nothing = interval([])
    assert math.isnan(nothing.mean)
    assert (nothing.n, str(nothing), nothing.signed()) == (0, "–", "–")  # noqa: RUF001


def test_a_score_that_does_not_exist_is_left_out_and_counted() -> None:
    assert interval([0.4, math.nan, 0.6]).n == 2
    assert interval([0.4, math.nan, 0.6]) == interval([0.4, 0.6])


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert interval([0.25, 0.25, 0.25]) == Interval(0.25, 0.25, 0.25, 3)


@pytest.mark.parametrize("level", [0, 1, 95, math.nan])
def test_refuses_a_level_that_is_none(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        interval([1, 2], level)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.03, 0.05), "+.040 ± .127"),
        ((-0.03, -0.05), "-.040 ± .127"),
        ((-0.0001, -0.0001), ".000 ± .000"),
        ((1.0, 1.0), "+1.000 ± .000"),
    ],
)
def test_differences_carry_their_sign(values: tuple[float, ...], text: str) -> None:
    assert interval(values).signed() == text


def test_paired_agrees_with_scipy_and_not_with_unpaired() -> None:
    rng = np.random.default_rng(1)
    seeds = rng.normal(0.5, 0.05, 6)  # a strong effect of the seed, which pairing removes
    a, b = seeds + 0.01 + rng.normal(0, 0.002, 6), seeds + rng.normal(0, 0.002, 6)
    first, second = dict(enumerate(a)), dict(enumerate(b))
    reference = stats.ttest_rel(a, b)
    found = compare(first, second)
    low, high = reference.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == (
        pytest.approx(low),
        pytest.approx(high),
    )
    assert found.p == pytest.approx(reference.pvalue)
    assert found.describe() == "differs"
    assert stats.ttest_ind(a, b).pvalue > 0.05  # without pairing the noise would hide it


def test_only_common_seeds_are_compared() -> None:
    found = compare({0: 0.5, 1: 0.7, 5: 0.1}, {1: 0.6, 0: 0.5, 7: 0.9})
    assert (found.difference.mean, found.difference.n) == (pytest.approx(0.05), 2)
    found = compare({0: 0.1, 3: 0.7, 5: 0.9}, {5: 0.8, 3: 0.5})
    assert (found.difference.mean, found.difference.n) == (pytest.approx(0.15), 2)
    assert compare({0: 0.5}, {1: 0.5}).describe() == "no common seed"
    assert compare({0: math.nan}, {0: 0.5}).describe() == "no common seed"


def test_what_may_be_said() -> None:
    base = {0: 0.50, 1: 0.51, 2: 0.52}
    assert compare({0: 0.6}, base).describe() == "one seed: cannot tell"
    assert compare(base, base).describe() == "identical"
    assert compare({0: 0.50}, base).describe() == "identical"
    assert compare({0: 0.51, 1: 0.50, 2: 0.525}, base).describe() == "inside the noise"
    assert compare({0: 0.61, 1: 0.60, 2: 0.62}, base).describe() == "differs"


def test_the_same_difference_in_every_seed_is_no_certainty() -> None:
    """Accuracies on 500 examples: two seeds often differ by the same few examples by chance."""
    base = {0: 0.25, 1: 0.502, 2: 0.768}
    found = compare({seed: score + 0.002 for seed, score in base.items()}, base)
    assert (found.differs, found.p, found.difference.low) == (False, None, None)
    assert found.difference.mean == pytest.approx(0.002)
    assert found.describe() == "equal in every seed: no spread to judge it by"


def test_turning_a_comparison_round_turns_its_sign() -> None:
    a, b = {0: 0.5, 1: 0.6, 2: 0.8}, {0: 0.4, 1: 0.1, 2: 0.3}
    there, back = compare(a, b), compare(b, a)
    assert there.difference.mean == -back.difference.mean
    assert there.p == back.p


def test_holm_by_hand() -> None:
    # .01 < .05/4, .02 > .05/3: the step-down stops there, though .03 < .05/1
    assert holm([0.03, 0.01, 0.02, 0.04]) == [False, True, False, False]
    assert holm([0.01, 0.013, 0.02, 0.04]) == [True, True, True, True]
    assert holm([None, 0.04]) == [False, True]
    assert holm([]) == []


def test_holm_of_one_is_the_test_itself_and_never_finds_more() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        ps = list(rng.uniform(0, 0.1, 5))
        assert holm(ps[:1]) == [ps[0] <= 0.05]
        assert all(p <= 0.05 for p, fallen in zip(ps, holm(ps), strict=True) if fallen)
        assert sum(holm(ps)) >= sum(p <= 0.05 / 5 for p in ps)  # nor less than Bonferroni
