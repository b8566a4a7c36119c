"""The pictures of a conflict log. Imported only when somebody draws, since it needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Line = dict[str, Any]


def draw(lines: Sequence[Line], directory: Path, stem: str) -> list[Path]:
    """Draw ``<stem>.png``, and ``<stem>-segments.png`` for a log of several segments."""
    with matplotlib.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        files = [_save(_windows(lines), directory / f"{stem}.png")]
        if len(lines[-1]["tasks"]) > 1 and all("by_segment" in line for line in lines):
            files.append(_save(_segments(lines), directory / f"{stem}-segments.png"))
    return files


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    return path


def _windows(lines: Sequence[Line]) -> Figure:
    """Four panels over the steps."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    (cosine, conflict), (altered, change) = figure.subplots(2, 2, sharex=True)
    figure.suptitle(f"{lines[-1]['method']}, windows of {lines[0]['window']} steps")
    _cosines(cosine, lines)
    _rates(conflict, lines, "conflicts", _unordered)
    _rates(altered, lines, "altered", _ordered)
    _change(change, lines)
    for axes in (altered, change):
        axes.set_xlabel("step")
    return figure


def _cosines(axes: Axes, lines: Sequence[Line]) -> None:
    """The mean cosine of each pair, in the band between its least and greatest."""
    for label, pairs in _series(lines, _unordered).items():
        steps = [step for step, _ in pairs]
        figures = [pair["cosine"] for _, pair in pairs]
        (line,) = axes.plot(steps, [c["mean"] for c in figures], marker=".", label=label)
        low, high = [c["min"] for c in figures], [c["max"] for c in figures]
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.12)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_title("cosine of the gradients: mean, least, greatest")
    _legend(axes)


def _rates(
    axes: Axes, lines: Sequence[Line], name: str, keep: Callable[[str, str, list[str]], bool]
) -> None:
    """The share of possible pairs that conflicted, or were altered."""
    for label, pairs in _series(lines, keep).items():
        shares = [100 * pair[name] / pair["possible"] for _, pair in pairs]
        axes.plot([step for step, _ in pairs], shares, marker=".", label=label)
    if name == "conflicts":
        axes.axhline(50, color="black", linewidth=0.8, linestyle=":")
    axes.set_ylim(-3, 103)
    axes.set_title(f"{name}, % of possible" + (" (50%: by chance)" if name == "conflicts" else ""))
    _legend(axes)


def _change(axes: Axes, lines: Sequence[Line]) -> None:
    """How far surgery moved the update from the plain sum."""
    known = [line for line in lines if line["change"]["mean"] is not None]
    steps = [line["step"] for line in known]
    for name in ("mean", "max"):
        axes.plot(steps, [line["change"][name] for line in known], marker=".", label=name)
    axes.set_ylim(bottom=0)
    axes.set_title("change of the update, |u - s| / |s|")
    _legend(axes)


def _segments(lines: Sequence[Line]) -> Figure:
    """A map of mean cosines, segment by window, for each pair."""
    last = lines[-1]
    pairs = [p for p in last["pairs"] if _unordered(p["i"], p["j"], last["tasks"])]
    names = [segment["segment"] for segment in last["by_segment"]]
    height = 1.5 + 0.18 * len(names)
    figure = Figure(figsize=(4.5 + 2.5 * len(pairs), height), layout="constrained")
    columns = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
    for axes, pair in zip(columns, pairs, strict=True):
        values = [[_cosine_of(line, s, pair) for line in lines] for s in range(len(names))]
        image = axes.imshow(values, aspect="auto", cmap="RdBu", vmin=-0.5, vmax=0.5)
        axes.set_title(f"cosine {pair['i']}, {pair['j']}")
        axes.set_xticks(range(len(lines)), [str(line["step"]) for line in lines], rotation=90)
        axes.set_yticks(range(len(names)), names, fontsize=6)
        axes.set_xlabel("step")
        axes.grid(visible=False)
    figure.colorbar(image, ax=columns)
    return figure


def _cosine_of(line: Line, segment: int, pair: Line) -> float:
    """NaN, drawn as a gap, where the pair never met in this segment and window."""
    if segment < len(line["by_segment"]):
        for other in line["by_segment"][segment]["pairs"]:
            if (other["i"], other["j"]) == (pair["i"], pair["j"]) and other["possible"]:
                return float(other["cosine"]["mean"])
    return float("nan")


def _series(
    lines: Sequence[Line], keep: Callable[[str, str, list[str]], bool]
) -> dict[str, list[tuple[int, Line]]]:
    """The windows of each kept pair in which it occurred, with their steps."""
    between = ", " if keep is _unordered else " <- "
    found: dict[str, list[tuple[int, Line]]] = {}
    for line in lines:
        for pair in line["pairs"]:
            if keep(pair["i"], pair["j"], line["tasks"]):
                series = found.setdefault(f"{pair['i']}{between}{pair['j']}", [])
                if pair["possible"]:
                    series.append((line["step"], pair))
    return found


def _unordered(i: str, j: str, tasks: list[str]) -> bool:
    return tasks.index(i) < tasks.index(j)


def _ordered(i: str, j: str, tasks: list[str]) -> bool:
    return True


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
