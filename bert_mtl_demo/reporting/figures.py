"""The pictures of a run's report: losses, scores, and conflicts by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib.figure import Figure

from bert_mtl_demo.reporting import plots
from gradsurgery.report import PairCounts

Row = Mapping[str, Any]
COUNTS: tuple[Literal["conflicts", "altered"], ...] = ("conflicts", "altered")


def losses(rows: Sequence[Row]) -> Figure:
    """Training loss of each task, a panel for each: their units differ."""
    train = [row for row in rows if row["kind"] == "train"]
    tasks = list(dict.fromkeys(task for row in train for task in row["loss"]))
    figure, panels = plots.new_panels(tasks, xlabel="step", ylabel="loss")
    for axes, task in zip(panels, tasks, strict=True):
        steps = [row["step"] for row in train if task in row["loss"]]
        values = [row["loss"][task] for row in train if task in row["loss"]]
        plots.line(axes, steps, values, marker=".", color=plots.COLORS[0])
        axes.set_ylim(0, 1.1 * max(values) or 1)
    return figure


def scores(rows: Sequence[Row]) -> Figure:
    """Dev scores by epoch, with both overall scores."""
    dev = [row for row in rows if row["kind"] == "dev"]
    figure, (axes,) = plots.new_panels(["dev"], size=(5.2, 4.0), xlabel="step", ylabel="score")
    steps = [row["step"] for row in dev]
    for n, task in enumerate(dev[0]["scores"]):
        look = {**plots.style(n), "linestyle": "-"}
        plots.line(axes, steps, [row["scores"][task] for row in dev], label=task, **look)
    for overall, dashes in (("mean", "-"), ("leaderboard", "--")):
        values = [row[overall] for row in dev]
        plots.line(axes, steps, values, color="black", linestyle=dashes, label=overall)
    plots.legend(figure)
    return figure


def conflicts_by_epoch(rows: Sequence[Row]) -> Figure:
    """Rates of conflicts and of alterations, per ordered pair and epoch.

    Args:
        rows: totals with their epoch. A rate that has no meaning is not drawn.
    """
    epochs = sorted({row["epoch"] for row in rows})
    pairs = list(dict.fromkeys((row["i"], row["j"]) for row in rows))
    counts = {(row["epoch"], row["i"], row["j"]): PairCounts.from_json(row) for row in rows}
    known = [name for name in COUNTS if any(c.rate(name) is not None for c in counts.values())]
    figure, panels = plots.new_panels(known, size=(5, 3.8), ylabel="% of possible", ylim=(0, 100))
    for axes, name in zip(panels, known, strict=True):
        rates = {
            f"epoch {e}": [counts.get((e, *p), PairCounts()).rate(name) or 0.0 for p in pairs]
            for e in epochs
        }
        plots.bars(axes, [f"{i} <- {j}" for i, j in pairs], rates)
        if name == "conflicts":
            plots.level(axes, 50, ":")  # what coin flips would give
    plots.legend(figure, columns=6)
    return figure
