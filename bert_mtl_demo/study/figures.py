"""The reports' figures, drawn again with what the reports lack: seeds, and published beside ours.

Which report shows what: A losses by epoch and what Gradient Vaccine altered (its Figures 4 and 5),
C the time per epoch by number of tasks (Figure 1), D scores by epoch (Figure 1), E confusions and
similarities (Figures 2 to 4). Every report gets scores, differences, curves, and conflicts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bert_mtl_demo.reporting.plots import draw_confusion, draw_similarity, new_panels, save
from bert_mtl_demo.study.conflict_figures import draw_conflicts_by_epoch, draw_conflicts_by_pair
from bert_mtl_demo.study.curves import draw_epochs, draw_losses
from bert_mtl_demo.study.outcomes import Outcomes
from bert_mtl_demo.study.published import Row
from bert_mtl_demo.study.results import Result
from bert_mtl_demo.study.style import COLORS, MARKERS, Picture, height, rows_on_y
from bert_mtl_demo.tasks import TASKS

TIMES, APPENDIX = "bert_mastery", "sbert_simcse"  # reports with a figure of their own


def draw_figures(outcomes: Outcomes, place: Path) -> list[Picture]:
    """All figures of one report that its results allow.

    Args:
        outcomes: rows and results; rows without results are left out of every figure.
        place: folder of the PNGs; it is made.
    """
    if not outcomes.ran:
        return []
    place.mkdir(parents=True, exist_ok=True)
    figures: list[Callable[[Outcomes, Path], Picture | None]] = [
        draw_scores,
        draw_differences,
        draw_losses,
        draw_epochs,
        draw_conflicts_by_epoch,
        draw_conflicts_by_pair,
    ]
    figures += [draw_times] if outcomes.report == TIMES else []
    figures += [draw_confusions, draw_similarities] if outcomes.report == APPENDIX else []
    return [picture for draw in figures if (picture := draw(outcomes, place)) is not None]


def draw_scores(outcomes: Outcomes, place: Path) -> Picture:
    """Every row's scores as bars from 0, with intervals, and the published values beside them."""
    names, rows = outcomes.scored(), outcomes.ran
    figure, panels = new_panels(len(names), size=(3.0, height(rows)))
    for axes, score in zip(panels, names, strict=True):
        for y, row in enumerate(rows):
            ours = outcomes.interval(row, score)
            if ours.n:
                axes.barh(y, ours.mean, 0.7, xerr=ours.half, color=COLORS[5], ecolor="black")
            if score in row.published:
                axes.plot(row.published[score], y, "D", color=COLORS[1], markeredgecolor="white")
        rows_on_y(axes, rows if axes is panels[0] else [""] * len(rows))
        axes.set_axisbelow(True)
        axes.set(title=score, xlabel="dev score")
    bar = panels[0].barh(0, 0, color=COLORS[5], label="ours, with 95% interval")
    (published,) = panels[0].plot([], [], "D", color=COLORS[1], label="published")
    figure.legend(handles=[bar, published], loc="outside lower center", ncols=2)
    caption = "Scores on dev: ours as bars with 95% intervals over seeds, published as diamonds."
    return Picture(save(figure, place / "scores.png"), caption)


def draw_differences(outcomes: Outcomes, place: Path) -> Picture | None:
    """Every row minus the baseline, paired by seed: what the bars are too coarse to show."""
    base = outcomes.compared_with
    rows = [row for row in outcomes.ran if row != base]
    found = {
        (row.name, score): outcomes.comparison(row, score)
        for row in rows
        for score in outcomes.scored()
    }
    names = [s for s in outcomes.scored() if any(found[row.name, s].difference.n for row in rows)]
    if not names:
        return None
    figure, panels = new_panels(len(names), size=(3.0, height(rows)))
    for axes, score in zip(panels, names, strict=True):
        axes.axvline(0, color="grey", linewidth=0.8)
        for y, row in enumerate(rows):
            one = found[row.name, score]
            if one.difference.n:
                color, marker = (COLORS[1], "o") if one.differs else ("0.45", "o")
                face = color if one.differs else "white"
                axes.errorbar(
                    one.difference.mean,
                    y,
                    xerr=one.difference.half,
                    fmt=marker,
                    color=color,
                    markerfacecolor=face,
                    capsize=2,
                )
        rows_on_y(axes, rows if axes is panels[0] else [""] * len(rows))
        axes.set(title=score, xlabel="difference")
        axes.margins(x=0.15)
        axes.locator_params(axis="x", nbins=4)
    caption = (
        f"Differences to {base.name!r}, paired by seed, with 95% intervals. Filled: the interval "
        "excludes 0. Hollow: inside the noise, or nothing to judge it by."
    )
    return Picture(save(figure, place / "differences.png"), caption)


def draw_times(outcomes: Outcomes, place: Path) -> Picture | None:
    """Time of an epoch against the number of tasks (report C, Figure 1)."""
    rows = [row for row in outcomes.ran if _seconds(outcomes, row)]
    if not rows:
        return None
    figure, (axes,) = new_panels(1, size=(9.0, max(4.0, 0.8 * height(rows))))
    for n, row in enumerate(rows):
        seconds, tasks = _seconds(outcomes, row), outcomes.trained(row)
        group = [other for other in rows if outcomes.trained(other) == tasks]
        apart = ((group.index(row) + 0.5) / len(group) - 0.5) * 0.7  # so that all are seen
        axes.plot(
            [tasks + apart] * len(seconds),
            seconds,
            MARKERS[n % len(MARKERS)],
            color=COLORS[n % len(COLORS)],
            markerfacecolor="white" if row.separate else None,
            label=row.name,
        )
    axes.set(xlabel="tasks", ylabel="seconds per epoch", xlim=(0.5, 3.5), ylim=(0, None))
    axes.set_xticks([1, 2, 3])
    figure.legend(loc="outside right center")
    caption = (
        "Time of an epoch by the number of tasks, a point per seed. Hollow: one run per task, "
        "their times added. Epochs of different batchings have different numbers of steps."
    )
    return Picture(save(figure, place / "times.png"), caption)


def draw_confusions(outcomes: Outcomes, place: Path) -> Picture | None:
    """Confusion matrices of the baseline and of the best row (report E, Figures 2 and 3)."""
    tasks = [task for task in TASKS.values() if task.classes]
    shown = [
        (task, row, result.evaluation[task.name])
        for task in tasks
        for row, result in first_and_best(outcomes)
        if task.name in result.evaluation and result.evaluation[task.name].confusion
    ]
    if not shown:
        return None
    figure, panels = new_panels(len(shown), 2, (5.6, 4.8))
    for axes, (task, row, found) in zip(panels, shown, strict=True):
        title = f"{task.name}: {row.name}"
        draw_confusion(axes, found.confusion, task.label_names, title)
    caption = "Confusions on dev of the baseline and of the best row, lowest seed each."
    return Picture(save(figure, place / "confusions.png"), caption)


def draw_similarities(outcomes: Outcomes, place: Path) -> Picture | None:
    """Predicted against true similarity of the baseline and of the best row (E, Figure 4)."""
    shown = [
        (row, result.evaluation["sts"])
        for row, result in first_and_best(outcomes)
        if "sts" in result.evaluation and result.evaluation["sts"].truth
    ]
    if not shown:
        return None
    figure, panels = new_panels(len(shown), size=(4.6, 4.4))
    for axes, (row, found) in zip(panels, shown, strict=True):
        draw_similarity(axes, found.truth, found.found, f"{row.name}: r = {found.score:.3f}")
    caption = "Similarity on dev, predicted against true, lowest seed each."
    return Picture(save(figure, place / "similarities.png"), caption)


def first_and_best(outcomes: Outcomes) -> list[tuple[Row, Result]]:
    """The baseline and the best row, each with its lowest seed; once if they are the same."""
    rows = [outcomes.compared_with, *([outcomes.best] if outcomes.best else [])]
    found = {row.name: (row, outcomes.of(row)) for row in rows}
    return [(row, next(iter(seeds.values()))) for row, seeds in found.values() if seeds]


def _seconds(outcomes: Outcomes, row: Row) -> list[float]:
    every = [result.seconds_per_epoch for result in outcomes.of(row).values()]
    return [seconds for seconds in every if seconds is not None]
