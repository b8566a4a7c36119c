"""The tables of a study's page: scores with their conflicts, costs, and comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bert_mtl_demo.reporting.tables import cell, table
from bert_mtl_demo.study.intervals import MISSING, Comparison, Interval, holm, interval
from bert_mtl_demo.study.outcomes import Outcomes
from bert_mtl_demo.study.published import Row
from bert_mtl_demo.study.results import Result
from bert_mtl_demo.tasks import TASKS
from bert_mtl_demo.training.progress import short
from gradsurgery.report import PairCounts

IDENTICAL = "identical in every seed"


def score_table(outcomes: Outcomes) -> str:
    """Published beside ours, and what surgery met and did in the same runs."""
    names = outcomes.scored()
    published = [name for name in names if any(name in row.published for row in outcomes.rows)]
    several = len({row.table for row in outcomes.rows}) > 1  # tables that the rows come from
    heading = ["row", *(["from"] if several else []), "seeds"]
    for name in names:
        heading += [f"{name} published", f"{name} ours"] if name in published else [name]
    rows = []
    for row in outcomes.rows:
        cells = [cell(row.name), *([cell(row.table)] if several else []), len(outcomes.of(row))]
        for name in names:
            if name in published:
                cells.append(short(row.published[name]) if name in row.published else MISSING)
            cells.append(_ours(outcomes, row, name))
        rows.append([*cells, *_rates(outcomes.total(row)), _change(outcomes, row)])
    rows.append(_majority(outcomes, [name in published for name in names], len(heading), several))
    return table([*heading, "conflicts", "altered", "mean cosine", "change"], rows)


def _majority(
    outcomes: Outcomes, published: Sequence[bool], width: int, several: bool
) -> list[object]:
    """The row of a system that always answers the most frequent class."""
    cells: list[object] = ["*majority class of dev*", *([MISSING] if several else []), MISSING]
    for name, twice in zip(outcomes.scored(), published, strict=True):
        share = outcomes.majority(name) if name in TASKS else None
        cells += [*([MISSING] if twice else []), MISSING if share is None else short(share)]
    return [*cells, *[MISSING] * (width + 4 - len(cells))]


def cost_table(outcomes: Outcomes) -> str:
    """Time, memory and size of the rows that were run."""
    rows = []
    for row in outcomes.ran:
        seeds = list(outcomes.of(row).values())
        memory = [r.peak_memory for r in seeds if r.peak_memory is not None]
        trained = [r.trained_parameters for r in seeds if r.trained_parameters is not None]
        best = [MISSING if r.best_epoch is None else f"{r.best_epoch}" for r in seeds]
        rows.append(
            [
                cell(row.name),
                f"{outcomes.trained(row)}{', one by one' if row.separate else ''}",
                _measured([r.seconds_per_epoch for r in seeds], 1.0, " s"),
                f"{max(memory) / 2**20:,.0f} MiB" if memory else MISSING,
                _measured([r.data_share for r in seeds], 100.0, "%"),
                f"{max(trained):,}" if trained else MISSING,
                ", ".join(best),
            ]
        )
    heading = [
        *("row", "trained tasks", "time per epoch", "peak memory", "time spent on data"),
        *("trained parameters", "best epoch by seed"),
    ]
    return table(heading, rows)


def comparison_table(outcomes: Outcomes) -> str:
    """Every row against its control, score by score, and what each could have seen."""
    rows = [row for row in outcomes.ran if outcomes.control_of(row)]
    names = [
        name for name in outcomes.scored() if any(outcomes.interval(row, name).n for row in rows)
    ]
    columns = []
    for name in names:
        comparisons = [outcomes.comparison(row, name) for row in rows]
        columns += [_judged(comparisons), [seen(c.difference) for c in comparisons]]
    heading = [part for name in names for part in (name, "could have seen")]
    cells = [[cell(row.name), _control(outcomes, row)] for row in rows]
    body = [[*first, *rest] for first, *rest in zip(cells, *columns, strict=True)]
    return table(["row", "against", *heading], body)


def seen(difference: Interval) -> str:
    """The smallest effect that this comparison could have seen.

    >>> seen(interval([0.01, 0.02, 0.03])), seen(interval([0.01])) == MISSING
    ('.033', True)
    """
    effect = difference.detectable
    return MISSING if effect is None else short(effect)


def _control(outcomes: Outcomes, row: Row) -> str:
    control = outcomes.control_of(row)
    assert control is not None
    same = ": the same design under this budget" if outcomes.same_design(row, control) else ""
    return cell(control.name) + same


def pair_table(outcomes: Outcomes) -> str:
    """Conflicts and alterations by ordered pair and epoch, over all seeds."""
    rows = [
        [cell(row.name), epoch, f"{i} <- {j}", *_rates(counts)]
        for row in outcomes.surgical()
        for (epoch, i, j), counts in sorted(
            outcomes.counts(row, lambda pair: (pair.epoch, pair.i, pair.j)).items(),
            key=lambda item: item[0][0],
        )
    ]
    return table(["row", "epoch", "pair", "conflicts", "altered", "mean cosine"], rows)


def mistake_table(result: Result, task: str, texts: bool) -> str:
    """The answers that were furthest off; sentences only where they may be shown."""
    rows = [
        [
            mistake.row,
            *([" / ".join(cell(text) for text in mistake.texts)] if texts else []),
            *(cell(mistake.true), cell(mistake.found), f"{mistake.error:.2f}"),
        ]
        for mistake in result.evaluation[task].mistakes
    ]
    return table(["dev row", *(["text"] if texts else []), "true", "predicted", "error"], rows)


def _ours(outcomes: Outcomes, row: Row, name: str) -> str:
    seeds = len(outcomes.of(row))
    if not seeds:
        return "failed" if outcomes.failed.get(row.name) else "not run"
    score = outcomes.interval(row, name)
    return f"{score} ({score.n} of {seeds} seeds)" if 0 < score.n < seeds else f"{score}"


def _change(outcomes: Outcomes, row: Row) -> str:
    """The mean change of the update over all seeds."""
    changes = [r.conflicts.change for r in outcomes.of(row).values() if r.conflicts]
    known = [change for change in changes if change is not None]
    return f"{100 * math.fsum(known) / len(known):.1f}%" if known else MISSING


def _rates(counts: PairCounts) -> list[str]:
    """Conflicts and alterations, each with what it is a part of, and the mean cosine.

    >>> _rates(PairCounts(54000, 2000, 0, 54))
    ['2,000 of 54,000 (3.7%)', '0 of 54,000 (0.0%)', '+0.0010']
    """
    return [
        _count(counts.conflicts, counts.possible, counts.rate("conflicts")),
        _count(counts.altered, counts.possible, counts.rate("altered")),
        MISSING if counts.cosine is None else f"{counts.cosine:+.4f}",
    ]


def _count(count: int | None, possible: int, rate: float | None) -> str:
    return MISSING if rate is None else f"{count:,} of {possible:,} ({rate:.1f}%)"


def _judged(comparisons: Sequence[Comparison]) -> list[str]:
    """One column: differences, and what may be said about them."""
    survive = holm([comparison.p for comparison in comparisons])
    cells = []
    for comparison, holds in zip(comparisons, survive, strict=True):
        difference = comparison.difference
        if difference.n == 0:
            cells.append(MISSING)
        elif comparison.identical:
            cells.append(IDENTICAL if difference.n > 1 else "identical in the one seed")
        elif comparison.differs:
            also = ", also after Holm" if holds else ""
            cells.append(f"**{difference.signed()}** differs{also}")
        else:
            cells.append(f"{difference.signed()} {comparison.describe()}")
    return cells


def _measured(values: Sequence[float | None], factor: float, unit: str) -> str:
    """Mean and interval of a quantity that is no score."""
    measured = interval([factor * value for value in values if value is not None])
    if not measured.n:
        return MISSING
    margin = "" if measured.half is None else f" ± {measured.half:.1f}"
    return f"{measured.mean:.1f}{margin}{unit}"
