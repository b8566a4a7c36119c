"""The pictures of a conflict log. Imported only when somebody draws, since it needs matplotlib."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradsurgery._markdown import visible
from gradsurgery._thinning import Thinned
from gradsurgery.summary import Line, Pair, PairCounts, PairSummary, pair_totals, ranked

WINDOWS = 200  # drawn at most; neighbours are added up
#: Of Okabe and Ito (2008), which people with any colour vision can tell apart; a pair each.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MAPPED = 4  # pairs whose segments are drawn
MARKED = 50  # windows, up to which each has its point
TICKS = 12  # steps named on an axis
ROWS = 120  # segments named on an axis

_STYLE: Any = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "text.parse_math": False}

Windows = list[tuple[int, dict[Pair, PairCounts]]]  # step and counts of each window


def draw(lines: Sequence[Line], stem: Path) -> list[Path]:
    """Draw ``<stem>.png``, and where there are many pairs or segments a map of them."""
    thinned = Thinned(WINDOWS)
    for line in lines:
        thinned.add(line)
    lines = thinned.lines()
    counts = pair_totals(row for line in lines for row in line["pairs"])
    pairs = list(combinations(lines[-1]["tasks"], 2))
    shown = pairs if len(pairs) <= len(COLORS) else ranked(counts)[: len(COLORS)]
    figures: dict[str, Callable[[], Figure]] = {"": partial(_windows, lines, shown, len(pairs))}
    if len(pairs) > len(shown):
        figures["-pairs"] = partial(_pairs, counts, lines[-1]["tasks"])
    if pairs and all("by_segment" in line for line in lines):
        mapped = sorted(shown, key=ranked(counts).index)[:MAPPED] if counts else shown[:MAPPED]
        figures["-segments"] = partial(_segments, lines, mapped, len(pairs))
    paths = []
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A character that the font lacks is drawn as a box; the table has it.
        warnings.filterwarnings("ignore", "Glyph")
        for end, figure in figures.items():
            paths.append(stem.with_name(f"{stem.name}{end}.png"))
            figure().savefig(paths[-1], dpi=110)
    return paths


def _windows(lines: Sequence[Line], pairs: Sequence[Pair], number: int) -> Figure:
    """Panels over the steps: cosines, conflicts, and what surgery did, if it did anything."""
    windows: Windows = [(line["step"], _counts(line["pairs"], pairs)) for line in lines]
    titles = {
        "cosine": "cosine of the gradients: mean, least, greatest",
        "conflicts": "conflicts, % of possible (50%: by chance)",
    }
    if any(c.altered for _, counts in windows for c in counts.values()):
        titles["altered"] = "altered, % of possible (i by j: line; j by i: dashed)"
    if any(line["change"]["max"] for line in lines):
        titles["change"] = "change of the update, |u - s| / |s| (mean: line; max: dotted)"
    figure, panels = _panels(titles)
    figure.suptitle(_title(lines, len(pairs), number))
    marker = "." if len(lines) <= MARKED else ""
    for color, (i, j) in zip(COLORS, pairs, strict=False):
        label = f" {_name(i)}, {_name(j)}"  # legends leave out what begins with an underscore
        look: dict[str, Any] = {"marker": marker, "color": color}
        met = [(step, c[i, j]) for step, c in windows if (i, j) in c and c[i, j].possible]
        steps = [step for step, _ in met]
        cosines: Any = [c.cosine for _, c in met]
        conflicts: Any = [c.rate("conflicts") for _, c in met]
        panels["cosine"].plot(steps, cosines, label=label, **look)
        low, high = [c.lowest for _, c in met], [c.highest for _, c in met]
        panels["cosine"].fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
        panels["conflicts"].plot(steps, conflicts, **look)
        for pair, line in (((i, j), "-"), ((j, i), "--")) if "altered" in panels else ():
            known = [
                (step, rate)
                for step, c in windows
                if pair in c and (rate := c[pair].rate("altered")) is not None
            ]
            panels["altered"].plot(*_columns(known), line, **look)
    panels["cosine"].axhline(0, color="black", linewidth=0.8)
    panels["conflicts"].axhline(50, color="black", linewidth=0.8, linestyle=":")
    for name in panels.keys() & {"conflicts", "altered"}:
        panels[name].set_ylim(-3, 103)
    if change := panels.get("change"):
        keys: tuple[tuple[Literal["mean", "max"], str], ...] = (("mean", "-"), ("max", ":"))
        for key, style in keys:
            known = [(n["step"], value) for n in lines if (value := n["change"][key]) is not None]
            change.plot(*_columns(known), style, marker=marker, color="black")
        change.set_ylim(bottom=0, top=1.05 * change.get_ylim()[1])
    if pairs:
        handles = panels["cosine"].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=3)
    else:
        for name in ("cosine", "conflicts"):
            axes = panels[name]
            axes.text(0.5, 0.6, "no pair of tasks", transform=axes.transAxes, ha="center")
    return figure


def _panels(titles: Mapping[str, str]) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel over the steps for each title, two in a row, by their names."""
    rows = math.ceil(len(titles) / 2)
    figure = Figure(figsize=(11, 0.75 + 3.375 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 2, sharex=True, squeeze=False).flat)
    panels = dict(zip(titles, axes, strict=False))
    for name, panel in panels.items():
        panel.set_title(titles[name])
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    for panel in list(panels.values())[-2:]:
        panel.set_xlabel("step")
        panel.tick_params(labelbottom=True)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        panel.ticklabel_format(axis="x", style="plain")
    return figure, panels


def _pairs(counts: dict[Pair, PairCounts], tasks: Sequence[str]) -> Figure:
    """A map of all pairs' mean cosines."""
    cosines = [[_cosine(counts, (i, j)) for j in tasks] for i in tasks]
    size = min(3 + 0.13 * len(tasks), 20)
    figure = Figure(figsize=(size + 1.5, size), layout="constrained")
    axes = figure.subplots()
    _map(axes, cosines, "mean cosine of the gradients, over all steps")
    names, small = list(map(_name, tasks)), 8 if len(tasks) <= 40 else 6
    axes.set_xticks(range(len(tasks)), names, rotation=90, fontsize=small)
    axes.set_yticks(range(len(tasks)), names, fontsize=small)
    return figure


def _segments(lines: Sequence[Line], pairs: Sequence[Pair], number: int) -> Figure:
    """A map of mean cosines, segment by window, for each pair."""
    names = [part["segment"] for part in lines[-1]["by_segment"]]
    parts = [
        {part["segment"]: _counts(part["pairs"], pairs) for part in line["by_segment"]}
        for line in lines
    ]
    size = 4.5 + 2.5 * len(pairs), min(2 + 0.18 * len(names), 24)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(_title(lines, len(pairs), number))
    columns = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
    every, apart = math.ceil(len(lines) / TICKS), math.ceil(len(names) / ROWS)
    steps = [str(line["step"]) for line in lines]
    for axes, (i, j) in zip(columns, pairs, strict=True):
        cosines = [[_cosine(part.get(name, {}), (i, j)) for part in parts] for name in names]
        _map(axes, cosines, f"cosine {_name(i)},\n{_name(j)}", bar=axes is columns[-1])
        axes.set_xlabel("step")
        axes.set_xticks(range(0, len(lines), every), steps[::every], rotation=90)
        axes.set_yticks(range(0, len(names), apart), list(map(_name, names))[::apart], fontsize=6)
    return figure


def _map(axes: Axes, cosines: Sequence[Sequence[float]], title: str, bar: bool = True) -> None:
    """Cells shaded by cosines, red for conflicts; grey where the pair never met."""
    largest = max((abs(x) for row in cosines for x in row if not math.isnan(x)), default=0.0)
    limit = next(x for x in (0.05, 0.1, 0.2, 0.5, 1) if x >= min(largest, 1))
    image = axes.imshow(cosines, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit)
    axes.set_title(title)
    axes.set_facecolor("0.85")
    axes.grid(visible=False)
    if bar:
        axes.figure.colorbar(image, ax=axes, shrink=0.8)


def _title(lines: Sequence[Line], shown: int, number: int) -> str:
    # A method is logged as it is written in Python; its arguments are in the table.
    method = visible(lines[-1]["method"]).partition("(")[0][:80]
    title = f"{method}, windows of {lines[0]['window']} steps"
    return title if shown == number else f"{title}, {shown} of {number} pairs"


def _name(text: str) -> str:
    """A name that has room in a picture."""
    text = visible(text)
    return text if len(text) <= 28 else f"{text[:14]}...{text[-11:]}"


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _cosine(counts: dict[Pair, PairCounts], pair: Pair) -> float:
    cosine = counts[pair].cosine if pair in counts else None
    return math.nan if cosine is None else cosine


def _counts(rows: Sequence[PairSummary], pairs: Sequence[Pair]) -> dict[Pair, PairCounts]:
    """The counts of these pairs, in both directions."""
    wanted = {*pairs, *((j, i) for i, j in pairs)}
    return {
        (row["i"], row["j"]): PairCounts.from_json(row)
        for row in rows
        if (row["i"], row["j"]) in wanted
    }
