"""A run's windows in bounded memory: neighbours are added up when there are too many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from gradsurgery.summary import (
    Line,
    PairSummary,
    SegmentSummary,
    changed_total,
    gradient_totals,
    mean_change,
    pair_totals,
    unmeasured_total,
)

_PAIRS = 200_000  # rows of pairs held at most, over all windows
_WAITING = 64  # windows that wait to be added up


class Thinned:
    """At most about ``windows`` windows, whose sums are those of all that were added.

    Args:
        windows: fewer if there are very many pairs; None keeps all.
    """

    def __init__(self, windows: int | None) -> None:
        self._limit = windows
        self._bins: list[Line] = []  # of _size windows each
        self._size = 1
        self._open: list[Line] = []  # what the next bin is made of
        self._begun = 0  # windows in it

    def add(self, line: Line) -> None:
        """Add the next window."""
        self._open.append(line)
        self._begun += 1
        if self._begun == self._size:
            self._bins.append(add_up(self._open))
            self._open, self._begun = [], 0
            if self._limit is not None and len(self._bins) >= self._most(line, self._limit):
                pairs = zip(self._bins[::2], self._bins[1::2], strict=True)
                self._bins = [add_up(pair) for pair in pairs]
                self._size *= 2
        elif len(self._open) == _WAITING:
            self._open = [add_up(self._open)]

    def lines(self) -> list[Line]:
        """Return the windows; the last may be shorter."""
        return self._bins + ([add_up(self._open)] if self._open else [])

    def _most(self, line: Line, limit: int) -> int:
        """An even number of bins."""
        rows = len(line["pairs"]) * (1 + len(line.get("by_segment", ())))
        return max(2, min(limit, _PAIRS // max(rows, 1)) // 2 * 2)


def add_up(lines: Sequence[Line]) -> Line:
    """Return successive windows as one, without norms and weights."""
    if len(lines) == 1:
        return lines[0]
    largest = [line["change"]["max"] for line in lines]
    known = [value for value in largest if value is not None]
    total: Line = {
        **lines[-1],
        "window": sum(line["window"] for line in lines),
        "gradients": gradient_totals(lines),
        "pairs": _pairs(chain.from_iterable(line["pairs"] for line in lines)),
        "norms": {},
        "weights": {},
        "change": {"mean": mean_change(lines), "max": max(known, default=None)},
        "changed": changed_total(lines),
        "nonfinite": sum(line["nonfinite"] for line in lines),
        "unmeasured": unmeasured_total(lines),
    }
    if all("by_segment" in line for line in lines):
        total["by_segment"] = _segments(lines)
    else:
        total.pop("by_segment", None)
    return total


def _segments(lines: Sequence[Line]) -> list[SegmentSummary]:
    rows: dict[str, list[PairSummary]] = {}
    for part in chain.from_iterable(line["by_segment"] for line in lines):
        rows.setdefault(part["segment"], []).extend(part["pairs"])
    return [{"segment": name, "pairs": _pairs(pairs)} for name, pairs in rows.items()]


def _pairs(rows: Iterator[PairSummary] | list[PairSummary]) -> list[PairSummary]:
    return [counts.to_json(i, j) for (i, j), counts in pair_totals(rows).items()]
