"""What the figures of a study have in common: colours, names of rows, and a caption.

Colours are those of Okabe and Ito (2008), which people with any colour vision can tell apart;
markers and line styles say the same once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_mtl_demo.study.outcomes import Outcomes

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
MOST_LINES = 6  # rows drawn as lines in one panel; more cannot be told apart


@dataclass(frozen=True)
class Picture:
    """A PNG and what stands below it.

    >>> Picture(Path("a.png"), "Scores.").path.stem
    'a'
    """

    path: Path
    caption: str


def style_of(number: int) -> dict[str, Any]:
    """Colour, marker and line of the n-th line of a figure."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
    }


def height(rows: Sequence[Any]) -> float:
    """Inches for so many rows below each other."""
    return 1.3 + 0.3 * len(rows)


def rows_on_y(axes: Any, rows: Sequence[Any]) -> None:
    """Row names on the y axis, the first on top."""
    axes.set_yticks(range(len(rows)), labels(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)


def labels(rows: Sequence[Any]) -> list[str]:
    """Names that leave room for the panels."""
    names = [getattr(row, "name", row) for row in rows]
    return [name if len(name) <= 44 else name[:43] + "…" for name in names]


def chosen(outcomes: Outcomes) -> str:
    """The sentence that says which rows a figure of lines shows."""
    return f"At most {MOST_LINES} rows: the baseline, then the best by {outcomes.overall}."
