"""Losses and dev scores by epoch: a line per row, a band over its seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bert_mtl_demo.reporting.plots import new_panels, save
from bert_mtl_demo.study.outcomes import Outcomes
from bert_mtl_demo.study.results import Result
from bert_mtl_demo.study.style import MOST_LINES, Picture, chosen, style_of
from bert_mtl_demo.tasks import TASKS


def draw_losses(outcomes: Outcomes, place: Path) -> Picture | None:
    """Training loss of each task by epoch."""

    def points(result: Result, task: str) -> list[tuple[float, float]]:
        unit = _steps_per_epoch(result, task)
        return [(row.step / unit, row.loss[task]) for row in result.losses if task in row.loss]

    figure = _curves(outcomes, "training loss", points)
    if figure is None:
        return None
    caption = (
        "Training loss by epoch, mean over seeds, the band from the lowest to the highest seed. "
        + chosen(outcomes)
    )
    return Picture(save(figure, place / "losses.png"), caption)


def draw_epochs(outcomes: Outcomes, place: Path) -> Picture | None:
    """Dev score of each task by epoch."""

    def points(result: Result, task: str) -> list[tuple[float, float]]:
        return [(row.epoch, row.scores[task]) for row in result.epochs if task in row.scores]

    figure = _curves(outcomes, "dev score", points)
    if figure is None:
        return None
    caption = (
        "Dev scores by epoch, mean over seeds, the band from the lowest to the highest seed. "
        + chosen(outcomes)
    )
    return Picture(save(figure, place / "epochs.png"), caption)


def _curves(
    outcomes: Outcomes, ylabel: str, points: Callable[[Result, str], list[tuple[float, float]]]
) -> Any:
    """One panel per task, one line per selected row, one band over its seeds."""
    rows = outcomes.selected(outcomes.ran, MOST_LINES)
    lines: dict[tuple[str, str], dict[float, list[float]]] = {}
    for row in rows:
        for task in TASKS:
            for result in outcomes.of(row).values():
                for x, y in points(result, task):
                    if math.isfinite(y):
                        by_x = lines.setdefault((task, row.name), {})
                        by_x.setdefault(round(x, 6), []).append(y)
    tasks = [task for task in TASKS if any(name == task for name, _ in lines)]
    if not tasks:
        return None
    figure, panels = new_panels(len(tasks), size=(4.6, 3.6))
    handles = {}
    for axes, task in zip(panels, tasks, strict=True):
        for number, row in enumerate(rows):
            by_x = lines.get((task, row.name), {})
            xs = sorted(by_x)
            if not xs:
                continue
            style = style_of(number) | ({"marker": ""} if len(xs) > 12 else {"markersize": 4})
            means = [math.fsum(by_x[x]) / len(by_x[x]) for x in xs]
            (handles[row.name],) = axes.plot(xs, means, **style, label=row.name)
            low, high = [min(by_x[x]) for x in xs], [max(by_x[x]) for x in xs]
            axes.fill_between(xs, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axes.set(title=task, xlabel="epoch", ylabel=ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=3)
    return figure


def _steps_per_epoch(result: Result, task: str) -> float:
    """Steps of an epoch of the run that trained this task; 1 where no epoch was finished."""
    found = [row.step / row.epoch for row in result.epochs if task in row.scores]
    return found[0] if found else 1.0
