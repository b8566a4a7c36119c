"""The study's pictures: each function chooses what a figure shows from the pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bert_mtl_demo.reporting import plots
from bert_mtl_demo.study.intervals import Interval, interval
from gradsurgery.report import PairCounts
from research.conflicts import estimate, simultaneous
from research.conflicts.estimate import Probed
from research.conflicts.simultaneous import Cosine

DOTTED: dict[str, Any] = {"color": plots.COLORS[1], "linewidth": 0.8, "linestyle": ":"}
COLORS = {"always": plots.COLORS[0], "on_alter": plots.COLORS[1]}


def alterations(study: Mapping[str, Any]) -> Figure:
    """Alterations per epoch under both rules: without a model at two sizes, and of real gradients.

    Args:
        study: as `study.load` returns it.
    """
    figure, (left, right) = plots.new_panels(
        ["no model, 18,000 steps an epoch", "this study's runs"],
        size=(5.2, 3.8),
        xlabel="epoch",
        ylabel="% of ordered pairs altered",
    )
    simulated, runs = study["pieces"]["simulation"], study["pieces"]["runs"]
    for axes, title, dashes in (
        (left, "published size, mean 0.05", "--"),
        (left, "published size, mean 0", ":"),
        (right, "own size, as measured", "-."),
    ):
        counts = simulated[title]
        epochs, possible = range(1, counts["epochs"] + 1), counts["steps"] * counts["pairs"]
        for rule, color in COLORS.items():
            rates = [100 * altered / possible for altered in counts[rule]]
            label = f"{rule}, no model, {title.split(', ')[1]}"
            plots.line(axes, epochs, rates, linestyle=dashes, color=color, marker=".", label=label)
        axes.set_xticks(epochs)
    for rule, color in COLORS.items():
        for record in runs[f"gradvac, {rule}"].values():
            rates = [altered_rate(epoch["pairs"]) for epoch in record["epochs"]]
            epochs = range(1, len(rates) + 1)
            plots.line(right, epochs, rates, color=color, alpha=0.6, label=f"{rule}, trained runs")
    left.set_yscale("log")
    right.set_ylim(bottom=0)
    plots.legend(figure, columns=4)
    return figure


def altered_over_time(runs: Mapping[str, Any]) -> Figure:
    """Rate of altered pairs, window by window, under both rules."""
    figure, (axes,) = plots.new_panels(
        [""], size=(6, 4), xlabel="step", ylabel="% of ordered pairs altered", ylim=(0, 100)
    )
    for rule, color in COLORS.items():
        for record in runs[f"gradvac, {rule}"].values():
            steps = [window["step"] for window in record["windows"]]
            rates = [altered_rate(window["pairs"]) for window in record["windows"]]
            plots.line(axes, steps, rates, color=color, alpha=0.7, label=rule)
    plots.level(axes, 50, ":")
    plots.legend(figure)
    return figure


def altered_rate(pairs: Sequence[Mapping[str, Any]]) -> float:
    """Percent of the possible ordered pairs that were altered; NaN if none was possible.

    >>> counted = {"possible": 4, "conflicts": 2, "altered": 1, "mean": 0.0}
    >>> altered_rate([counted, counted])
    25.0
    """
    rate = sum(map(PairCounts.from_json, pairs), PairCounts()).rate("altered")
    return float("nan") if rate is None else rate


def layer_maps(layers: Mapping[str, Any]) -> Figure:
    """Mean cosine by layer and time, one map per pair of tasks."""
    names, steps = [_short(name) for name in layers["segments"]], layers["steps"]
    maps = {pair: np.array(rows, dtype=float) for pair, rows in layers["pairs"].items()}
    limit = max(float(np.nanmax(np.abs(cosines))) for cosines in maps.values()) or 1.0
    size = 4.2, 1.6 + 0.24 * len(names)
    figure, panels = plots.new_panels([*maps], size=size, xlabel="step")
    for axes, cosines in zip(panels, maps.values(), strict=True):
        rows = names if axes is panels[0] else [""] * len(names)
        image = plots.shaded(axes, cosines, rows, [""] * len(steps), "RdBu", (-limit, limit))
        ticks = range(0, len(steps), max(1, len(steps) // 6))
        axes.set_xticks(ticks, [str(steps[n]) for n in ticks])
    figure.colorbar(image, ax=panels, label="mean cosine")
    return figure


def cosine_by_batch(probes: Mapping[str, Probed]) -> Figure:
    """Cosine against effective batch size, with the noise floors: a row per stage, a column per
    pair."""
    first = next(iter(probes.values()))
    pairs = list(combinations(range(len(first.tasks)), 2))
    tasks = first.tasks
    figure, panels = plots.new_panels(
        [f"{stage}: {tasks[i]} and {tasks[j]}" for stage in probes for i, j in pairs],
        columns=len(pairs),
        size=(4.2, 3.2),
        ylabel="cosine",
        ylim=(-1.02, 1.02),
    )
    colors = dict(zip(tasks, plots.COLORS[:1] + plots.COLORS[2:], strict=False))
    judged = simultaneous.of_pairs(probes)
    for axes, (stage, (i, j)) in zip(panels, product(probes, pairs), strict=True):
        probed = probes[stage]
        _batches(axes, probed, "two tasks", (i, j), color=plots.COLORS[1])
        for k in (i, j):
            color, label = colors[tasks[k]], f"two halves of {tasks[k]}"
            _batches(axes, probed, label, (k, k), color=color, linestyle="--")
        cosine = judged[Cosine(stage, None, i, j)].cosine
        if cosine is not None and cosine.low is not None and cosine.high is not None:
            axes.axhspan(cosine.low, cosine.high, color=plots.COLORS[1], alpha=0.12, lw=0)
            axes.axhline(cosine.mean, label="expected gradients of two tasks", **DOTTED)
        plots.level(axes, 0)
    plots.legend(figure, columns=5)
    return figure


def expected_by_layer(probes: Mapping[str, Probed]) -> Figure:
    """The expected gradients' cosine in every layer, a panel per pair."""
    first = next(iter(probes.values()))
    pairs = list(combinations(range(len(first.tasks)), 2))
    figure, panels = plots.new_panels(
        [f"{first.tasks[i]}, {first.tasks[j]}" for i, j in pairs],
        size=(4.4, 3.6),
        ylabel="cosine",
        ylim=(-1.1, 1.1),
        xlim=(-0.5, len(first.segments) - 0.5),
    )
    judged = simultaneous.of_layers(probes)
    for axes, (i, j) in zip(panels, pairs, strict=True):
        for n, stage in enumerate(probes):
            cosines = [judged[Cosine(stage, part, i, j)].cosine for part in first.segments]
            known = [(x + 0.2 * (n - 1), c) for x, c in enumerate(cosines) if c is not None]
            means, halves = [c.mean for _, c in known], [c.half or 0.0 for _, c in known]
            points = plots.style(n) | {"linestyle": "", "capsize": 3}
            axes.errorbar([x for x, _ in known], means, halves, label=stage, **points)
        plots.level(axes, 0)
        plots.name_columns(axes, first.segments)
    plots.legend(figure)
    return figure


def change_by_batch(probes: Mapping[str, Probed]) -> Figure:
    """How far surgery moves the update, against effective batch size."""
    figure, (axes,) = plots.new_panels([""], size=(6.4, 4.6), ylabel="|update - sum| / |sum|")
    for n, (stage, probed) in enumerate(probes.items()):
        for method, dashes in (("pcgrad", "-"), ("gradvac", "--")):
            grams = map(probed.level, probed.levels)
            series = [interval(changes(gram, method)) for gram in grams]
            label, color = f"{method}, {stage}", plots.COLORS[n]
            _band(axes, list(probed.levels), series, label=label, color=color, linestyle=dashes)
    axes.set_ylim(bottom=0)
    plots.legend(figure)
    return figure


def changes(grams: Any, method: str) -> list[float]:
    """The change in each replicate; GradVac's targets stand where they settle at this size.

    None for GradVac with few replicates, whose mean is no target but very nearly each of them.
    """
    if method == "gradvac" and len(grams) < estimate.FEW:
        return []
    target = estimate.usual_cosines(grams) if method == "gradvac" else None
    return [float(x) for x in estimate.change(estimate.batches_of(grams), target)]


def _batches(axes: Axes, probed: Probed, label: str, pair: tuple[int, int], **look: Any) -> None:
    """A pair's cosine against the size of the batch."""
    sizes = list(probed.levels)
    series = [estimate.cosine_at(probed, size, *pair) for size in sizes]
    _band(axes, sizes, series, label=label, **look)


def _band(axes: Axes, sizes: Sequence[int], series: Sequence[Interval], **look: Any) -> None:
    """Means and their intervals against the size of the batch."""
    # Two or three replicates have an interval, but one that hides everything else.
    halves = np.array([np.nan if s.half is None or s.n <= 3 else s.half for s in series])
    means = np.array([s.mean for s in series])
    band = list(means - halves), list(means + halves)
    plots.line(axes, sizes, list(means), band, marker=".", **look)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("examples of a task")


def _short(name: str) -> str:
    """The end of a segment's name, which tells it apart.

    >>> _short("encoder.encoder.layer.3"), _short("encoder.embeddings.LayerNorm")
    ('layer 4', 'embeddings LayerNorm')
    """
    *_, before, last = ("", *name.split("."))
    if before == "layer" and last.isdigit():
        return f"layer {int(last) + 1}"
    return f"{before} {last}" if last == "LayerNorm" else last
