"""Theme ``step``: a whole training step with surgery, beside plain ones.

Same model, same batches, one AdamW for each kind of step; the kinds take turns step by step. The
floor of a step with surgery is the step loss by loss of the same round, and the bytes that surgery
has to move at the bandwidth of that round. What the statistics cost is clocked inside the steps,
and in the summary of the window at their end; their first call, which makes the sums, is left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.harness import Case, Theme
from benchmarks.problems.multitask import problem
from benchmarks.roofline import Probes, whole_traffic
from benchmarks.steps import step
from benchmarks.steps.step import EACH, FEEDS, SUM, SURGERY
from benchmarks.tables import ROUNDS, TIMES, Row, decimals, digits, field
from benchmarks.timing import Candidate, alternate, ratio
from gradsurgery import GradVac, PCGrad, Sum

METHODS = {"sum": Sum, "pcgrad": PCGrad, "gradvac": GradVac}

TASKS = 3


def clocked(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Return ``function``, which appends to ``seconds`` the time that each call takes."""

    def call(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds.append(time.perf_counter() - start)

    return call


class Step(Theme):
    """Both feeds, in fp32 and under autocast."""

    name = "step"
    floor = "a step with surgery takes at least the step loss by loss plus surgery's bytes"
    title = "{batches}, {precision}"
    columns = (
        ("step", field("step")),
        *TIMES,
        ("to sum(losses)", field("to_plain", decimals(3))),
        ("to loss by loss", field("to_loss_by_loss", decimals(3))),
        ("floor, to loss by loss", field("floor_to_loss_by_loss", decimals(3))),
        ROUNDS,
    )

    def cases(self) -> Iterator[Case]:
        for feed in FEEDS:
            for precision in ("fp32", "bf16 autocast"):
                label = f"{FEEDS[feed]}, {precision}"
                yield Case(label, partial(self._measure, feed, precision))

    def notes(self, rows: Sequence[Row]) -> list[str]:
        return [
            f"{row['batches']}, {row['precision']}: counting conflicts, summary included, takes "
            f"{digits(1e3 * row['statistics_seconds'])} ms of the host's time for a pcgrad step, "
            f"{100 * row['statistics_seconds'] / row['seconds']['median']:.2g}% of it."
            for row in rows
            if "statistics_seconds" in row
        ]

    def _measure(self, feed: str, precision: str) -> list[Row]:
        options = self.options
        model = problem(options, TASKS, bf16=precision != "fp32")
        steps = {kind: step.step(kind, model, feed) for kind in (SUM, EACH)}
        for name, method in METHODS.items():
            steps[name] = step.step(SURGERY[feed], model, feed, method)
        counting: list[float] = []
        conflicts = steps["pcgrad"].optimizer.conflicts
        conflicts.update = clocked(conflicts.update, counting)

        elements = sum(parameter.numel() for parameter in model.trunk)
        probes = Probes(elements, options.device, options.probe_bytes)
        times = alternate(
            probes.candidates() | {kind: Candidate(steps[kind]) for kind in steps},
            options.effort(31, cpu=90, cuda=10),
            options.device,
            f"{FEEDS[feed]}, {precision}",
        )
        floor = probes.floor(times, whole_traffic(TASKS, elements, 4), after=EACH)
        floor_ratio = ratio(floor, times.seconds(EACH))
        rows = [
            {
                "batches": FEEDS[feed],
                "precision": precision,
                "step": kind,
                **times.figures(kind, to_plain=SUM, to_loss_by_loss=EACH),
                "floor_to_loss_by_loss": floor_ratio if kind in METHODS else 1.0,
                "bandwidths_gb_s": probes.bandwidths(times),
            }
            for kind in steps
        ]
        clocked(conflicts.summary, counting)()  # adds up what the steps only put aside
        rows[list(steps).index("pcgrad")]["statistics_seconds"] = statistics.mean(counting[1:])
        return rows
