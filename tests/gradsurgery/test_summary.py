"""Pair counts: a sum over windows, and the same from every kind of row."""

from __future__ import annotations

from functools import reduce
from itertools import permutations
from operator import add

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsurgery.summary import PairCounts, mean_change, pair_totals

COSINES = st.floats(-1, 1).map(lambda x: round(8 * x) / 8)  # their sums are exact


@st.composite
def windows(draw: st.DrawFn) -> PairCounts:
    """What a window of a few cosines counts, in a run that may know no alterations."""
    cosines = draw(st.lists(COSINES, max_size=5))
    altered = draw(st.none() | st.integers(0, len(cosines)))
    target = draw(st.none() | COSINES)
    conflicts = sum(c < 0 for c in cosines)
    ends = (min(cosines), max(cosines)) if cosines else ()
    return PairCounts(len(cosines), conflicts, altered, sum(cosines), *ends, target=target)


@given(st.lists(windows(), min_size=1, max_size=4))
def test_adding_has_a_zero_and_no_order_of_brackets(counts: list[PairCounts]) -> None:
    total = sum(counts, PairCounts())
    assert total == reduce(add, counts)
    assert total == reduce(lambda right, left: left + right, reversed(counts))
    assert (total.altered is None) == any(c.altered is None for c in counts)


@given(windows())
def test_a_window_survives_its_json(counts: PairCounts) -> None:
    row = counts.to_json("a", "b")
    flat = {**row, **row["cosine"]}
    del flat["cosine"]
    for json in (row, flat):
        assert pair_totals([json]) == {("a", "b"): counts}


def test_totals_are_kept_apart_by_ordered_pair() -> None:
    rows = [PairCounts(n).to_json(i, j) for n in (1, 2) for i, j in permutations("ab", 2)]
    assert {pair: counts.possible for pair, counts in pair_totals(rows).items()} == {
        ("a", "b"): 3,
        ("b", "a"): 3,
    }


def test_rates_are_percentages_of_the_possible() -> None:
    counts = PairCounts(8, 4, 1)
    assert (counts.rate("conflicts"), counts.rate("altered")) == (50, 12.5)
    assert PairCounts(8, 4, None).rate("altered") is None
    assert PairCounts().rate("conflicts") is PairCounts().cosine is None


def test_the_mean_change_weighs_windows_by_their_steps() -> None:
    lines = [
        {"window": window, "change": {"mean": mean}}
        for window, mean in [(1, 0.4), (3, 0.2), (5, None)]
    ]
    assert mean_change(lines) == pytest.approx(0.25)  # type: ignore[arg-type]
    assert mean_change(lines[2:]) is None  # type: ignore[arg-type]
