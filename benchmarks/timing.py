"""Timing: candidates take turns, and are compared within the rounds that they shared.

A shared machine is fast in one second and slow in the next. So the candidates of one comparison run
one after the other in every round, in an order that rotates from round to round. Figures are
medians, 20th and 80th percentiles over the rounds; a ratio is taken within each round, and its
median afterwards.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

T = TypeVar("T")


class Effort(NamedTuple):
    """Length of a measurement.

    Attributes:
        rounds: maximum number of rounds that count.
        least: minimum number of rounds that count.
        seconds: time after which no round is started, once ``least`` are done.
        warmup: rounds before the first that counts.
    """

    rounds: int
    least: int
    seconds: float
    warmup: int = 2


def nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Candidate:
    """Something to time, and what has to be prepared before each run (untimed)."""

    run: Callable[[], object]
    prepare: Callable[[], object] = nothing


class Sample(NamedTuple):
    """One call: seconds on the device, and seconds until the call returned to the host."""

    seconds: float
    host: float


class Times(dict[str, list[Sample]]):
    """Samples by candidate; those at one position belong to one round."""

    def seconds(self, name: str) -> list[float]:
        """Return a candidate's times on the device, round by round."""
        return [sample.seconds for sample in self[name]]

    def ratio(self, name: str, reference: str) -> float:
        """Return the median over the rounds of a candidate's time over another's."""
        return ratio(self.seconds(name), self.seconds(reference))

    def figures(self, name: str, **references: str) -> dict[str, Any]:
        """Return rounds, spread, and by field the ratios to other candidates."""
        ratios = {field: self.ratio(name, other) for field, other in references.items()}
        return {"rounds": len(self[name]), "seconds": spread(self.seconds(name)), **ratios}


def alternate(
    candidates: Mapping[str, Candidate], effort: Effort, device: torch.device, label: str = ""
) -> Times:
    """Time the candidates in turn; ``label`` names the progress bar."""
    names = list(candidates)
    times = Times({name: [] for name in names})
    for number in _rounds(effort, label):
        for name in rotated(names, number):
            candidates[name].prepare()
            sample = timed(candidates[name].run, device)
            if number >= effort.warmup:
                times[name].append(sample)
    return times


def timed(run: Callable[[], object], device: torch.device) -> Sample:
    """Run once and return the times, on CUDA by events on the device."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        return Sample(seconds, seconds)
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start = time.perf_counter()
    begin.record()
    run()
    host = time.perf_counter() - start
    end.record()
    end.synchronize()
    return Sample(begin.elapsed_time(end) / 1000, host)


def rotated(items: Sequence[T], by: int) -> list[T]:
    """Return ``items`` from the ``by``-th on, then those before it.

    Example:
        >>> rotated("abc", 4)
        ['b', 'c', 'a']
    """
    start = by % len(items) if items else 0
    return [*items[start:], *items[:start]]


def _rounds(effort: Effort, label: str) -> Iterator[int]:
    """Count rounds, warm-up included, until there are enough or time is up."""
    start = time.monotonic()
    total = effort.warmup + effort.rounds
    with tqdm(total=total, desc=label, leave=False, disable=None) as bar:
        for number in range(total):
            if number - effort.warmup >= effort.least and time.monotonic() - start > effort.seconds:
                return
            yield number
            bar.update()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, 20th and 80th percentile over the rounds."""
    quantiles = np.quantile(values, (0.5, 0.2, 0.8)).tolist()
    return dict(zip(("median", "p20", "p80"), quantiles, strict=True))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over the rounds of ``ours / theirs``."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def fitted_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return e of ``value ~ size ** e``: the least-squares slope of the logarithms."""
    logs = ([math.log(x) for x in sizes], [math.log(y) for y in values])
    return statistics.linear_regression(*logs).slope
