"""One page per report: the budget first, then published beside ours, costs, and comparisons.

Everything on it comes from the results, so it can be written again at any time. Scores never stand
without the conflict counts of the same runs, and no difference without its interval.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_mtl_demo.config import Config
from bert_mtl_demo.reporting.run_report import markdown
from bert_mtl_demo.store import atomic
from bert_mtl_demo.study.figures import draw_figures
from bert_mtl_demo.study.intervals import MISSING
from bert_mtl_demo.study.outcomes import Outcomes, Seeds
from bert_mtl_demo.study.published import SCORES, Paper, Row
from bert_mtl_demo.study.tables import (
    cell,
    comparison_table,
    cost_table,
    mistake_table,
    pair_table,
    score_table,
)
from bert_mtl_demo.training.progress import short

# Where a run was, and what is on the page already: no part of what tells rows apart.
_ELSEWHERE = ("data", "output", "cache", "seed", "device", "checkpoint_every", "log_every")


def write_page(
    place: Path,
    report: Paper,
    rows: Sequence[Row],
    results: Mapping[str, Seeds],
    budget: Mapping[str, str],
    texts: bool,
    *,
    notes: Sequence[str] = (),
    shared: Mapping[str, str] | None = None,
    failures: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Write PLACE/<report>.md and its figures in PLACE/<report>/; where the page is.

    Args:
        place: a folder; it is made.
        report: whose rows they are; names the baseline and the published test scores.
        rows: those of them that the study is about.
        results: row name -> seed -> result; a row may be absent or have none.
        budget: what was spent, name -> words; `command` is shown as code.
        texts: whether sentences of the data may be shown; else the mistakes are row numbers.
        notes: what else has to be known, a sentence each.
        shared: row name -> name of the row whose runs it shares.
        failures: row name -> why seeds of it have no result.
    """
    baseline = report.baseline if report.baseline in [row.name for row in rows] else None
    outcomes = Outcomes(report.name, rows, results, baseline, shared or {}, failures or {})
    place.mkdir(parents=True, exist_ok=True)
    pictures = draw_figures(outcomes, place / report.name)
    figures = [f"![{p.path.stem}]({report.name}/{p.path.name})\n\n{p.caption}" for p in pictures]
    sections = [
        f"# {report.title}",
        "## Budget\n\n" + _budget(outcomes, budget, notes),
        "## Scores on dev\n\n" + _scores(outcomes),
        _titled("Failed or not run", _missing(outcomes)),
        _titled(f"Against {cell(outcomes.compared_with.name)!r}", _comparisons(outcomes)),
        _titled("Cost", cost_table(outcomes) + "\n\n" + _COST if outcomes.ran else ""),
        _titled("Conflicts by pair and epoch", _conflicts(outcomes)),
        _titled("Figures", "\n\n".join(figures)),
        _titled("Most wrong", _mistakes(outcomes, texts)),
        _titled("Published only: the test labels are not public", _test_scores(report)),
        "## Notes and settings\n\n" + _foldable("Every row", _rows(outcomes)),
    ]
    page = place / f"{report.name}.md"
    with atomic(page) as unfinished:
        text = "\n\n".join(section for section in sections if section) + "\n"
        unfinished.write_text(text, encoding="utf-8")
    return page


_COST = (
    "Times are of the training steps, without dev. Rows with another batching have epochs of "
    "another length. Memory is the highest of all seeds."
)
_COUNTS = (
    "Conflicts and alterations are counted over ordered pairs of gradients, all epochs and seeds "
    "together. A conflict is a negative cosine, which pure noise gives in half of the cases; what "
    "surgery did is `change`, the mean length of what it added to the update relative to the plain "
    f"sum. {MISSING} means that no two gradients ever met."
)


def _titled(title: str, content: str) -> str:
    return f"## {title}\n\n{content}" if content else ""


def _foldable(title: str, content: str) -> str:
    # With the attribute, MkDocs renders what is inside; GitHub does so in any case.
    return f'<details markdown="1">\n<summary>{title}</summary>\n\n{content}\n\n</details>'


def _budget(outcomes: Outcomes, budget: Mapping[str, str], notes: Sequence[str]) -> str:
    shown = dict(budget)
    command = shown.pop("command", None)
    results = [result for row in outcomes.ran for result in outcomes.of(row).values()]
    shown.setdefault("device", "; ".join(sorted({r.device for r in results if r.device})))
    versions = {f"{name} {version}" for r in results for name, version in r.versions.items()}
    shown.setdefault("versions", ", ".join(sorted(versions)))
    code = f"```\n{command}\n```\n\n" if command else ""
    listed = "\n".join(f"- {name}: {cell(words)}" for name, words in shown.items() if words)
    said = "".join(f"\n\n**Note:** {cell(note)}" for note in notes)
    return f"{_statement(outcomes)}\n\n{code}{listed}{said}"


def _statement(outcomes: Outcomes) -> str:
    """Whether the rows were trained as published; said before any number."""
    departing = [row for row in outcomes.ran if _departures(outcomes, row)]
    if outcomes.ran and not departing:
        return (
            "All settings are the published ones, as far as the report states them. Encoder, data "
            "and what else the report leaves open are below."
        )
    return (
        "**This is not the published budget**: what differs is below, and for every row at the end "
        "of the page. Rows can be compared with each other, not in height with the published ones."
    )


def _scores(outcomes: Outcomes) -> str:
    explained = (
        "Ours: mean over seeds ± half of the 95% Student-t interval, of the epoch that is best "
        "on dev by `mean`, and so a little too high; one seed has no interval. It says how runs "
        "differ, not how well the dev examples stand for others: all rows are scored on the same "
        "ones. `mean` averages the scores as they are, `leaderboard` takes (r + 1) / 2 of the "
        "similarity task first; rows that are not scored on just these three tasks have neither."
    )
    best = outcomes.best
    named = f"Best by `{outcomes.overall}`: {cell(best.name)}" if best else ""
    if best and (lead := outcomes.lead):
        second, found = lead
        named += f"; against the next, {cell(second.name)}: {found.difference.signed()}, "
        named += found.describe()
    named += "." if named else ""
    sharing = "\n".join(
        f"- {cell(name)}: the same settings, and so the same runs, as {cell(owner)}"
        for name, owner in outcomes.shared.items()
    )
    parts = [score_table(outcomes), explained, _COUNTS, named, sharing]
    return "\n\n".join(part for part in parts if part)


def _missing(outcomes: Outcomes) -> str:
    lines = []
    for row in outcomes.rows:
        reasons = [cell(reason) for reason in outcomes.failed.get(row.name, ())]
        if not outcomes.of(row):
            lines.append(f"- {cell(row.name)}: {'; '.join(reasons) or 'not run'}")
        elif reasons:
            lines.append(f"- {cell(row.name)}, some seeds: {'; '.join(reasons)}")
    return "\n".join(lines)


def _comparisons(outcomes: Outcomes) -> str:
    base = outcomes.compared_with
    rows = [row for row in outcomes.ran if row != base]
    if not outcomes.of(base) or not rows:
        return "There is nothing to compare with." if rows else ""
    return (
        f"{comparison_table(outcomes)}\n\nOurs minus {cell(base.name)!r}, paired by seed, ± half "
        "of the 95% interval. Inside the noise: the interval contains 0. The intervals are not "
        "corrected for their number, so of twenty true zeros one is expected to differ; `also "
        "after Holm` marks what stands when all rows of a column are tested at once. "
        "`identical` is what two rows look like between which nothing was changed, or both of "
        "which give every example the same answer."
    )


def _conflicts(outcomes: Outcomes) -> str:
    if not outcomes.surgical():
        return ""
    said = "`i <- j` reads: gradient i, altered because of gradient j. All seeds together."
    return _foldable("Every row", f"{said}\n\n{pair_table(outcomes)}")


def _mistakes(outcomes: Outcomes, texts: bool) -> str:
    row = outcomes.best
    if row is None:
        return ""
    seed, result = next(iter(outcomes.of(row).items()))
    tables = [
        f"### {task}\n\n{mistake_table(result, task, texts)}"
        for task, found in result.evaluation.items()
        if found.mistakes
    ]
    if not tables:
        return ""
    why = "" if texts else " The data may not be passed on, so sentences are named by row number."
    said = f"Of the best row by `{outcomes.overall}`, {cell(row.name)}, seed {seed}.{why}"
    return "\n\n".join([said, *tables])


def _test_scores(report: Paper) -> str:
    if not report.test_scores:
        return ""
    names = [name for name in SCORES if any(name in found for _, found in report.test_scores)]
    body = [
        [cell(row), *(short(found[name]) if name in found else MISSING for name in names)]
        for row, found in report.test_scores
    ]
    return markdown(["row", *names], body)


def _rows(outcomes: Outcomes) -> str:
    return "\n".join(_row(outcomes, row) for row in outcomes.rows)


def _row(outcomes: Outcomes, row: Row) -> str:
    """One row's note, its published settings, and where ours differ from them."""
    lines = [f"- **{cell(row.name)}** ({cell(row.table)})"]
    if row.note:
        lines.append(f"    - note: {cell(row.note)}")
    if row.separate:
        lines.append("    - every task was trained by itself")
    lines.append(f"    - settings: {_listed(row.settings) or 'the defaults'}")
    departures = _departures(outcomes, row)
    if departures:
        lines.append(f"    - here: {_listed(departures)}")
    return "\n".join(lines)


def _departures(outcomes: Outcomes, row: Row) -> dict[str, Any]:
    """Settings of our runs that are not the row's: the budget, and what the encoder asks for."""
    defaults, theirs = Config().to_dict(), Config.from_mapping(row.settings).to_dict()
    hidden = (*_ELSEWHERE, "tasks") if row.separate else _ELSEWHERE
    found: dict[str, Any] = {}
    for result in outcomes.of(row).values():
        ours = {**defaults, **result.settings}
        for name, value in ours.items():
            if name not in hidden and _plain(value) != _plain(theirs.get(name)):
                found[name] = value
    return found


def _plain(value: Any) -> str:
    return json.dumps(value, default=str)


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name} = {_word(value)}`" for name, value in settings.items())


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
