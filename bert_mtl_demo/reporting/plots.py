"""The demo's own pictures: losses, scores, conflicts by epoch, confusions, similarity.

Every function takes plain rows or arrays, writes one PNG, and returns its path. Figures are made
without pyplot: no global state, no window, no memory that stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

Row = Mapping[str, Any]


def losses(rows: Sequence[Row], path: Path) -> Path:
    """Training loss of each task, one panel each: their units differ."""
    train = [row for row in rows if row["kind"] == "train"]
    tasks = list(dict.fromkeys(task for row in train for task in row["loss"]))
    figure, panels = new_panels(len(tasks))
    for axes, task in zip(panels, tasks, strict=True):
        points = [(row["step"], row["loss"][task]) for row in train if task in row["loss"]]
        axes.plot(*zip(*points, strict=True), marker=".", color="tab:blue")
        top = 1.1 * max(loss for _, loss in points)
        axes.set(title=task, xlabel="step", ylabel="loss", ylim=(0, top or 1))
    return save(figure, path)


def scores(rows: Sequence[Row], path: Path) -> Path:
    """Dev scores by epoch, with both overall scores."""
    dev = [row for row in rows if row["kind"] == "dev"]
    figure, (axes,) = new_panels(1)
    steps = [row["step"] for row in dev]
    for task in dev[0]["scores"]:
        axes.plot(steps, [row["scores"][task] for row in dev], marker="o", label=task)
    for overall, style in (("mean", "-"), ("leaderboard", "--")):
        axes.plot(steps, [row[overall] for row in dev], style, color="black", label=overall)
    axes.set(title="dev", xlabel="step", ylabel="score")
    axes.legend()
    return save(figure, path)


def conflicts_by_epoch(totals: Sequence[Row], path: Path) -> Path:
    """Share of conflicting and of altered gradients, per ordered pair and epoch, as bars.

    Args:
        totals: rows with epoch, i, j, possible, conflicts, altered.
        path: the PNG.
    """
    pairs = list(dict.fromkeys((row["i"], row["j"]) for row in totals))
    epochs = sorted({row["epoch"] for row in totals})
    figure, panels = new_panels(2)
    places, width = np.arange(len(pairs)), 0.8 / len(epochs)
    for axes, what in zip(panels, ("conflicts", "altered"), strict=True):
        for n, epoch in enumerate(epochs):
            share = {
                (row["i"], row["j"]): row[what] / row["possible"] if row["possible"] else 0.0
                for row in totals
                if row["epoch"] == epoch
            }
            heights = [100 * share.get(pair, 0.0) for pair in pairs]
            axes.bar(places + n * width, heights, width, label=f"epoch {epoch}")
        axes.set_xticks(places + 0.4 - width / 2, [f"{i} <- {j}" for i, j in pairs], rotation=30)
        axes.set(title=what, ylabel="% of steps", ylim=(0, 100))
    panels[0].axhline(50, color="grey", linewidth=0.8, linestyle=":")  # what coin flips would give
    panels[1].legend()
    return save(figure, path)


def confusion(table: ArrayLike, names: Sequence[str], title: str, path: Path) -> Path:
    """A confusion matrix: colour by row share, counts written in."""
    figure = Figure(figsize=(1.5 + 0.9 * len(names), 1.2 + 0.8 * len(names)), layout="constrained")
    draw_confusion(figure.subplots(), table, names, title)
    return save(figure, path)


def draw_confusion(axes: Any, table: ArrayLike, names: Sequence[str], title: str) -> None:
    """A confusion matrix on given axes."""
    counts = np.asarray(table)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.grid(False)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        color = "white" if share[i, j] > 0.5 else "black"
        axes.text(j, i, str(count), ha="center", va="center", color=color)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(title=title, xlabel="predicted", ylabel="true")


def similarity(
    truth: ArrayLike,
    found: ArrayLike,
    title: str,
    path: Path,
    limits: tuple[float, float] = (0.0, 5.0),
) -> Path:
    """Predicted against true similarity, with the line on which they would agree."""
    figure, (axes,) = new_panels(1)
    draw_similarity(axes, truth, found, title, limits)
    return save(figure, path)


def draw_similarity(
    axes: Any,
    truth: ArrayLike,
    found: ArrayLike,
    title: str,
    limits: tuple[float, float] = (0.0, 5.0),
) -> None:
    """Predicted against true similarity on given axes; labels lie within the limits."""
    found = np.asarray(found)
    low, high = limits
    axes.plot(limits, limits, color="grey", linewidth=0.8)
    axes.scatter(np.asarray(truth), found, s=10, alpha=0.5)
    # Heads without bounds answer outside of the limits, and those answers count as well.
    margin = (high - low) / 50
    reach = found.min(initial=low) - margin, found.max(initial=high) + margin
    xlim = low - margin, high + margin
    axes.set(title=title, xlabel="true", ylabel="predicted", xlim=xlim, ylim=reach)


def new_panels(
    count: int, columns: int | None = None, size: tuple[float, float] = (4.2, 3.4)
) -> tuple[Figure, list[Any]]:
    """A figure of so many panels, all in one row or in rows of `columns`.

    >>> figure, panels = new_panels(3, columns=2)
    >>> len(panels), figure.get_size_inches().tolist()
    (3, [8.4, 6.8])
    """
    columns = max(columns or count, 1)
    rows = max(math.ceil(count / columns), 1)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    every = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in every[:count]:
        axes.grid(alpha=0.3)
    for axes in every[count:]:
        axes.set_axis_off()
    return figure, every[:count]


def save(figure: Figure, path: Path) -> Path:
    """Write the PNG."""
    figure.savefig(path, dpi=110)
    return path
