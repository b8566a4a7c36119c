"""Theme ``scaling``: how all of surgery grows with the tasks K and with the elements N.

Sizes take turns round by round, on shared gradients, so that the exponent compares like with like.
It is the slope of the logarithms, least squares. The work is linear in N; in K the bytes are linear
(2K + 1 per element, which fits as an exponent a little below 1), the multiplications of the Gram
pass quadratic: an exponent in K near the floor's says that memory is what counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import roofline, workloads
from benchmarks.harness import alternate, fitted_exponent
from benchmarks.options import Setting
from benchmarks.results import Result, Table, milliseconds
from benchmarks.themes.surgery import Passes, figures

COLUMNS = ("K", "N", "median ms", "p20", "p80", "floor ms", "over the floor", "rounds")

#: ``{axis: (task counts, element counts)}``; the one that stays has one entry.
Sweep = dict[str, tuple[list[int], list[int]]]

MILLION = 1 << 20

#: Elements per tensor; quick runs have smaller ones.
SLICE, QUICK_SLICE = MILLION, 1 << 12


def sweeps(setting: Setting) -> Sweep:
    """Return the sizes of both sweeps."""
    if setting.quick:
        return {"K": ([2, 3, 4], [1 << 14]), "N": ([3], [1 << 12, 1 << 13, 1 << 14])}
    if setting.device.type == "cuda":
        counts, elements = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64], 110 * MILLION
        return {"K": (counts, [elements]), "N": ([3], [MILLION << k for k in range(2, 11)])}
    counts = [2, 3, 4, 6, 8, 12, 16, 24, 32]
    return {"K": (counts, [22 * MILLION]), "N": ([3], [MILLION << k for k in range(2, 8)])}


def fitting(setting: Setting, tasks: list[int], elements: list[int]) -> tuple[list[int], list[int]]:
    """Return the sizes whose gradients take at most half of the free memory."""
    half = workloads.free_bytes(setting.device) // 2
    tasks = [count for count in tasks if 4 * count * elements[0] <= half]
    return tasks, [count for count in elements if 4 * tasks[0] * count <= half]


def measure(
    setting: Setting, tasks: list[int], elements: list[int]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the figures of each size, and the bandwidths of their rounds."""
    size = QUICK_SLICE if setting.quick else SLICE
    largest = workloads.sliced(max(elements), size)
    grads = workloads.gradients(largest.shapes, max(tasks), setting.device)
    probes = roofline.Probes(max(elements), setting.device, setting.probe_bytes)
    candidates = probes.candidates()
    sizes = {f"K = {k}, N = {n}": (k, n) for k in tasks for n in elements}
    for name, (count, length) in sizes.items():
        work = workloads.sliced(length, size)
        part = [grad[: len(work.shapes)] for grad in grads[:count]]
        candidates[name] = Passes(work, part, "model").candidates()["whole"]
    times = alternate(candidates, setting.effort(15, 60), setting.device, "scaling")
    rows = []
    for name, (count, length) in sizes.items():
        least = probes.floor(times, roofline.whole_traffic(count, length, 4))
        rows.append({"tasks": count, "elements": length, **figures(times, name, least)})
    return rows, probes.bandwidths(times)


def exponents(axis: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the exponents of the measured time and of the floor along one axis."""
    sizes = [row["tasks" if axis == "K" else "elements"] for row in rows]
    return {
        "measured": fitted_exponent(sizes, [row["seconds"]["median"] for row in rows]),
        "floor": fitted_exponent(sizes, [row["floor_seconds"] for row in rows]),
    }


def table(axis: str, rows: list[dict[str, Any]]) -> Table:
    """Return the table of one sweep."""
    lines = []
    for row in rows:
        taken = milliseconds([*row["seconds"].values(), row["floor_seconds"]])
        sizes = [str(row["tasks"]), str(row["elements"])]
        lines.append([*sizes, *taken, f"{row['over_floor']:.2f}", str(row["rounds"])])
    found = exponents(axis, rows)
    fit = f"fitted exponent {found['measured']:.2f}, the floor's {found['floor']:.2f}"
    return Table(f"Whole surgery against {axis}: {fit}", COLUMNS, lines)


def draw(path: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """Draw time and floor of both sweeps, in logarithms."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(9, 4), layout="constrained", squeeze=False)
    for plot, (axis, rows) in zip(axes[0], found.items(), strict=True):
        sizes = [row["tasks" if axis == "K" else "elements"] for row in rows]
        plot.loglog(sizes, _ms(row["seconds"]["median"] for row in rows), "o-", label="surgery")
        plot.loglog(sizes, _ms(row["floor_seconds"] for row in rows), "--", label="floor")
        fit = exponents(axis, rows)["measured"]
        plot.set(xlabel=axis, ylabel="ms", title=f"time ~ {axis}^{fit:.2f}")
        plot.set_xticks(sizes, labels=[_short(size) for size in sizes], rotation=45)
        plot.minorticks_off()
        plot.grid(True, alpha=0.3)
        plot.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _short(size: int) -> str:
    return f"{size // MILLION}M" if size >= MILLION else str(size)


def _ms(values: Iterable[float]) -> list[float]:
    return [1000 * value for value in values]


def run(setting: Setting) -> Result:
    """Measure the theme."""
    result = Result("scaling", roofline.FORMULA[setting.device.type])
    found: dict[str, list[dict[str, Any]]] = {}
    for axis, sizes in sweeps(setting).items():
        if setting.late:
            result.notes.append(f"{axis}: out of time")
            continue
        rows, bandwidths = measure(setting, *fitting(setting, *sizes))
        found[axis] = rows
        result.figures += [{"axis": axis, **row} for row in rows]
        result.parameters[f"exponent in {axis}"] = {
            name: round(value, 3) for name, value in exponents(axis, rows).items()
        }
        result.bandwidths = result.bandwidths or bandwidths
        result.tables.append(table(axis, rows))
    result.draw = lambda path: draw(path, found)
    result.notes += NOTES
    return result


NOTES = [
    "Linear in N is an exponent of 1. Linear in K is 2K + 1 passes over N elements, whose exponent "
    "over these K is the floor's; the K (K + 1) / 2 dot products alone would give nearly 2.",
]
