"""Theme ``scaling``: how all of surgery grows with the tasks K and with the elements N.

Sizes take turns round by round, on shared gradients, so that the exponent compares like with like.
It is the slope of the logarithms, least squares. The work is linear in N; in K the bytes are linear
(2K + 1 per element, which fits as an exponent a little below 1), the multiplications of the Gram
pass quadratic: an exponent in K near the floor's says that memory is what counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import Case, Theme
from benchmarks.passes import Passes, figures
from benchmarks.problems.encoders import sliced
from benchmarks.problems.gradients import random_gradients
from benchmarks.roofline import Probes, whole_traffic
from benchmarks.tables import ROUNDS, TIMES, Row, Table, decimals, field, milliseconds, table
from benchmarks.timing import alternate, fitted_exponent

MILLION = 1 << 20

#: Elements per tensor; quick runs have smaller ones.
SLICE, QUICK_SLICE = MILLION, 1 << 12

#: The field that varies along each axis.
VARIED = {"K": "tasks", "N": "elements"}


class Scaling(Theme):
    """A sweep along K and one along N."""

    name = "scaling"
    columns = (
        ("K", field("tasks")),
        ("N", field("elements")),
        *TIMES,
        ("floor ms", field("floor_seconds", milliseconds)),
        ("over the floor", field("over_floor", decimals(2))),
        ROUNDS,
    )
    remarks = (
        "Linear in N is an exponent of 1. Linear in K is 2K + 1 passes over N elements, whose "
        "exponent over these K is the floor's; the K (K + 1) / 2 dot products alone would give "
        "nearly 2.",
    )

    def parameters(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {
            f"exponent in {axis}": {name: round(e, 3) for name, e in exponents(axis, sweep).items()}
            for axis, sweep in by_axis(rows).items()
        }

    def cases(self) -> Iterator[Case]:
        for axis, (tasks, elements) in self.sweeps().items():
            yield Case(axis, partial(self._measure, axis, tasks, elements))

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        return [self._table(axis, sweep) for axis, sweep in by_axis(rows).items()]

    def _table(self, axis: str, rows: Sequence[Row]) -> Table:
        fit = "fitted exponent {measured:.2f}, the floor's {floor:.2f}"
        title = f"Whole surgery against {axis}: {fit.format(**exponents(axis, rows))}"
        return table(title, self.columns, rows)

    def sweeps(self) -> dict[str, tuple[list[int], list[int]]]:
        """Return the task counts and element counts of both sweeps."""
        if self.options.quick:
            return {"K": ([2, 3, 4], [1 << 14]), "N": ([3], [1 << 12, 1 << 13, 1 << 14])}
        counts = [2, 3, 4, 6, 8, 12, 16, 24, 32]
        if self.options.cuda:
            elements = [MILLION << k for k in range(2, 11)]
            return {"K": ([*counts, 48, 64], [110 * MILLION]), "N": ([3], elements)}
        return {"K": (counts, [22 * MILLION]), "N": ([3], [MILLION << k for k in range(2, 8)])}

    def fitting(self, tasks: list[int], elements: list[int]) -> tuple[list[int], list[int]]:
        """Return the sizes whose gradients take at most half of the free memory."""
        half = harness.free_bytes(self.options.device) // 2
        tasks = [count for count in tasks if 4 * count * elements[0] <= half]
        return tasks, [count for count in elements if 4 * tasks[0] * count <= half]

    def _measure(self, axis: str, tasks: list[int], elements: list[int]) -> list[Row]:
        options, size = self.options, QUICK_SLICE if self.options.quick else SLICE
        tasks, elements = self.fitting(tasks, elements)
        largest = sliced(max(elements), size)
        grads = random_gradients(largest.shapes, max(tasks), options.device)
        probes = Probes(max(elements), options.device, options.probe_bytes)
        candidates = probes.candidates()
        sizes = {f"K = {k}, N = {n}": (k, n) for k in tasks for n in elements}
        for name, (count, length) in sizes.items():
            shaped = sliced(length, size)
            part = [grad[: len(shaped.shapes)] for grad in grads[:count]]
            candidates[name] = Passes(shaped, part).candidates()["whole"]
        times = alternate(candidates, options.effort(15, cpu=60, cuda=60), options.device, axis)
        bandwidths = probes.bandwidths(times)
        rows = []
        for name, (count, length) in sizes.items():
            floor = probes.floor(times, whole_traffic(count, length, 4))
            row = {"axis": axis, "tasks": count, "elements": length, **figures(times, name, floor)}
            rows.append({**row, "bandwidths_gb_s": bandwidths})
        return rows

    def picture(self, rows: Sequence[Row]) -> Callable[[Path], object] | None:
        return partial(draw, rows) if rows else None


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw time and floor of both sweeps, in logarithms."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sweeps = by_axis(rows)
    figure, axes = plt.subplots(1, len(sweeps), figsize=(9, 4), layout="constrained", squeeze=False)
    for plot, (axis, sweep) in zip(axes[0], sweeps.items(), strict=True):
        sizes = [row[VARIED[axis]] for row in sweep]
        medians = [1000 * row["seconds"]["median"] for row in sweep]
        plot.loglog(sizes, medians, "o-", label="surgery")
        floors = [1000 * row["floor_seconds"] for row in sweep]
        plot.loglog(sizes, floors, "--", label="floor")
        fit = exponents(axis, sweep)["measured"]
        plot.set(xlabel=axis, ylabel="ms", title=f"time ~ {axis}^{fit:.2f}")
        plot.set_xticks(sizes, labels=[_short(size) for size in sizes], rotation=45)
        plot.minorticks_off()
        plot.grid(True, alpha=0.3)
        plot.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def by_axis(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each sweep."""
    axes = dict.fromkeys(row["axis"] for row in rows)
    return {axis: [row for row in rows if row["axis"] == axis] for axis in axes}


def exponents(axis: str, rows: Sequence[Row]) -> dict[str, float]:
    """Return the exponents of the measured time and of the floor along one axis."""
    sizes = [row[VARIED[axis]] for row in rows]
    return {
        "measured": fitted_exponent(sizes, [row["seconds"]["median"] for row in rows]),
        "floor": fitted_exponent(sizes, [row["floor_seconds"] for row in rows]),
    }


def _short(size: int) -> str:
    return f"{size // MILLION}M" if size >= MILLION else str(size)
