"""A report's rows beside what came out of them: what tables and figures ask, in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bert_mtl_demo.errors import ConfigError, unknown
from bert_mtl_demo.study.intervals import Comparison, Interval, compare, interval
from bert_mtl_demo.study.published import SCORES, Row
from bert_mtl_demo.study.results import Pair, Result
from bert_mtl_demo.tasks import TASKS

Seeds = Mapping[int, Result]


@dataclass(frozen=True)
class Outcomes:
    """The rows of one report and their results.

    Args:
        report: its short name.
        rows: in the report's order.
        results: row name -> seed -> result; rows that were not run, or failed, are absent.
        baseline: name of the row that the others are compared with; None: the first.
        shared: row name -> name of the row whose runs it shares, as its settings are the same.
        failed: row name -> why it has no results, or not of all seeds, one reason a run.

    >>> row = Row("demo", "naive", "Table 1", {"sst": 0.498})
    >>> found = Outcomes("demo", [row], {"naive": {0: Result({"sst": 0.5}, 0.5, 0.5)}})
    >>> str(found.interval(row, "sst")), found.overall
    ('.500', 'mean')
    """

    report: str
    rows: Sequence[Row]
    results: Mapping[str, Seeds]
    baseline: str | None = None
    shared: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows:
            raise ConfigError(f"report {self.report!r}: has no rows, so there is nothing to show")
        names = [row.name for row in self.rows]
        given = [*self.results, *self.shared, *self.shared.values(), *self.failed]
        for name in [*given, *([self.baseline] if self.baseline else [])]:
            if name not in names:
                raise ConfigError(f"report {self.report!r}: {unknown('row', name, names)}")

    def of(self, row: Row) -> Seeds:
        """The row's results, by seed in order; those of the row it shares its runs with."""
        found = self.results.get(row.name) or self.results.get(self.shared.get(row.name, ""), {})
        return dict(sorted(found.items()))

    @property
    def ran(self) -> list[Row]:
        """The rows that have results."""
        return [row for row in self.rows if self.of(row)]

    @property
    def compared_with(self) -> Row:
        """The baseline."""
        return next(row for row in self.rows if self.baseline in (None, row.name))

    @property
    def overall(self) -> str:
        """The overall score that this report publishes: `mean` or `leaderboard`."""
        published = any("leaderboard" in row.published for row in self.rows)
        return "leaderboard" if published else "mean"

    @property
    def best(self) -> Row | None:
        """The row with the highest overall score; of equal ones the first."""
        rows = [row for row in self.ran if self.interval(row, self.overall).n]
        return max(rows, key=lambda row: self.interval(row, self.overall).mean, default=None)

    @property
    def lead(self) -> tuple[Row, Comparison] | None:
        """The row after the best, and the best against it."""
        best = self.best
        others = [row for row in self.ran if row != best and self.interval(row, self.overall).n]
        others = [row for row in others if self.of(row) != self.of(best)] if best else []
        if best is None or not others:
            return None
        second = max(others, key=lambda row: self.interval(row, self.overall).mean)
        name = self.overall
        return second, compare(self.values(best, name), self.values(second, name))

    def values(self, row: Row, score: str) -> dict[int, float]:
        """Seed -> score, without those that do not exist."""
        found = {seed: result.value(score) for seed, result in self.of(row).items()}
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def interval(self, row: Row, score: str) -> Interval:
        """The score over seeds."""
        return interval(list(self.values(row, score).values()))

    def comparison(self, row: Row, score: str) -> Comparison:
        """The row against the baseline."""
        return compare(self.values(row, score), self.values(self.compared_with, score))

    def scored(self) -> list[str]:
        """The scores that any row has, of ours or published, in the order of every table."""
        found = {name for row in self.rows for name in row.published}
        for row in self.ran:
            names = {name for result in self.of(row).values() for name in result.scores}
            found |= {name for name in (*names, *SCORES) if self.interval(row, name).n}
        return [name for name in dict.fromkeys([*SCORES, *TASKS]) if name in found]

    def trained(self, row: Row) -> int:
        """How many tasks the row trains, together or one by one; 0 without a result."""
        for result in self.of(row).values():
            return len({task for line in result.losses for task in line.loss} or result.scores)
        return 0

    def pairs(self, row: Row) -> list[Pair]:
        """All that was counted of all seeds, one after the other."""
        return [pair for result in self.of(row).values() for pair in _pairs(result)]

    def surgical(self) -> list[Row]:
        """Rows in whose runs gradients of two tasks met, each set of runs once."""
        own = [row for row in self.ran if self.results.get(row.name) and not self._shares(row)]
        return [row for row in own if any(pair.possible for pair in self.pairs(row))]

    def selected(self, rows: Sequence[Row], most: int) -> list[Row]:
        """At most so many rows, for figures with a line each: the baseline, then the best ones."""
        rows = [row for row in rows if not self._shares(row)]

        def rank(row: Row) -> tuple[bool, float]:
            found = self.interval(row, self.overall)
            return (row != self.compared_with, -found.mean if found.n else math.inf)

        chosen = sorted(rows, key=rank)[:most]
        return [row for row in rows if row in chosen]

    def _shares(self, row: Row) -> bool:
        return bool(self.results.get(self.shared.get(row.name, "")))


def _pairs(result: Result) -> Sequence[Pair]:
    return result.conflicts.pairs if result.conflicts else ()


def added(pairs: Sequence[Pair]) -> Pair | None:
    """Counts added up, the mean cosine weighted by them; None for no pair.

    >>> both = added([Pair(1, "a", "b", 30, 10, 0, 0.1), Pair(2, "a", "b", 10, 6, 6, -0.1)])
    >>> both.conflicts, round(both.mean, 3)
    (16, 0.05)
    """
    if not pairs:
        return None
    possible = sum(pair.possible for pair in pairs)
    cosines = math.fsum(pair.possible * (pair.mean or 0.0) for pair in pairs)
    first = pairs[0]
    return Pair(
        first.epoch,
        first.i,
        first.j,
        possible,
        sum(pair.conflicts for pair in pairs),
        sum(pair.altered for pair in pairs),
        cosines / possible if possible else None,
    )
