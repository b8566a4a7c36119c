"""The factorial's pictures, drawn from its pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from bert_mtl_demo.reporting import plots
from research.surgery.count_law import expected_alterations
from research.surgery.records import by_task


def weights(runs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Mean weights of every arm, a point a seed, against what pure noise predicts."""
    tasks = list(by_task(*_of_first(runs)))
    figure, panels = plots.new_panels(
        tasks, size=(3.4, 3.4), xlabel="predicted by pure noise", ylabel="mean weight"
    )
    for number, (arm, records) in enumerate(runs.items()):
        look = {**plots.style(number), "linestyle": ""}
        for n, axes in enumerate(panels):
            points = [(record["noise"][n], record["weights"][n]) for record in records.values()]
            axes.plot([x for x, _ in points], [y for _, y in points], label=arm, **look)
    for axes in panels:
        low, high = axes.get_xlim()
        axes.plot([low, high], [low, high], color="grey", linewidth=0.8)
    plots.legend(figure, columns=4)
    return figure


def _of_first(runs: Mapping[str, Mapping[str, Any]]) -> tuple[list[float], dict[str, float]]:
    record = next(iter(next(iter(runs.values())).values()))
    return record["weights"], record["scores"]


def counts(replays: Mapping[str, Any]) -> Figure:
    """Alterations of each epoch for every rate: replayed, and by the count law."""
    figure, (axes,) = plots.new_panels(
        ["one run, replayed"], size=(5.2, 3.8), xlabel="epoch", ylabel="alterations"
    )
    for number, (beta, replayed) in enumerate(replays["counts"].items()):
        epochs = range(1, len(replayed) + 1)
        law = [
            expected_alterations(
                epoch,
                beta=float(beta),
                pairs=replays["pairs"],
                steps=replays["steps"],
                start=replays["start"],
            )
            for epoch in epochs
        ]
        color = plots.COLORS[number % len(plots.COLORS)]
        plots.line(axes, epochs, law, color=color, linestyle="--", label=f"beta {beta}, law")
        plots.line(axes, epochs, replayed, color=color, marker="o", label=f"beta {beta}, replayed")

    axes.set_yscale("symlog")
    plots.legend(figure, columns=2)
    return figure
