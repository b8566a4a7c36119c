from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.timing import (
    Candidate,
    Effort,
    Sample,
    Times,
    alternate,
    fitted_exponent,
    nothing,
    ratio,
    rotated,
    spread,
)

CPU = torch.device("cpu")

durations = st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=30)


def recorded(effort: Effort, names: str = "abc") -> tuple[list[str], dict[str, list[Sample]]]:
    """Alternate candidates that write down each call: lower case to prepare, upper case to run."""
    calls: list[str] = []
    candidates = {
        name: Candidate(lambda n=name: calls.append(n.upper()), lambda n=name: calls.append(n))
        for name in names
    }
    return calls, alternate(candidates, effort, CPU)


def test_candidates_take_turns_in_rotating_order_each_prepared_before_it_runs() -> None:
    calls, _ = recorded(Effort(rounds=3, least=3, seconds=60, warmup=1))
    assert "".join(calls) == "aAbBcC" + "bBcCaA" + "cCaAbB" + "aAbBcC"


def test_warm_up_rounds_are_not_counted() -> None:
    _, times = recorded(Effort(rounds=3, least=3, seconds=60, warmup=2))
    assert {name: len(samples) for name, samples in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_no_round_is_begun_once_time_is_up_and_the_least_is_done() -> None:
    _, times = recorded(Effort(rounds=50, least=4, seconds=0, warmup=1), "ab")
    assert {len(samples) for samples in times.values()} == {4}


def test_only_the_run_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("time.perf_counter", lambda: now)
    candidate = Candidate(lambda: wait(2.0), lambda: wait(100.0))
    times = alternate({"a": candidate}, Effort(2, 2, 60, warmup=0), CPU)
    assert times == {"a": [Sample(2.0, 2.0)] * 2}


def test_rotation_of_nothing_is_nothing() -> None:
    assert rotated([], 3) == []
    nothing()


@given(durations)
def test_quantiles_are_those_of_the_standard_library(values: list[float]) -> None:
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    expected = {"median": statistics.median(values), "p20": fifths[0], "p80": fifths[-1]}
    assert spread(values) == pytest.approx(expected)


def test_one_round_has_a_spread() -> None:
    assert spread([3.0]) == {"median": 3.0, "p20": 3.0, "p80": 3.0}


@given(durations, st.floats(0.1, 10))
def test_ratios_are_taken_within_rounds(values: list[float], factor: float) -> None:
    """A machine that slows down from round to round leaves the ratio alone."""
    assert ratio([factor * value for value in values], values) == pytest.approx(factor)


def test_a_candidates_figures_have_its_ratios_by_field() -> None:
    rounds = {"plain": [1.0, 2.0, 4.0], "ours": [3.0, 6.0, 12.0]}
    times = Times({name: [Sample(s, 0.0) for s in taken] for name, taken in rounds.items()})
    figures = times.figures("ours", to_plain="plain", to_itself="ours")
    assert figures.pop("seconds")["median"] == 6.0
    assert figures == {"rounds": 3, "to_plain": 3.0, "to_itself": 1.0}


def test_the_ratio_is_not_that_of_the_medians() -> None:
    assert ratio([1.0, 10.0, 100.0], [1.0, 20.0, 50.0]) == 1.0


@given(st.floats(-2, 3), st.floats(1e-6, 1e3))
def test_a_power_law_has_its_exponent(exponent: float, factor: float) -> None:
    sizes = [2, 3, 8, 32, 64]
    values = [factor * size**exponent for size in sizes]
    assert fitted_exponent(sizes, values) == pytest.approx(exponent, abs=1e-9)
