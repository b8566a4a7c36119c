"""The papers' figures, drawn again with what they lack: seeds, and published beside ours.

Which paper shows what: A losses by epoch and what Gradient Vaccine altered (its Figures 4 and 5), C
the time per epoch by number of tasks (Figure 1), D scores by epoch (Figure 1), E confusions and
similarities (Figures 2 to 4). Every page gets scores, differences, curves, and conflicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, permutations, product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bert_mtl_demo.reporting import plots
from bert_mtl_demo.reporting.figures import COUNTS
from bert_mtl_demo.study.outcomes import Outcomes
from bert_mtl_demo.study.published import Row
from bert_mtl_demo.study.results import Evaluation, Result
from bert_mtl_demo.tasks import TASKS
from gradsurgery.report import PairCounts

MOST_LINES = 6  # rows drawn as lines in one panel; more cannot be told apart

FILLED: dict[str, Any] = {"color": plots.COLORS[1], "markerfacecolor": plots.COLORS[1]}
HOLLOW: dict[str, Any] = {"color": "0.45", "markerfacecolor": "white"}
DIAMOND: dict[str, Any] = {"color": plots.COLORS[1], "markeredgecolor": "white"}

Drawing = tuple[Figure, str]  # and its caption


class Picture(NamedTuple):
    """A PNG and what stands below it."""

    path: Path
    caption: str


def draw_figures(outcomes: Outcomes, directory: Path) -> list[Picture]:
    """All figures of one paper that its results allow.

    Args:
        outcomes: rows and results; rows without results are left out of every figure.
        directory: of the PNGs; it is made.
    """
    pictures = []
    for name, draw in FIGURES.items():
        wanted = outcomes.ran and outcomes.report == PAPERS.get(name, outcomes.report)
        if wanted and (drawing := draw(outcomes)):
            directory.mkdir(parents=True, exist_ok=True)
            figure, caption = drawing
            pictures.append(Picture(plots.save(figure, directory / f"{name}.png"), caption))
    return pictures


def scores(outcomes: Outcomes) -> Drawing:
    """Every row's scores as bars from 0, with intervals, and the published values beside them."""
    names = outcomes.scored()
    figure, panels = _row_panels(names, outcomes.ran, "dev score")
    for axes, score in zip(panels, names, strict=True):
        for y, row in enumerate(outcomes.ran):
            ours, label = outcomes.interval(row, score), "ours, with 95% interval"
            if ours.n:
                axes.barh(y, ours.mean, 0.7, xerr=ours.half, color=plots.COLORS[5], label=label)
            if score in row.published:
                axes.plot(row.published[score], y, "D", label="published", **DIAMOND)
    plots.legend(figure)
    return figure, ("Scores on dev: ours as bars with 95% intervals, published as diamonds.")


def differences(outcomes: Outcomes) -> Drawing | None:
    """Every row minus its control, paired by seed: what the bars are too coarse to show."""
    rows = [row for row in outcomes.ran if outcomes.control_of(row)]
    names = outcomes.scored()
    columns = {name: [outcomes.comparison(row, name) for row in rows] for name in names}
    columns = {name: c for name, c in columns.items() if any(row.difference.n for row in c)}
    if not columns:
        return None
    figure, panels = _row_panels([*columns], rows, "difference")
    for axes, column in zip(panels, columns.values(), strict=True):
        axes.axvline(0, color="grey", linewidth=0.8)
        for y, comparison in enumerate(column):
            difference, look = comparison.difference, FILLED if comparison.differs else HOLLOW
            if difference.n:
                middle, half = difference.mean, difference.half
                axes.errorbar(middle, y, xerr=half, fmt="o", capsize=2, **look)
        axes.margins(x=0.15)
        axes.locator_params(axis="x", nbins=4)
    return figure, (
        "Differences to each row's control, paired by seed, with 95% intervals. Filled: the "
        "interval excludes 0. Hollow: inside the noise, or nothing to judge it by."
    )


def losses(outcomes: Outcomes) -> Drawing | None:
    """Training loss of each task by epoch."""

    def points(result: Result, task: str) -> list[tuple[float, float]]:
        steps = [row.step / row.epoch for row in result.epochs if task in row.scores]
        unit = steps[0] if steps else 1.0
        return [(row.step / unit, row.loss[task]) for row in result.losses if task in row.loss]

    return _curves(outcomes, "Training loss", "training loss", points)


def epochs(outcomes: Outcomes) -> Drawing | None:
    """Dev score of each task by epoch."""

    def points(result: Result, task: str) -> list[tuple[float, float]]:
        return [(row.epoch, row.scores[task]) for row in result.epochs if task in row.scores]

    return _curves(outcomes, "Dev scores", "dev score", points)


def _curves(
    outcomes: Outcomes,
    title: str,
    ylabel: str,
    points: Callable[[Result, str], Iterable[tuple[float, float]]],
) -> Drawing | None:
    """One panel per task, one line per selected row, one band over its seeds."""
    rows = outcomes.selected(outcomes.ran, MOST_LINES)
    curves: dict[str, dict[int, dict[float, list[float]]]] = {}  # task -> row -> x -> y by seed
    for task in TASKS:
        for number, row in enumerate(rows):
            for result in outcomes.of(row).values():
                for x, y in points(result, task):
                    if math.isfinite(y):
                        by_x = curves.setdefault(task, {}).setdefault(number, {})
                        by_x.setdefault(round(x, 6), []).append(y)
    if not curves:
        return None
    figure, panels = plots.new_panels([*curves], size=(4.6, 3.6), xlabel="epoch", ylabel=ylabel)
    for axes, by_row in zip(panels, curves.values(), strict=True):
        for number, by_x in by_row.items():
            xs = sorted(by_x)
            means, low, high = ([end(by_x[x]) for x in xs] for end in (fmean, min, max))
            look = plots.style(number) | ({"marker": ""} if len(xs) > 12 else {"markersize": 4})
            plots.line(axes, xs, means, (low, high), label=rows[number].name, **look)
        axes.locator_params(axis="x", integer=True)
    plots.legend(figure)
    caption = "by epoch, mean over seeds, the band from the lowest to the highest seed."
    return figure, f"{title} {caption} {_selection(outcomes)}"


def conflicts_by_epoch(outcomes: Outcomes) -> Drawing | None:
    """Conflicts and alterations of every two tasks by epoch, of rows whose gradients met."""
    rows = outcomes.selected(outcomes.surgical(), MOST_LINES)
    if not rows:
        return None
    counts = {
        row.name: outcomes.counts(row, lambda pair: (pair.epoch, frozenset((pair.i, pair.j))))
        for row in rows
    }
    epochs = sorted({epoch for totals in counts.values() for epoch, _ in totals})
    met = {pair for totals in counts.values() for _, pair in totals}
    pairs = [pair for pair in combinations(TASKS, 2) if frozenset(pair) in met]
    cases = list(product(COUNTS, pairs))
    titles = [f"{count}: {' and '.join(pair)}" for count, pair in cases]
    figure, panels = plots.new_panels(
        titles, len(pairs), (4.2, 3.0), xlabel="epoch", ylabel="% of possible", ylim=(-3, 103)
    )
    for axes, (count, pair) in zip(panels, cases, strict=True):
        for number, (name, totals) in enumerate(counts.items()):
            by_epoch = [totals.get((epoch, frozenset(pair)), PairCounts()) for epoch in epochs]
            look = plots.style(number) | {"markersize": 5}
            plots.line(axes, epochs, [c.rate(count) for c in by_epoch], label=name, **look)
        plots.level(axes, 50, ":")
        axes.set_xticks(epochs)
    plots.legend(figure)
    return figure, (
        "Conflicting and altered gradients by epoch and by pair of tasks, all seeds together. The "
        "dotted line is what cosines that are nothing but noise would give. " + _selection(outcomes)
    )


def conflicts_by_pair(outcomes: Outcomes) -> Drawing | None:
    """Conflicts and alterations of every row and ordered pair, as two shaded tables."""
    rows = outcomes.surgical()
    if not rows:
        return None
    counts = [outcomes.counts(row, lambda pair: (pair.i, pair.j)) for row in rows]
    pairs = [pair for pair in permutations(TASKS, 2) if any(pair in totals for totals in counts)]
    titles = [f"{count}, % of possible" for count in COUNTS]
    size = 2.4 + 0.7 * len(pairs), _height(rows) + 0.4
    figure, panels = plots.new_panels(titles, size=size)
    for axes, count, colors in zip(panels, COUNTS, ("PuOr", "Blues"), strict=True):
        cells = [[totals.get(pair, PairCounts()) for pair in pairs] for totals in counts]
        rates = [[pair.rate(count) for pair in row] for row in cells]
        names = _labels(rows) if axes is panels[0] else [""] * len(rows)
        columns = [f"{i} <- {j}" for i, j in pairs]
        texts = [["" if rate is None else f"{rate:.1f}" for rate in row] for row in rates]
        plots.shaded(axes, rates, names, columns, colors, (0, 100), texts)
    caption = (
        "Conflicting and altered gradients, all epochs and seeds together; `i <- j` reads: "
        "gradient i, altered because of j. White on the left is the half that pure "
        "noise would give; grey pairs never met."
    )
    if any(pair.altered is None for totals in counts for pair in totals.values()):
        caption += " Rows that are grey on the right alter no gradient because of another."
    return figure, caption


def times(outcomes: Outcomes) -> Drawing | None:
    """Time of an epoch against the number of tasks (paper C, Figure 1)."""
    seconds = {row.name: _seconds(outcomes, row) for row in outcomes.ran}
    rows = [row for row in outcomes.ran if seconds[row.name]]
    if not rows:
        return None
    size = 9.0, max(4.0, 0.8 * _height(rows))
    figure, (axes,) = plots.new_panels([""], size=size, xlabel="tasks", ylabel="seconds per epoch")
    axes.set(xlim=(0.5, 3.5), xticks=[1, 2, 3])
    for number, row in enumerate(rows):
        tasks = outcomes.trained(row)
        group = [other for other in rows if outcomes.trained(other) == tasks]
        x = tasks + ((group.index(row) + 0.5) / len(group) - 0.5) * 0.7  # apart: all are seen
        look = plots.style(number) | {"linestyle": ""}
        look |= {"markerfacecolor": "white"} if row.separate else {}
        plots.line(axes, [x] * len(seconds[row.name]), seconds[row.name], label=row.name, **look)
    axes.set_ylim(bottom=0)
    plots.legend(figure, columns=1, location="outside right center")
    return figure, (
        "Time of an epoch by the number of tasks, a point per seed. Hollow: one run per task, "
        "their times added. Epochs of different batchings have different numbers of steps."
    )


def confusions(outcomes: Outcomes) -> Drawing | None:
    """Confusion matrices of the baseline and of the best row (paper E, Figures 2 and 3)."""
    cases = [
        (task, row, answers.confusion)
        for task in TASKS.values()
        for row, answers in _answers(outcomes, task.name)
        if answers.confusion
    ]
    if not cases:
        return None
    titles = [f"{task.name}: {row.name}" for task, row, _ in cases]
    figure, panels = plots.new_panels(titles, 2, (5.6, 4.8))
    for axes, (task, _, table) in zip(panels, cases, strict=True):
        plots.confusion(axes, table, task.label_names)
    return figure, "Confusions on dev of the baseline and of the best row, lowest seed each."


def similarities(outcomes: Outcomes) -> Drawing | None:
    """Predicted against true similarity of the baseline and of the best row (E, Figure 4)."""
    cases = [(row, answers) for row, answers in _answers(outcomes, "sts") if answers.truth]
    if not cases:
        return None
    titles = [f"{row.name}: r = {answers.score:.3f}" for row, answers in cases]
    figure, panels = plots.new_panels(titles, size=(4.6, 4.4))
    for axes, (_, answers) in zip(panels, cases, strict=True):
        plots.similarity(axes, answers.truth, answers.found)
    return figure, "Similarity on dev, predicted against true, lowest seed each."


FIGURES: dict[str, Callable[[Outcomes], Drawing | None]] = {
    draw.__name__: draw
    for draw in (
        *(scores, differences, losses, epochs, conflicts_by_epoch, conflicts_by_pair),
        *(times, confusions, similarities),
    )
}
PAPERS = {"times": "bert_mastery", "confusions": "sbert_simcse", "similarities": "sbert_simcse"}


def _answers(outcomes: Outcomes, task: str) -> list[tuple[Row, Evaluation]]:
    """What the baseline and the best row answered, lowest seed each; once if they are the same."""
    rows = {row.name: row for row in (outcomes.compared_with, outcomes.best) if row is not None}
    seeds = [(row, list(outcomes.of(row).values())) for row in rows.values()]
    first = [(row, results[0].evaluation) for row, results in seeds if results]
    return [(row, evaluation[task]) for row, evaluation in first if task in evaluation]


def _row_panels(
    titles: Sequence[str], rows: Sequence[Row], xlabel: str
) -> tuple[Figure, list[Axes]]:
    """Panels with a line for each row, the first on top."""
    figure, panels = plots.new_panels(titles, size=(3.0, _height(rows)), xlabel=xlabel)
    for n, axes in enumerate(panels):
        axes.set_yticks(range(len(rows)), [""] * len(rows) if n else _labels(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
    return figure, panels


def _height(rows: Sequence[Row]) -> float:
    """Inches for so many rows below each other."""
    return 1.3 + 0.3 * len(rows)


def _labels(rows: Sequence[Row]) -> list[str]:
    """Names that leave room for the panels."""
    return [row.name if len(row.name) <= 44 else row.name[:43] + "…" for row in rows]


def _selection(outcomes: Outcomes) -> str:
    """The sentence that says which rows a figure of lines shows."""
    return f"At most {MOST_LINES} rows: the baseline, then the best by {outcomes.overall}."


def _seconds(outcomes: Outcomes, row: Row) -> list[float]:
    times = [result.seconds_per_epoch for result in outcomes.of(row).values()]
    return [seconds for seconds in times if seconds is not None]
