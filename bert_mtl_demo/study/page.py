"""One page per report: the budget first, then published beside ours, costs, and comparisons.

Everything on it comes from the results, so it can be written again at any time. Scores never stand
without the conflict counts of the same runs, and no difference without its interval.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_mtl_demo.config import Config
from bert_mtl_demo.reporting.tables import cell, table
from bert_mtl_demo.store import atomic
from bert_mtl_demo.study.effects import POWER
from bert_mtl_demo.study.figures import draw_figures
from bert_mtl_demo.study.intervals import MISSING, NEGLIGIBLE
from bert_mtl_demo.study.outcomes import Outcomes, Seeds
from bert_mtl_demo.study.published import PINNED, SCORES, Paper, Row
from bert_mtl_demo.study.tables import (
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
    directory: Path,
    report: Paper,
    rows: Sequence[Row],
    results: Mapping[str, Seeds],
    budget: Mapping[str, str],
    texts: bool,
    *,
    notes: Sequence[str] = (),
    shared: Mapping[str, str] | None = None,
    failures: Mapping[str, Sequence[str]] | None = None,
    coinciding: Collection[frozenset[str]] = (),
) -> Path:
    """Write <report>.md and its figures in <report>/ into a directory; the page's path.

    Args:
        directory: it is made.
        report: whose rows they are; names the baseline and the published test scores.
        rows: those of them that the study is about.
        results: row name -> seed -> result; a row may be absent or have none.
        budget: what was spent, name -> words; `command` is shown as code.
        texts: whether sentences of the data may be shown; else the mistakes are row numbers.
        notes: what else has to be known, a sentence each.
        shared: row name -> name of the row whose runs it shares.
        failures: row name -> why seeds of it have no result.
        coinciding: pairs of rows whose designs are one under this budget; they are not compared.
    """
    baseline = report.baseline if report.baseline in [row.name for row in rows] else None
    outcomes = Outcomes(
        report.name, rows, results, baseline, shared or {}, failures or {}, coinciding
    )
    directory.mkdir(parents=True, exist_ok=True)
    pictures = draw_figures(outcomes, directory / report.name)
    figures = [f"![{p.path.stem}]({report.name}/{p.path.name})\n\n{p.caption}" for p in pictures]
    settings = "\n".join(_row(outcomes, row) for row in outcomes.rows)
    sections = [
        f"# {report.title}",
        "## Budget\n\n" + _budget(outcomes, budget, notes),
        "## Scores on dev\n\n" + _scores(outcomes),
        _titled("Failed or not run", _missing(outcomes)),
        _titled("Against the controls", _comparisons(outcomes)),
        _titled("Cost", cost_table(outcomes) + "\n\n" + _COST if outcomes.ran else ""),
        _titled("Conflicts by pair and epoch", _conflicts(outcomes)),
        _titled("Figures", "\n\n".join(figures)),
        _titled("Most wrong", _mistakes(outcomes, texts)),
        _titled("Published only: the test labels are not public", _test_scores(report)),
        "## Notes and settings\n\n" + _foldable("Every row", settings),
    ]
    page = directory / f"{report.name}.md"
    with atomic(page) as unfinished:
        unfinished.write_text(_joined(*sections) + "\n", encoding="utf-8")
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


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _titled(title: str, content: str) -> str:
    return f"## {title}\n\n{content}" if content else ""


def _foldable(title: str, content: str) -> str:
    # With the attribute, MkDocs renders what is inside; GitHub does so in any case.
    return f'<details markdown="1">\n<summary>{title}</summary>\n\n{content}\n\n</details>'


def _budget(outcomes: Outcomes, budget: Mapping[str, str], notes: Sequence[str]) -> str:
    results = [result for row in outcomes.ran for result in outcomes.of(row).values()]
    devices = {result.device for result in results if result.device}
    versions = {f"{name} {version}" for r in results for name, version in r.versions.items()}
    lines = {"device": "; ".join(sorted(devices)), "versions": ", ".join(sorted(versions))}
    lines = {**budget, **{name: words for name, words in lines.items() if name not in budget}}
    command = lines.pop("command", None)
    return _joined(
        _statement(outcomes),
        f"```\n{command}\n```" if command else "",
        "\n".join(f"- {name}: {cell(words)}" for name, words in lines.items() if words),
        *(f"**Note:** {cell(note)}" for note in notes),
    )


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


_SCORES = (
    "Ours: mean over seeds ± half of the 95% interval, of the epoch that is best on dev by "
    "`mean`, and so a little too high; one seed has no interval. Where a run's answers were kept, "
    "the interval is over seeds and dev's examples (resampled, the same for all runs); of older "
    "results it is Student's t over seeds alone. `mean` averages the scores as they are, "
    "`leaderboard` takes (r + 1) / 2 of the "
    "similarity task first; rows that are not scored on just these three tasks have neither."
)


def _scores(outcomes: Outcomes) -> str:
    sharing = [
        f"- {cell(name)}: the same settings, and so the same runs, as {cell(owner)}"
        for name, owner in outcomes.shared.items()
    ]
    parts = score_table(outcomes), _SCORES, _COUNTS, _best(outcomes), "\n".join(sharing)
    return _joined(*parts)


def _best(outcomes: Outcomes) -> str:
    if outcomes.best is None:
        return ""
    sentence = f"Best by `{outcomes.overall}`: {cell(outcomes.best.name)}"
    if outcomes.lead:
        row, comparison = outcomes.lead
        sentence += f"; against the next, {cell(row.name)}: {comparison.difference.signed()}, "
        sentence += comparison.describe()
    return sentence + "."


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
    rows = [row for row in outcomes.ran if outcomes.control_of(row)]
    if not any(outcomes.of(control) for row in rows if (control := outcomes.control_of(row))):
        return "There is nothing to compare with." if rows else ""
    return (
        f"{comparison_table(outcomes)}\n\nOurs minus the row named under `against`, paired by seed "
        "and by example of dev, ± half of the 95% interval. `could have seen`: the smallest true "
        f"difference that would have been told from 0 with {100 * POWER:.0f}% power. Inside the "
        f"noise: the interval contains 0, and may hold an effect of that size. `{NEGLIGIBLE}`: "
        "shown to be smaller, by two one-sided tests at 5%. The intervals are not "
        "corrected for their number, so of twenty true zeros one is expected to differ; `also "
        "after Holm` marks what stands when all rows of a column are tested at once. "
        "`identical` is what two rows look like between which nothing was changed, or both of "
        "which give every example the same answer."
    )


def _conflicts(outcomes: Outcomes) -> str:
    if not outcomes.surgical():
        return ""
    reading = "`i <- j` reads: gradient i, altered because of gradient j. All seeds together."
    return _foldable("Every row", f"{reading}\n\n{pair_table(outcomes)}")


def _mistakes(outcomes: Outcomes, texts: bool) -> str:
    row = outcomes.best
    if row is None:
        return ""
    seed, result = next(iter(outcomes.of(row).items()))
    tables = [
        f"### {task}\n\n{mistake_table(result, task, texts)}"
        for task, evaluation in result.evaluation.items()
        if evaluation.mistakes
    ]
    if not tables:
        return ""
    why = "" if texts else " The data may not be passed on, so sentences are named by row number."
    source = f"Of the best row by `{outcomes.overall}`, {cell(row.name)}, seed {seed}.{why}"
    return _joined(source, *tables)


def _test_scores(report: Paper) -> str:
    if not report.test_scores:
        return ""
    names = [name for name in SCORES if any(name in scores for _, scores in report.test_scores)]
    rows = [
        [cell(row), *(short(scores[name]) if name in scores else MISSING for name in names)]
        for row, scores in report.test_scores
    ]
    return table(["row", *names], rows)


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
    defaults, theirs = Config.from_mapping(PINNED).to_dict(), row.config().to_dict()
    hidden = (*_ELSEWHERE, "tasks") if row.separate else _ELSEWHERE
    departures: dict[str, Any] = {}
    for result in outcomes.of(row).values():
        ours = {**defaults, **result.settings}
        for name, value in ours.items():
            if name not in hidden and _plain(value) != _plain(theirs.get(name)):
                departures[name] = value
    return departures


def _plain(value: Any) -> str:
    return json.dumps(value, default=str)


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name} = {_word(value)}`" for name, value in settings.items())


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
