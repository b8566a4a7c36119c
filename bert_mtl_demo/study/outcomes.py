"""A report's rows beside what came out of them: what tables and figures ask, in one place."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from bert_mtl_demo.errors import ConfigError, unknown
from bert_mtl_demo.study.dev_error import Array, resampled_scores, two_level
from bert_mtl_demo.study.intervals import Comparison, Interval, compare
from bert_mtl_demo.study.published import SCORES, Row
from bert_mtl_demo.study.results import THREE, Pair, Result
from bert_mtl_demo.tasks import TASKS
from gradsurgery.report import PairCounts

Seeds = Mapping[int, Result]
Key = TypeVar("Key")


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
        coinciding: pairs of rows' names whose designs are one under this budget, though their
            settings are not; they are not compared.

    >>> row = Row("demo", "naive", "Table 1", {"sst": 0.498})
    >>> outcomes = Outcomes("demo", [row], {"naive": {0: Result({"sst": 0.5}, 0.5, 0.5)}})
    >>> str(outcomes.interval(row, "sst")), outcomes.overall
    ('.500', 'mean')
    """

    report: str
    rows: Sequence[Row]
    results: Mapping[str, Seeds]
    baseline: str | None = None
    shared: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    coinciding: Collection[frozenset[str]] = ()
    _resampled: dict[tuple[str, str, int], Array | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not self.rows:
            raise ConfigError(f"report {self.report!r}: has no rows, so there is nothing to show")
        names = [row.name for row in self.rows]
        mentioned = [*self.results, *self.shared, *self.shared.values(), *self.failed]
        mentioned += [name for pair in self.coinciding for name in pair]
        for name in [*mentioned, *([self.baseline] if self.baseline else [])]:
            if name not in names:
                raise ConfigError(f"report {self.report!r}: {unknown('row', name, names)}")

    def of(self, row: Row) -> Seeds:
        """The row's results, by seed in order; those of the row it shares its runs with."""
        seeds = self.results.get(row.name) or self.results.get(self.shared.get(row.name, ""), {})
        return dict(sorted(seeds.items()))

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
        return next(iter(self._ranked()), None)

    @property
    def lead(self) -> tuple[Row, Comparison] | None:
        """The row after the best with other runs, and the best against it."""
        for row in self._ranked():
            best, score = self._ranked()[0], self.overall
            if self.of(row) != self.of(best):
                return row, self.compare(best, row, score)
        return None

    def _ranked(self) -> list[Row]:
        """The rows that have an overall score, the best first."""
        rows = [row for row in self.ran if self.interval(row, self.overall).n]
        return sorted(rows, key=lambda row: -self.interval(row, self.overall).mean)

    def values(self, row: Row, score: str) -> dict[int, float]:
        """Seed -> score, without those that do not exist."""
        values = {seed: result.value(score) for seed, result in self.of(row).items()}
        return {seed: value for seed, value in values.items() if math.isfinite(value)}

    def interval(self, row: Row, score: str) -> Interval:
        """The score over seeds and, where answers were kept, over dev's examples."""
        return two_level(self.values(row, score), self._draws(row, score))

    def control_of(self, row: Row) -> Row | None:
        """The row that this one is compared with: its control, else the baseline.

        None for the baseline itself, and for a control that is not among the rows.
        """
        name = row.control or self.compared_with.name
        return next((other for other in self.rows if other.name == name != row.name), None)

    def same_design(self, a: Row, b: Row) -> bool:
        """Whether two rows train the same thing under this budget."""
        owners = {self.shared.get(row.name, row.name) for row in (a, b)}
        return len(owners) == 1 or frozenset((a.name, b.name)) in self.coinciding

    def comparison(self, row: Row, score: str) -> Comparison:
        """The row against its control; without one, or with one of the same design, of nothing."""
        control = self.control_of(row)
        if control is None or self.same_design(row, control):
            return compare({}, {})
        return self.compare(row, control, score)

    def compare(self, a: Row, b: Row, score: str) -> Comparison:
        """One row against another, paired by seed and, where they share dev, by example."""
        first, second = self._draws(a, score), self._draws(b, score)
        paired = {
            seed: first[seed] - second[seed]
            for seed in first.keys() & second.keys()
            if self._same_examples(a, b, score, seed)
        }
        return compare(
            self.values(a, score),
            self.values(b, score),
            judge=lambda differences: two_level(differences, paired),
        )

    def compare_with(self, row: Row, number: float, score: str) -> Comparison:
        """One row against a number."""
        draws = {seed: scores - number for seed, scores in self._draws(row, score).items()}
        values = self.values(row, score)
        return compare(
            values, dict.fromkeys(values, number), judge=lambda apart: two_level(apart, draws)
        )

    def _draws(self, row: Row, score: str) -> dict[int, Array]:
        """Seed -> the score on resamples of dev, of the seeds whose answers were kept."""
        draws = {}
        for seed, result in self.of(row).items():
            key = row.name, score, seed
            if key not in self._resampled:
                self._resampled[key] = resampled_scores(result, score)
            if (scores := self._resampled[key]) is not None:
                draws[seed] = scores
        return draws

    def _same_examples(self, a: Row, b: Row, score: str, seed: int) -> bool:
        tasks = THREE if score in ("mean", "leaderboard") else (score,)
        first, second = self.of(a)[seed].evaluation, self.of(b)[seed].evaluation
        return all(first[task].truth == second[task].truth for task in tasks)

    def majority(self, task: str) -> float | None:
        """Accuracy of always answering dev's most frequent class; None of a regression."""
        for row in self.ran:
            for result in self.of(row).values():
                evaluation = result.evaluation.get(task)
                if evaluation and evaluation.confusion:
                    sizes = [sum(counts) for counts in evaluation.confusion]
                    return max(sizes) / sum(sizes)
        return None

    def scored(self) -> list[str]:
        """The scores that any row has, of ours or published, in the order of every table."""
        return [
            name
            for name in dict.fromkeys([*SCORES, *TASKS])
            if any(name in row.published or self.interval(row, name).n for row in self.rows)
        ]

    def trained(self, row: Row) -> int:
        """How many tasks the row trains, together or one by one; 0 without a result."""
        for result in self.of(row).values():
            return len({task for line in result.losses for task in line.loss} or result.scores)
        return 0

    def counts(self, row: Row, key: Callable[[Pair], Key]) -> dict[Key, PairCounts]:
        """What was counted in all seeds, added up by a key of the pairs."""
        counts: defaultdict[Key, PairCounts] = defaultdict(PairCounts)
        for result in self.of(row).values():
            for pair in result.conflicts.pairs if result.conflicts else ():
                counts[key(pair)] += PairCounts.from_json(vars(pair))
        return dict(counts)

    def total(self, row: Row) -> PairCounts:
        """What was counted in all seeds, over all epochs and ordered pairs."""
        return sum(self.counts(row, lambda pair: None).values(), PairCounts())

    def surgical(self) -> list[Row]:
        """Rows in whose runs gradients of two tasks met, each set of runs once."""
        rows = [row for row in self.ran if self.results.get(row.name) and not self._shares(row)]
        return [row for row in rows if self.total(row).possible]

    def selected(self, rows: Sequence[Row], most: int) -> list[Row]:
        """At most so many rows, for figures with a line each: the baseline, then the best ones."""
        rows = [row for row in rows if not self._shares(row)]

        def rank(row: Row) -> tuple[bool, float]:
            score = self.interval(row, self.overall)
            return (row != self.compared_with, -score.mean if score.n else math.inf)

        chosen = sorted(rows, key=rank)[:most]
        return [row for row in rows if row in chosen]

    def _shares(self, row: Row) -> bool:
        return bool(self.results.get(self.shared.get(row.name, "")))
