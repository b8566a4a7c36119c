"""Window summaries and pair counts: the JSON of a conflict log, typed, and how windows add up."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, TypedDict

from gradsurgery.evidence import Evidence, EvidenceSummary

#: (i, j): gradient i, compared with gradient j and altered because of it.
Pair = tuple[str, str]


class _Evidence(TypedDict, total=False):
    evidence: EvidenceSummary  # once a pair, i before j; since the version after 0.1.0


class PairSummary(_Evidence):
    """An ordered pair of tasks and its counts; a figure that does not exist is None."""

    i: str
    j: str
    possible: int
    conflicts: int
    altered: int | None
    cosine: dict[Literal["mean", "min", "max"], float | None]
    target: float | None


class SegmentSummary(TypedDict):
    """The pairs of one segment."""

    segment: str
    pairs: list[PairSummary]


class GradientCounts(TypedDict):
    """Gradients of active tasks, and how many of them were altered because of any other."""

    possible: int
    altered: int | None


class _Optional(TypedDict, total=False):
    by_segment: list[SegmentSummary]  # with several segments
    unmeasured: int  # the steps without measured gradients, where there are any
    log: str  # the file that a line was read from
    changed: int  # in windows that were added up: the steps that the mean change is of


class Summary(_Optional):
    """A window of steps, as :meth:`~gradsurgery.ConflictStatistics.summary` returns it."""

    window: int
    method: str
    tasks: list[str]
    segments: int
    gradients: GradientCounts
    pairs: list[PairSummary]
    norms: dict[str, float | None]
    weights: dict[str, float | None]
    change: dict[Literal["mean", "max"], float | None]
    nonfinite: int


class _Run(TypedDict, total=False):
    run: str | None  # which run wrote the line; None in logs of 0.1.0, and in those read of one run
    crc32: str  # of the text before it


class Line(Summary, _Run):
    """A line of a conflict log."""

    schema: int
    step: int
    epoch: float | None


@dataclass(frozen=True)
class PairCounts:
    """Counts and cosines of one ordered pair; ``+`` adds windows, and ``PairCounts()`` is zero.

    Attributes:
        possible: steps, times segments, in which both gradients existed and were not zero.
        conflicts: of those, the ones with negative cosine.
        altered: of those, the ones in which gradient i received a multiple of gradient j. None for
            a method for which that has no meaning.
        cosine_sum, lowest, highest: of the cosines.
        target: the last one, of a method that has targets.
        evidence: whether the expected gradients conflict; counted for i before j.

    Example:
        >>> window = PairCounts(4, conflicts=1, altered=1, cosine_sum=0.8)
        >>> total = window + PairCounts(4, conflicts=3, altered=2, cosine_sum=-1.6)
        >>> total.rate("conflicts"), total.rate("altered"), total.cosine
        (50.0, 37.5, -0.1)
    """

    possible: int = 0
    conflicts: int = 0
    altered: int | None = 0
    cosine_sum: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf
    target: float | None = None
    evidence: Evidence = field(default_factory=Evidence)

    def __add__(self, other: PairCounts) -> PairCounts:
        unknown = self.altered is None or other.altered is None
        return PairCounts(
            self.possible + other.possible,
            self.conflicts + other.conflicts,
            None if unknown else (self.altered or 0) + (other.altered or 0),
            self.cosine_sum + other.cosine_sum,
            min(self.lowest, other.lowest),
            max(self.highest, other.highest),
            self.target if other.target is None else other.target,
            self.evidence + other.evidence,
        )

    @property
    def cosine(self) -> float | None:
        """The mean cosine."""
        return self.cosine_sum / self.possible if self.possible else None

    def rate(self, count: Literal["conflicts", "altered"]) -> float | None:
        """A count in percent of the possible; None if none was, or the count has no meaning."""
        value = self.conflicts if count == "conflicts" else self.altered
        return 100 * value / self.possible if self.possible and value is not None else None

    def to_json(self, i: str, j: str, pairs: int = 1) -> PairSummary:
        """Return the counts of pair (i, j) as a log line has them.

        Args:
            i, j: the tasks.
            pairs: that are judged together with this one.
        """
        low, high = (self.lowest, self.highest) if self.possible else (None, None)
        summary: PairSummary = {
            "i": i,
            "j": j,
            "possible": self.possible,
            "conflicts": self.conflicts,
            "altered": self.altered,
            "cosine": {"mean": self.cosine, "min": low, "max": high},
            "target": self.target,
        }
        if self.evidence.steps:
            summary["evidence"] = self.evidence.to_json(pairs)
        return summary

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> PairCounts:
        """Read a pair of a log line, or of :func:`gradsurgery.report.totals`, whole or in part."""
        cosine = row.get("cosine", row)
        low, high = cosine.get("min"), cosine.get("max")
        return cls(
            row["possible"],
            row["conflicts"],
            row["altered"],
            row["possible"] * (cosine["mean"] or 0.0),
            math.inf if low is None else low,
            -math.inf if high is None else high,
            row.get("target"),
            Evidence.from_json(row.get("evidence")),
        )


def pair_names(pairs: Iterable[Pair], separator: str) -> dict[Pair, str]:
    """Return a name for every pair, ``i`` + separator + ``j`` wherever no two pairs share it.

    Names that two pairs would share end in the positions of their tasks, counted from 0.

    >>> list(pair_names([("en", "de-fr"), ("en-de", "fr"), ("en", "fr")], "-").values())
    ['en-de-fr.0-1', 'en-de-fr.2-3', 'en-fr']
    """
    pairs = list(pairs)
    position = {task: n for n, task in enumerate(dict.fromkeys(chain.from_iterable(pairs)))}
    plain = {(i, j): f"{i}{separator}{j}" for i, j in pairs}
    numbered = {(i, j): f"{plain[i, j]}.{position[i]}-{position[j]}" for i, j in pairs}
    uses = Counter(plain.values())
    names = {pair: plain[pair] if uses[plain[pair]] == 1 else numbered[pair] for pair in pairs}
    return names if len(set(names.values())) == len(names) else numbered


def pair_totals(rows: Iterable[Mapping[str, Any]]) -> dict[Pair, PairCounts]:
    """Add rows up that :meth:`PairCounts.from_json` reads, by their ``i`` and ``j``."""
    totals: defaultdict[Pair, PairCounts] = defaultdict(PairCounts)
    for row in rows:
        totals[row["i"], row["j"]] += PairCounts.from_json(row)
    return dict(totals)


def gradient_totals(lines: Sequence[Summary]) -> GradientCounts:
    """The gradients of all windows; altered is None where it has no meaning in one of them."""
    counts = [line["gradients"] for line in lines]
    altered = [count["altered"] for count in counts if count["altered"] is not None]
    known = len(altered) == len(counts)
    possible = sum(count["possible"] for count in counts)
    return {"possible": possible, "altered": sum(altered) if known else None}


def unmeasured_total(lines: Iterable[Summary]) -> int:
    """The steps of all windows whose gradients were not measured."""
    return sum(line.get("unmeasured", 0) for line in lines)


def mean_change(lines: Iterable[Summary]) -> float | None:
    """The mean relative change of the update over the steps of all windows; None without any."""
    changes = [(line["change"]["mean"], _changed(line)) for line in lines]
    known = [(change, steps) for change, steps in changes if change is not None]
    steps = sum(steps for _, steps in known)
    return sum(change * steps for change, steps in known) / steps if steps else None


def changed_total(lines: Iterable[Summary]) -> int:
    """The steps that :func:`mean_change` is of."""
    return sum(_changed(line) for line in lines if line["change"]["mean"] is not None)


def _changed(line: Summary) -> int:
    return line.get("changed", line["window"] - line.get("unmeasured", 0))


def ranked(pairs: Mapping[Pair, PairCounts]) -> list[Pair]:
    """Return pairs, one of both directions, in the order in which they matter.

    First those with evidence of conflict, then by their mean cosine, the lowest first; pairs that
    never met come last.

    >>> ranked({("a", "b"): PairCounts(4, cosine_sum=2.0), ("a", "c"): PairCounts(4)})
    [('a', 'c'), ('a', 'b')]
    """
    judged = sum(counts.evidence.steps > 0 for counts in pairs.values())

    def rank(pair: Pair) -> tuple[bool, float]:
        counts = pairs[pair]
        cosine = math.inf if counts.cosine is None else counts.cosine
        return counts.evidence.verdict(judged) != "conflict", cosine

    first: dict[frozenset[str], Pair] = {}
    for i, j in pairs:
        first.setdefault(frozenset((i, j)), (i, j))
    return sorted(first.values(), key=rank)
