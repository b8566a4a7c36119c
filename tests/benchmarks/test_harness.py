from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness import (
    Candidate,
    Effort,
    Sample,
    alternate,
    fitted_exponent,
    nothing,
    quantile,
    ratio,
    rotated,
    spread,
)

CPU = torch.device("cpu")

times = st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=30)


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
    _, found = recorded(Effort(rounds=3, least=3, seconds=60, warmup=2))
    assert {name: len(samples) for name, samples in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_no_round_is_begun_once_time_is_up_and_the_least_is_done() -> None:
    _, found = recorded(Effort(rounds=50, least=4, seconds=0, warmup=1), "ab")
    assert {len(samples) for samples in found.values()} == {4}


def test_only_the_run_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("time.perf_counter", lambda: now)
    candidate = Candidate(lambda: wait(2.0), lambda: wait(100.0))
    found = alternate({"a": candidate}, Effort(2, 2, 60, warmup=0), CPU)
    assert found == {"a": [Sample(2.0, 2.0)] * 2}


def test_rotation_of_nothing_is_nothing() -> None:
    assert rotated([], 3) == []
    nothing()


@given(times)
def test_quantiles_are_those_of_the_standard_library(values: list[float]) -> None:
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    assert quantile(values, 0.2) == pytest.approx(fifths[0])
    assert quantile(values, 0.8) == pytest.approx(fifths[-1])
    assert quantile(values, 0.5) == pytest.approx(statistics.median(values))


def test_one_round_has_a_spread() -> None:
    assert spread([3.0]) == (3.0, 3.0, 3.0)


@given(times, st.floats(0.1, 10))
def test_ratios_are_taken_within_rounds(values: list[float], factor: float) -> None:
    """A machine that slows down from round to round leaves the ratio alone."""
    assert ratio([factor * value for value in values], values) == pytest.approx(factor)


def test_the_ratio_is_not_that_of_the_medians() -> None:
    assert ratio([1.0, 10.0, 100.0], [1.0, 20.0, 50.0]) == 1.0


@given(st.floats(-2, 3), st.floats(1e-6, 1e3))
def test_a_power_law_has_its_exponent(exponent: float, factor: float) -> None:
    sizes = [2, 3, 8, 32, 64]
    values = [factor * size**exponent for size in sizes]
    assert fitted_exponent(sizes, values) == pytest.approx(exponent, abs=1e-9)
