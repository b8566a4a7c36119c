"""Plot primitives for the pictures of runs, studies and research: panels, lines, bars, tables.

Figures are made without pyplot: no global state, no window, no memory that stays. Colours are those
of Okabe and Ito (2008), which people with any colour vision can tell apart; markers and line styles
say the same once more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from bert_mtl_demo.printing import printable
from bert_mtl_demo.store import atomic

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")


def style(number: int) -> dict[str, Any]:
    """Colour, marker and line of the n-th line of a figure."""
    kinds = {"color": COLORS, "marker": MARKERS, "linestyle": LINES}
    return {name: values[number % len(values)] for name, values in kinds.items()}


def new_panels(
    titles: Sequence[str],
    columns: int | None = None,
    size: tuple[float, float] = (4.2, 3.4),
    **settings: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure with a panel of that size for each title, all in one row or in rows of `columns`.

    Args:
        settings: of all panels, as `Axes.set` takes them.

    >>> figure, panels = new_panels(["a", "b", "c"], columns=2, xlabel="step")
    >>> len(panels), panels[2].get_xlabel(), figure.get_size_inches().tolist()
    (3, 'step', [8.4, 6.8])
    """
    columns = max(columns or len(titles), 1)
    rows = max(math.ceil(len(titles) / columns), 1)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, title in zip(panels, titles, strict=False):
        axes.grid(alpha=0.3)
        axes.set(title=title, axisbelow=True, **settings)
    for axes in panels[len(titles) :]:
        axes.set_axis_off()
    return figure, panels[: len(titles)]


def save(figure: Figure, path: Path) -> Path:
    """Write the PNG, over the one that was there."""
    with atomic(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=110)
    return path


def legend(
    figure: Figure,
    columns: int = 3,
    location: Literal["outside lower center", "outside right center"] = "outside lower center",
) -> None:
    """One legend for all panels, beside them, with every label once."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            [*handles.values()], [*handles], loc=location, ncols=columns, fontsize=9, handlelength=3
        )


def line(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float | None],
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    **look: Any,
) -> None:
    """A line through the points that have a value, in the band between two others."""
    known = [(at, value) for at, value in zip(x, y, strict=True) if value is not None]
    (drawn,) = axes.plot([at for at, _ in known], [value for _, value in known], **look)
    if band is not None:
        axes.fill_between(x, *band, color=drawn.get_color(), alpha=0.15, linewidth=0)


def level(axes: Axes, y: float, look: str = "-") -> None:
    """A thin line across: zero, or what chance alone would give."""
    axes.axhline(y, color="grey", linewidth=0.8, linestyle=look)


def bars(axes: Axes, names: Sequence[str], groups: Mapping[str, Sequence[float]]) -> None:
    """Bars side by side, a group of them at every name."""
    width = 0.8 / max(len(groups), 1)
    for n, (label, heights) in enumerate(groups.items()):
        x = np.arange(len(names)) + (n + 0.5) * width - 0.4
        axes.bar(x, heights, width, color=COLORS[n % len(COLORS)], label=label)
    name_columns(axes, names)


def shaded(
    axes: Axes,
    values: Sequence[Sequence[float | None]] | NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    colors: str = "Blues",
    limits: tuple[float, float] = (0, 1),
    texts: ArrayLike | None = None,
) -> AxesImage:
    """A table of cells shaded by their values, grey where there is none, with texts on them."""
    array = np.asarray(values, dtype=float)
    image = axes.imshow(array, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto")
    axes.grid(False)
    axes.set_facecolor("0.85")
    for (y, x), text in np.ndenumerate([] if texts is None else np.asarray(texts)):
        red, green, blue, _ = image.cmap(image.norm(array[y, x]))
        color = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else "black"
        axes.text(x, y, str(text), ha="center", va="center", color=color)
    name_columns(axes, columns)
    axes.set_yticks(range(len(rows)), [_plain(name) for name in rows])
    return image


def name_columns(axes: Axes, names: Sequence[str]) -> None:
    """Names on the x axis, turned so that they have room."""
    labels = [_plain(name) for name in names]
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", rotation_mode="anchor")


def _plain(name: str) -> str:
    """A name as a label: dollar signs would make a formula of it."""
    return printable(name).replace("$", r"\$")


def confusion(axes: Axes, table: ArrayLike, names: Sequence[str]) -> None:
    """A confusion matrix: shaded by the rate of a row, counts written in."""
    counts = np.asarray(table)
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shaded(axes, rates, names, names, texts=counts)
    axes.set(xlabel="predicted", ylabel="true")


def similarity(
    axes: Axes,
    true: ArrayLike,
    predicted: ArrayLike,
    limits: tuple[float, float] = (0.0, 5.0),
) -> None:
    """Predicted against true similarity, with the line on which they would agree."""
    predicted, (low, high) = np.asarray(predicted), limits
    margin = (high - low) / 50
    axes.plot(limits, limits, color="grey", linewidth=0.8)
    axes.scatter(np.asarray(true), predicted, s=10, alpha=0.5, color=COLORS[0])
    axes.set(xlabel="true", ylabel="predicted", xlim=(low - margin, high + margin))
    # Heads without bounds answer outside of the limits, and those answers count as well.
    axes.set_ylim(predicted.min(initial=low) - margin, predicted.max(initial=high) + margin)
