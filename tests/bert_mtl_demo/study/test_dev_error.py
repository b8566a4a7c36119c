"""Intervals over seeds and examples: coverage by simulation, limits, and answers of no use."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from bert_mtl_demo.study.dev_error import RESAMPLES, resampled_scores, two_level
from bert_mtl_demo.study.effects import detectable, equivalent
from bert_mtl_demo.study.intervals import NEGLIGIBLE, compare, interval
from bert_mtl_demo.study.outcomes import Outcomes
from bert_mtl_demo.study.published import Row
from bert_mtl_demo.study.results import Evaluation, Result


def coverage(seeds: int, sd: tuple[float, float, float], repeats: int = 400) -> tuple[float, float]:
    """How often the interval holds the truth, with and without the examples' error.

    Args:
        sd: of a seed's effect, of an example's, and of both together.
    """
    rng, examples, hits, plain_hits = np.random.default_rng(seeds), 100, 0, 0
    for _ in range(repeats):
        counts = rng.multinomial(examples, np.full(examples, 1 / examples), size=200) / examples
        of_seed, of_example, both = (
            scale * rng.normal(size=size)
            for scale, size in zip(sd, [(seeds, 1), (1, examples), (seeds, examples)], strict=True)
        )
        scores = of_seed + of_example + both
        values = dict(enumerate(scores.mean(1)))
        found = two_level(values, {s: counts @ scores[s] for s in values})
        plain = interval(list(values.values()))
        hits += found.low <= 0 <= found.high  # type: ignore[operator]
        plain_hits += plain.low <= 0 <= plain.high  # type: ignore[operator]
    return hits / repeats, plain_hits / repeats


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("sd", [(0.01, 0.1, 0.0), (0.0, 0.1, 0.1), (0.01, 0.1, 0.1)])
def test_covers_seeds_and_examples(seeds: int, sd: tuple[float, float, float]) -> None:
    # Three Monte-Carlo errors of 400 repeats.
    assert coverage(seeds, sd)[0] == pytest.approx(0.95, abs=0.033)


def test_seeds_alone_do_not_cover_the_examples() -> None:
    both, seeds_alone = coverage(10, (0.01, 0.1, 0.0))
    assert seeds_alone < 0.6 < both


def test_an_infinite_dev_set_leaves_students_t() -> None:
    values = {0: 0.50, 1: 0.53, 2: 0.51}
    found = two_level(values, {seed: np.full(RESAMPLES, v) for seed, v in values.items()})
    plain = interval(list(values.values()))
    assert (found.low, found.high) == (pytest.approx(plain.low), pytest.approx(plain.high))
    assert found.df == pytest.approx(2)
    assert two_level(values, {0: np.zeros(RESAMPLES)}) == plain  # answers of one seed only


def result(right: np.ndarray[Any, Any], *, kept: bool = True) -> Result:
    """A result of sst that answers these examples rightly."""
    score = float(right.mean())
    truth = tuple(float(n % 2) for n in range(len(right)))
    found = tuple(t if ok else 1 - t for t, ok in zip(truth, right, strict=True))
    table = ((1, 1), (1, 1))
    dev = Evaluation(score, table, truth, found) if kept else Evaluation(score, table)
    return Result({"sst": score}, score, score, evaluation={"sst": dev})


def test_resamples_have_the_binomial_spread_and_pair_by_example() -> None:
    rng = np.random.default_rng(0)
    a, b = result(rng.random(400) < 0.7), result(rng.random(400) < 0.7)
    first, second, again = (resampled_scores(r, "sst") for r in (a, b, a))
    assert first is not None
    assert second is not None
    assert again is not None
    score = a.scores["sst"]
    assert first.std() == pytest.approx((score * (1 - score) / 400) ** 0.5, rel=0.1)
    assert not (first - again).any()
    assert (first - second).std() > first.std()  # unrelated mistakes do not cancel


def test_r_is_resampled_as_scipy_has_it() -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(0, 5, 300)
    found = truth + rng.normal(0, 1.5, 300)
    r = float(np.corrcoef(truth, found)[0, 1])
    dev = Evaluation(r, (), tuple(truth), tuple(found))
    draws = resampled_scores(Result({"sts": r}, r, r, evaluation={"sts": dev}), "sts")
    assert draws is not None
    assert draws.mean() == pytest.approx(r, abs=0.01)
    assert draws.std() == pytest.approx((1 - r * r) / 300**0.5, rel=0.25)


def test_answers_that_are_not_those_of_the_score_are_not_used() -> None:
    right = np.arange(50) % 3 > 0
    assert resampled_scores(result(right, kept=False), "sst") is None
    moved = dataclasses.replace(result(right), scores={"sst": 0.4})  # of another half of dev
    assert resampled_scores(moved, "sst") is None
    assert resampled_scores(result(right), "mean") is None


def outcomes(rows: dict[str, list[np.ndarray[Any, Any]]]) -> Outcomes:
    """Rows with a result a seed."""
    return Outcomes(
        "demo",
        [Row("demo", name, "Table 1", {}) for name in rows],
        {name: {s: result(r) for s, r in enumerate(seeds)} for name, seeds in rows.items()},
    )


def test_shared_mistakes_cancel_in_a_difference_and_not_in_a_score() -> None:
    rng = np.random.default_rng(2)
    base = rng.random(500) < 0.7
    seeds = [base ^ (rng.random(500) < 0.01) for _ in range(4)]
    better = [right | (rng.random(500) < 0.02) for right in seeds]
    study = outcomes({"plain": seeds, "better": better})
    row = study.rows[1]
    score, difference = study.interval(row, "sst"), study.comparison(row, "sst").difference
    assert (score.half or 0) > 0.03  # a binomial's 2 x sqrt(.7 x .3 / 500)
    assert (difference.half or 1) < 0.012
    assert score.half > (interval(list(study.values(row, "sst").values())).half or 1)  # type: ignore[operator]


def test_the_effect_that_could_have_been_seen_is_seen_in_four_of_five() -> None:
    rng = np.random.default_rng(3)
    effect = detectable(1.0 / 5**0.5, 4)  # the true error is known to the test alone
    draws = rng.normal(effect, 1.0, (3000, 5))
    errors = draws.std(1, ddof=1) / 5**0.5
    seen = np.abs(draws.mean(1)) > 2.776445 * errors
    assert seen.mean() == pytest.approx(0.8, abs=0.022)


def test_equivalence_is_wrong_in_one_of_twenty_at_the_margin() -> None:
    rng = np.random.default_rng(4)
    draws = rng.normal(0.005, 0.002, (2000, 8))
    wrong = [equivalent(row.mean(), row.std(ddof=1) / 8**0.5, 7) for row in draws]
    assert np.mean(wrong) == pytest.approx(0.05, abs=0.015)


def test_no_effect_is_said_of_narrow_intervals_only() -> None:
    base = {seed: 0.5 + seed / 100 for seed in range(6)}
    small = {seed: value + 0.001 * (-1) ** seed for seed, value in base.items()}
    wide = {seed: value + 0.02 * (-1) ** seed for seed, value in base.items()}
    assert compare(small, base).describe() == NEGLIGIBLE
    assert compare(wide, base).describe() == "inside the noise"


def test_answers_survive_the_file_in_few_bytes() -> None:
    rng = np.random.default_rng(5)
    kept = result(rng.random(20_000) < 0.9)
    values = kept.to_dict()
    assert Result.from_dict(values) == kept
    assert len(values["evaluation"]["sst"]["found"]) < 15_000
