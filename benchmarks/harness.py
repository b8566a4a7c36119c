"""Timing: candidates take turns, and are compared inside the rounds that they took together.

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
from typing import NamedTuple, TypeVar

import torch
from tqdm import tqdm

T = TypeVar("T")


class Effort(NamedTuple):
    """How long to measure.

    Attributes:
        rounds: the most that are counted.
        least: the fewest that are counted.
        seconds: no round is begun after these, once ``least`` are done.
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
    """What is timed, and what has to be put in place before each time (untimed)."""

    run: Callable[[], object]
    prepare: Callable[[], object] = nothing


class Sample(NamedTuple):
    """One call: the device's time, and the time until the call returned to the host, seconds."""

    seconds: float
    host: float


#: What :func:`alternate` measured, by candidate, round by round.
Times = dict[str, list[Sample]]


class Clock:
    """Times calls, on CUDA by events on the device.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def time(self, run: Callable[[], object]) -> Sample:
        """Run it once."""
        if self._cuda:
            return self._on_cuda(run)
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        return Sample(seconds, seconds)

    def _on_cuda(self, run: Callable[[], object]) -> Sample:
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


def alternate(
    candidates: Mapping[str, Candidate], effort: Effort, device: torch.device, label: str = ""
) -> Times:
    """Time the candidates in turn.

    Args:
        candidates: by name.
        effort: how many rounds.
        device: where they work.
        label: what the progress bar says.

    Returns:
        Samples by name; those of one position belong to one round.
    """
    clock, names = Clock(device), list(candidates)
    times: Times = {name: [] for name in names}
    for number in _rounds(effort, label):
        for name in rotated(names, number):
            candidates[name].prepare()
            sample = clock.time(candidates[name].run)
            if number >= effort.warmup:
                times[name].append(sample)
    return times


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


class Spread(NamedTuple):
    """A quantity over the rounds: median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def quantile(values: Sequence[float], q: float) -> float:
    """Return the ``q``-quantile, between neighbours by straight lines; defined for one value too.

    Example:
        >>> quantile([4.0, 1.0, 2.0], 0.75)
        3.0
    """
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def spread(values: Sequence[float]) -> Spread:
    """Return median, 20th and 80th percentile."""
    return Spread(*(quantile(values, q) for q in (0.5, 0.2, 0.8)))


def seconds(samples: Sequence[Sample]) -> list[float]:
    """Return the device's times."""
    return [sample.seconds for sample in samples]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over the rounds of ``ours / theirs``."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def fitted_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return e of ``value ~ size ** e``: the least-squares slope of the logarithms."""
    logs = ([math.log(x) for x in sizes], [math.log(y) for y in values])
    return statistics.linear_regression(*logs).slope
