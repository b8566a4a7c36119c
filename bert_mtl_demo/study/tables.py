"""The tables of a study's page: scores with their conflicts, costs, and comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bert_mtl_demo.reporting.run_report import markdown
from bert_mtl_demo.study.intervals import MISSING, Comparison, holm, interval
from bert_mtl_demo.study.outcomes import Outcomes, added
from bert_mtl_demo.study.published import Row
from bert_mtl_demo.study.results import Pair, Result
from bert_mtl_demo.training.progress import short

IDENTICAL = "identical in every seed"


def score_table(outcomes: Outcomes) -> str:
    """Published beside ours, and what surgery met and did in the same runs."""
    names = outcomes.scored()
    published = [name for name in names if any(name in row.published for row in outcomes.rows)]
    tables = len({row.table for row in outcomes.rows}) > 1
    heading = ["row", *(["from"] if tables else []), "seeds"]
    for name in names:
        heading += [f"{name} published", f"{name} ours"] if name in published else [name]
    body = []
    for row in outcomes.rows:
        seeds = len(outcomes.of(row))
        cells = [cell(row.name), *([cell(row.table)] if tables else []), str(seeds)]
        for name in names:
            if name in published:
                cells.append(short(row.published[name]) if name in row.published else MISSING)
            cells.append(_ours(outcomes, row, name, seeds))
        body.append([*cells, *_surgery(outcomes, row)])
    return markdown([*heading, "conflicts", "altered", "mean cosine", "change"], body)


def cost_table(outcomes: Outcomes) -> str:
    """Time, memory and size of the rows that were run."""
    body = []
    for row in outcomes.ran:
        seeds = list(outcomes.of(row).values())
        memory = [r.peak_memory for r in seeds if r.peak_memory is not None]
        trained = [r.trained_parameters for r in seeds if r.trained_parameters is not None]
        body.append(
            [
                cell(row.name),
                str(outcomes.trained(row)) + (", one by one" if row.separate else ""),
                _measured([r.seconds_per_epoch for r in seeds], 1.0, " s"),
                f"{max(memory) / 2**20:,.0f} MiB" if memory else MISSING,
                _measured([r.data_share for r in seeds], 100.0, "%"),
                f"{max(trained):,}" if trained else MISSING,
                ", ".join(MISSING if r.best_epoch is None else str(r.best_epoch) for r in seeds),
            ]
        )
    heading = [
        "row",
        "trained tasks",
        "time per epoch",
        "peak memory",
        "time spent on data",
        "trained parameters",
        "best epoch by seed",
    ]
    return markdown(heading, body)


def comparison_table(outcomes: Outcomes) -> str:
    """Every row against the baseline, score by score."""
    rows = [row for row in outcomes.ran if row != outcomes.compared_with]
    names = [
        name for name in outcomes.scored() if any(outcomes.interval(row, name).n for row in rows)
    ]
    columns = [_judged([outcomes.comparison(row, name) for row in rows]) for name in names]
    body = [[cell(row.name), *(column[n] for column in columns)] for n, row in enumerate(rows)]
    return markdown(["row", *names], body)


def pair_table(outcomes: Outcomes) -> str:
    """Conflicts and alterations by ordered pair and epoch, over all seeds."""
    body = []
    for row in outcomes.surgical():
        pairs = outcomes.pairs(row)
        for epoch in sorted({pair.epoch for pair in pairs}):
            keys = dict.fromkeys((pair.i, pair.j) for pair in pairs if pair.epoch == epoch)
            for i, j in keys:
                found = [p for p in pairs if (p.epoch, p.i, p.j) == (epoch, i, j)]
                body.append([cell(row.name), str(epoch), f"{i} <- {j}", *_counts(added(found))])
    heading = ["row", "epoch", "pair", "conflicts", "altered", "mean cosine"]
    return markdown(heading, body)


def mistake_table(result: Result, task: str, texts: bool) -> str:
    """The answers that were furthest off; sentences only where they may be shown."""
    body = [
        [
            str(one.row),
            *([" / ".join(cell(text) for text in one.texts)] if texts else []),
            cell(one.true),
            cell(one.found),
            f"{one.error:.2f}",
        ]
        for one in result.evaluation[task].mistakes
    ]
    return markdown(["dev row", *(["text"] if texts else []), "true", "predicted", "error"], body)


def cell(text: object) -> str:
    """A text that cannot break a table or the page.

    >>> cell("a|b <i> \\n c")
    'a\\\\|b &lt;i&gt; c'
    """
    line = " ".join(str(text).split())
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


def _ours(outcomes: Outcomes, row: Row, name: str, seeds: int) -> str:
    if not seeds:
        return "failed" if outcomes.failed.get(row.name) else "not run"
    found = outcomes.interval(row, name)
    fewer = f" ({found.n} of {seeds} seeds)" if 0 < found.n < seeds else ""
    return f"{found}{fewer}"


def _surgery(outcomes: Outcomes, row: Row) -> list[str]:
    """Conflicts, alterations, mean cosine and change of the update, over all seeds."""
    counts = _counts(added(outcomes.pairs(row)))
    changes = [r.conflicts.change for r in outcomes.of(row).values() if r.conflicts]
    known = [change for change in changes if change is not None]
    change = f"{100 * math.fsum(known) / len(known):.1f}%" if known else MISSING
    return [*counts, change]


def _counts(total: Pair | None) -> list[str]:
    if total is None or not total.possible:
        return [MISSING] * 3
    cosine = MISSING if total.mean is None else f"{total.mean:+.4f}"
    return [*(_share(count, total.possible) for count in (total.conflicts, total.altered)), cosine]


def _share(count: int, possible: int) -> str:
    """A count with what it is a part of.

    >>> _share(2000, 54000), _share(0, 0)
    ('2,000 of 54,000 (3.7%)', '0 of 0')
    """
    part = f" ({100 * count / possible:.1f}%)" if possible else ""
    return f"{count:,} of {possible:,}{part}"


def _judged(comparisons: Sequence[Comparison]) -> list[str]:
    """One column: differences, and what may be said about them."""
    survive = holm([one.p for one in comparisons])
    cells = []
    for one, holds in zip(comparisons, survive, strict=True):
        if one.difference.n == 0:
            cells.append(MISSING)
        elif one.identical:
            cells.append(IDENTICAL if one.difference.n > 1 else "identical in the one seed")
        elif one.differs:
            also = ", also after Holm" if holds else ""
            cells.append(f"**{one.difference.signed()}** differs{also}")
        else:
            cells.append(f"{one.difference.signed()} {one.describe()}")
    return cells


def _measured(values: Sequence[float | None], factor: float, unit: str) -> str:
    """Mean and interval of a quantity that is no score."""
    found: Any = interval([factor * value for value in values if value is not None])
    if not found.n:
        return MISSING
    margin = "" if found.half is None else f" ± {found.half:.1f}"
    return f"{found.mean:.1f}{margin}{unit}"
