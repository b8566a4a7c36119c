"""The pictures of a run's report: losses, scores, and conflicts by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bert_mtl_demo.reporting import plots
from gradsurgery.report import PairCounts

Row = Mapping[str, Any]
COUNTS: tuple[Literal["conflicts", "altered"], ...] = ("conflicts", "altered")


def losses(rows: Sequence[Row]) -> Figure:
    """Training loss of each task, a panel for each: their units differ.

    The scales are those of the values: from zero, a loss that falls by a tenth would lie flat.
    """
    train = [row for row in rows if row["kind"] == "train"]
    tasks = list(dict.fromkeys(task for row in train for task in row["loss"]))
    figure, panels = plots.new_panels(
        tasks, columns=min(3, len(tasks)), xlabel="step", ylabel="loss"
    )
    for axes, task in zip(panels, tasks, strict=True):
        steps = [row["step"] for row in train if task in row["loss"]]
        values = [row["loss"][task] for row in train if task in row["loss"]]
        plots.line(axes, steps, values, marker=".", color=plots.COLORS[0])
        _number(axes, steps)
    return figure


def scores(rows: Sequence[Row]) -> Figure:
    """Dev scores by epoch, with both overall scores."""
    dev = [row for row in rows if row["kind"] == "dev"]
    figure, (axes,) = plots.new_panels(["dev"], size=(5.2, 4.0), xlabel="epoch", ylabel="score")
    epochs = [row["epoch"] for row in dev]
    for n, task in enumerate(dev[0]["scores"]):
        look = {**plots.style(n), "linestyle": "-"}
        plots.line(axes, epochs, [row["scores"][task] for row in dev], label=task, **look)
    overall_scores = (("mean", "-"), ("leaderboard", "--")) if len(dev[0]["scores"]) > 1 else ()
    for overall, dashes in overall_scores:
        values = [row[overall] for row in dev]
        look = {"color": "black", "linestyle": dashes, "marker": "."}
        plots.line(axes, epochs, values, label=overall, **look)
    _number(axes, epochs)
    plots.legend(figure)
    return figure


def conflicts_by_epoch(rows: Sequence[Row]) -> Figure:
    """Rates of conflicts and of alterations by epoch, a line for each pair of tasks.

    Args:
        rows: totals with their epoch; both directions of a pair are added up. A rate that has no
            meaning, or is zero throughout as the sum's alterations are, has no panel.
    """
    counts: dict[tuple[str, str], dict[float, PairCounts]] = {}
    for row in rows:
        i, j = row["i"], row["j"]
        epochs = counts.setdefault((j, i) if (j, i) in counts else (i, j), {})
        epochs[row["epoch"]] = epochs.get(row["epoch"], PairCounts()) + PairCounts.from_json(row)
    known = [
        name
        for name in COUNTS
        if name == "conflicts"
        or any(total.rate(name) for epochs in counts.values() for total in epochs.values())
    ]
    figure, panels = plots.new_panels(
        known, size=(5, 3.8), xlabel="epoch", ylabel="% of possible", ylim=(-3, 103)
    )
    for axes, name in zip(panels, known, strict=True):
        for n, ((i, j), epochs) in enumerate(counts.items()):
            rates = [total.rate(name) for total in epochs.values()]
            plots.line(axes, list(epochs), rates, label=f"{i}, {j}", **plots.style(n))
        _number(axes, [row["epoch"] for row in rows])
        if name == "conflicts":
            plots.level(axes, 50, ":")  # what coin flips would give
    plots.legend(figure, columns=5)
    return figure


def _number(axes: Axes, positions: Sequence[float]) -> None:
    """Whole numbers on the x axis, with room where there is only one."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if positions and min(positions) == max(positions):
        axes.set_xlim(positions[0] - 1, positions[0] + 1)
