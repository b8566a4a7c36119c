"""The pictures of a conflict log. Imported only when somebody draws, since it needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradsurgery.summary import Line, Pair, PairCounts, PairSummary

Series = list[tuple[int, PairCounts]]  # step and counts of each window


def draw(lines: Sequence[Line], directory: Path, stem: str) -> list[Path]:
    """Draw ``<stem>.png``, and ``<stem>-segments.png`` for a log of several segments."""
    figures = {stem: _windows}
    if len(lines[-1]["tasks"]) > 1 and all("by_segment" in line for line in lines):
        figures[f"{stem}-segments"] = _segments
    paths = []
    with matplotlib.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        for name, figure in figures.items():
            paths.append(directory / f"{name}.png")
            figure(lines).savefig(paths[-1], dpi=110)
    return paths


def _windows(lines: Sequence[Line]) -> Figure:
    """Four panels over the steps."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    (cosine, conflicts), (altered, change) = figure.subplots(2, 2, sharex=True)
    figure.suptitle(f"{lines[-1]['method']}, windows of {lines[0]['window']} steps")
    tasks = lines[-1]["tasks"]
    pairs = {f"{i}, {j}": _series(lines, (i, j)) for i, j in combinations(tasks, 2)}
    for label, series in pairs.items():
        steps = [step for step, _ in series]
        (line,) = cosine.plot(steps, [c.cosine for _, c in series], marker=".", label=label)
        low, high = [c.lowest for _, c in series], [c.highest for _, c in series]
        cosine.fill_between(steps, low, high, color=line.get_color(), alpha=0.12)
    cosine.axhline(0, color="black", linewidth=0.8)
    cosine.set_title("cosine of the gradients: mean, least, greatest")
    _rates(conflicts, "conflicts", pairs)
    conflicts.axhline(50, color="black", linewidth=0.8, linestyle=":")
    conflicts.set_title("conflicts, % of possible (50%: by chance)")
    ordered = {f"{i} <- {j}": _series(lines, (i, j)) for i, j in permutations(tasks, 2)}
    _rates(altered, "altered", ordered)
    for key in ("mean", "max"):
        known = [(n["step"], n["change"][key]) for n in lines if n["change"][key] is not None]
        change.plot([step for step, _ in known], [value for _, value in known], ".-", label=key)
    change.set(title="change of the update, |u - s| / |s|", xlabel="step")
    change.set_ylim(bottom=0)
    altered.set(title="altered, % of possible", xlabel="step")
    for axes in figure.axes:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return figure


def _rates(axes: Axes, count: Literal["conflicts", "altered"], pairs: dict[str, Series]) -> None:
    """The rate of every pair, but where it has no meaning."""
    for label, series in pairs.items():
        known = [(step, rate) for step, c in series if (rate := c.rate(count)) is not None]
        if known or not series:
            axes.plot([step for step, _ in known], [rate for _, rate in known], ".-", label=label)
    axes.set_ylim(-3, 103)


def _segments(lines: Sequence[Line]) -> Figure:
    """A map of mean cosines, segment by window, for each pair."""
    names = [segment["segment"] for segment in lines[-1]["by_segment"]]
    pairs = list(combinations(lines[-1]["tasks"], 2))
    size = 4.5 + 2.5 * len(pairs), 1.5 + 0.18 * len(names)
    figure = Figure(figsize=size, layout="constrained")
    columns = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
    for axes, pair in zip(columns, pairs, strict=True):
        cosines = [[_cosine(line, s, pair) for line in lines] for s in range(len(names))]
        image = axes.imshow(cosines, aspect="auto", cmap="RdBu", vmin=-0.5, vmax=0.5)
        axes.set(title=f"cosine {', '.join(pair)}", xlabel="step")
        axes.set_xticks(range(len(lines)), [str(line["step"]) for line in lines], rotation=90)
        axes.set_yticks(range(len(names)), names, fontsize=6)
        axes.grid(visible=False)
    figure.colorbar(image, ax=columns)
    return figure


def _cosine(line: Line, segment: int, pair: Pair) -> float:
    """NaN, drawn as a gap, where the pair never met in this segment and window."""
    segments = line["by_segment"]
    counts = _counts(segments[segment]["pairs"], pair) if segment < len(segments) else PairCounts()
    return math.nan if counts.cosine is None else counts.cosine


def _series(lines: Sequence[Line], pair: Pair) -> Series:
    """The windows in which the pair met, with their steps."""
    series = [(line["step"], _counts(line["pairs"], pair)) for line in lines]
    return [(step, counts) for step, counts in series if counts.possible]


def _counts(pairs: Sequence[PairSummary], pair: Pair) -> PairCounts:
    rows = [row for row in pairs if (row["i"], row["j"]) == pair]
    return PairCounts.from_json(rows[0]) if rows else PairCounts()
