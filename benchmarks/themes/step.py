"""Theme ``step``: a whole training step with surgery, beside plain ones.

Same model, same batches, one AdamW for each kind of step; the kinds take turns step by step. The
floor of a step with surgery is the step loss by loss of the same round, and the bytes that surgery
has to move at the bandwidth of that round. What the statistics cost is clocked inside the steps,
and in the summary of the window at their end; their first call, which makes the sums, is left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import roofline, steps
from benchmarks.harness import Candidate, Times, alternate, ratio, seconds, spread
from benchmarks.options import Setting
from benchmarks.results import Result, Table, digits, milliseconds

KINDS = (steps.PLAIN, steps.EACH, *steps.METHODS)

COLUMNS = (
    *("step", "median ms", "p20", "p80"),
    *("to sum(losses)", "to loss by loss", "floor, to loss by loss", "rounds"),
)


class Stopwatch:
    """Counts the time inside of one function."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function``, clocked."""

        def clocked(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds.append(time.perf_counter() - start)

        return clocked


def size_of(setting: Setting) -> steps.Size:
    """Return the model and batch for this device."""
    return steps.SIZES["quick" if setting.quick else setting.device.type]


def measure(setting: Setting, feed: str, bf16: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return one comparison's figures, and the bandwidths of its rounds."""
    problem = steps.problem(size_of(setting), setting.device, bf16)
    elements = sum(p.numel() for p in problem.model.encoder.parameters())
    probes = roofline.Probes(elements, setting.device, setting.probe_bytes)
    kinds = {kind: steps.build(kind, problem, feed) for kind in KINDS if kind != "pcgrad"}
    optimizer, watch = steps.wrapped("pcgrad", problem.model), Stopwatch()
    optimizer.conflicts.update = watch.around(optimizer.conflicts.update)  # type: ignore[method-assign]
    kinds["pcgrad"] = steps.surgery(problem, feed, optimizer)
    times = alternate(
        probes.candidates() | {kind: Candidate(kinds[kind]) for kind in KINDS},
        setting.effort(31, 90 if setting.device.type == "cpu" else 10),
        setting.device,
        f"{steps.FEEDS[feed]}, {precision(bf16)}",
    )
    surgery = probes.floor(times, roofline.whole_traffic(len(steps.TASKS), elements, 4))
    least = [a + b for a, b in zip(seconds(times[steps.EACH]), surgery, strict=True)]
    facts = {"batches": steps.FEEDS[feed], "precision": precision(bf16)}
    rows = [{**facts, "step": kind, **figures(times, kind, least)} for kind in KINDS]
    watch.around(optimizer.conflicts.summary)()  # adds up what the steps only put aside
    rows[KINDS.index("pcgrad")]["statistics_seconds"] = statistics.mean(watch.seconds[1:])
    return rows, probes.bandwidths(times)


def precision(bf16: bool) -> str:
    """Name the precision."""
    return "bf16 autocast" if bf16 else "fp32"


def figures(times: Times, kind: str, least: list[float]) -> dict[str, Any]:
    """Return one kind's figures; ``least`` is the floor of a step with surgery."""
    taken, each = seconds(times[kind]), seconds(times[steps.EACH])
    return {
        "rounds": len(taken),
        "seconds": spread(taken)._asdict(),
        "to_plain": ratio(taken, seconds(times[steps.PLAIN])),
        "to_loss_by_loss": ratio(taken, each),
        "floor_to_loss_by_loss": ratio(least, each) if kind in steps.METHODS else 1.0,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Return one comparison's table."""
    lines = []
    for row in rows:
        ratios = (row["to_plain"], row["to_loss_by_loss"], row["floor_to_loss_by_loss"])
        taken = milliseconds(row["seconds"].values())
        texts = [*taken, *(f"{figure:.3f}" for figure in ratios), str(row["rounds"])]
        lines.append([row["step"], *texts])
    return Table(f"{rows[0]['batches'].capitalize()}, {rows[0]['precision']}", COLUMNS, lines)


def counting(rows: list[dict[str, Any]]) -> str:
    """Say what the statistics cost."""
    row = next(row for row in rows if "statistics_seconds" in row)
    taken, step = row["statistics_seconds"], row["seconds"]["median"]
    return (
        f"{row['batches']}, {row['precision']}: counting conflicts, summary included, takes "
        f"{digits(1e3 * taken)} ms of the host's time for a pcgrad step, "
        f"{100 * taken / step:.2g}% of it."
    )


def run(setting: Setting) -> Result:
    """Measure the theme."""
    result = Result(
        "step",
        "a step with surgery takes at least the step loss by loss plus surgery's bytes; "
        + roofline.FORMULA[setting.device.type],
    )
    result.parameters = {"tasks": len(steps.TASKS), **size_of(setting)._asdict()}
    for feed in steps.FEEDS:
        for bf16 in (False, True):
            if setting.late:
                result.notes.append(f"{steps.FEEDS[feed]}, {precision(bf16)}: out of time")
                continue
            rows, bandwidths = measure(setting, feed, bf16)
            result.figures += rows
            result.bandwidths = result.bandwidths or bandwidths
            result.tables.append(table(rows))
            result.notes.append(counting(rows))
    return result
