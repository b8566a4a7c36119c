"""A run's report: what was trained, how it scored, and what surgery did, with pictures.

Scores never stand without the conflict counts: a table with and without surgery that shows two
equal rows may only mean that surgery was never applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import CheckpointError
from bert_mtl_demo.printing import wrapped
from bert_mtl_demo.reporting import figures, plots
from bert_mtl_demo.reporting.tables import aligned, cell, table
from bert_mtl_demo.store import write_text, writing
from bert_mtl_demo.training.checkpoint import RunDirectory
from bert_mtl_demo.training.logs import WITHOUT, check_tasks, read_metrics, tasks_of
from bert_mtl_demo.training.progress import short
from gradsurgery import report as surgery
from gradsurgery.report import PairCounts

Table = Callable[[Sequence[str], Iterable[Iterable[object]]], str]
LISTED = 20  # skipped rows in the report; data.json has all of them


def write_report(directory: Path) -> str:
    """Write report.md and its pictures into a run; the summary for the terminal."""
    run = RunDirectory(Path(directory))
    config = run.load_config()
    rows, lines = read_metrics(run.metrics, config.tasks), _windows(run, config)
    dev = [row for row in rows if row["kind"] == "dev"]
    if not dev:
        raise CheckpointError(f"{run.path}: has no scores to report, as no epoch was finished")
    sections = [
        f"# {config.method} on {cell(', '.join(config.tasks))}",
        _settings(config),
        "## Data\n\n" + _data(run),
        "## Scores on dev\n\n" + score_table(dev),
        _explanation(),
        "## Conflicts\n\n" + _conflicts(lines),
        "## Pictures\n\n" + _pictures(run, rows, lines),
    ]
    page = write_text(run.path / "report.md", "\n\n".join(sections) + "\n")
    parts = [
        score_table(dev, aligned),
        *((conflict_table(lines, aligned), wrapped(conflict_note(lines))) if lines else ()),
        wrapped(surgery.judgement(lines)),
        f"report: {page}",
    ]
    return "\n" + "\n\n".join(part for part in parts if part)


def _windows(run: RunDirectory, config: Config) -> list[surgery.Line]:
    """The conflict log, of the run's tasks alone; none when there is no file."""
    if not run.conflicts.exists():
        return []
    try:
        # By its name alone: a report says nothing of where it was written.
        lines = surgery.read([run.conflicts])
        for line in lines:
            line["log"] = run.conflicts.name
    except ValueError as error:
        raise CheckpointError(f"{error}. {WITHOUT}") from None
    for number, line in enumerate(lines, start=1):
        check_tasks(run.conflicts, number, tasks_of(line), config.tasks)
    return lines


def score_table(dev: Sequence[dict[str, Any]], layout: Table = table) -> str:
    """Scores of every epoch, the best marked, as Markdown or `aligned`.

    >>> print(score_table([{"epoch": 1, "step": 9, "scores": {"sst": 0.5}, "mean": 0.5,
    ...     "leaderboard": 0.5, "best": True}]))
    | epoch | step | sst | mean | leaderboard | |
    |---|---|---|---|---|---|
    | 1 | 9 | .500 | .500 | .500 | best |
    """
    tasks = list(dev[0]["scores"])
    best = next((row for row in reversed(dev) if row["best"]), None)
    rows = [
        [
            *(row["epoch"], row["step"]),
            *(short(row["scores"][task]) for task in tasks),
            *(short(row["mean"]), short(row["leaderboard"])),
            "best" if row is best else "",
        ]
        for row in dev
    ]
    return layout(["epoch", "step", *map(cell, tasks), "mean", "leaderboard", ""], rows)


def conflict_table(lines: Sequence[surgery.Line], layout: Table = table) -> str:
    """Conflicts of every pair of tasks over a run, as Markdown or `aligned`.

    Both directions of a pair are in one row: rates are of the gradients that met, two a step.
    """
    counts: dict[tuple[str, str], PairCounts] = {}
    steps: dict[tuple[str, str], int] = {}
    for row in surgery.totals(lines):
        i, j = row["i"], row["j"]
        pair = (j, i) if (j, i) in counts else (i, j)
        counts[pair] = counts.get(pair, PairCounts()) + PairCounts.from_json(row)
        steps[pair] = max(steps.get(pair, 0), row["possible"])
    targets = any(total.target is not None for total in counts.values())
    rows = []
    for (i, j), total in counts.items():
        low, high = (total.lowest, total.highest) if total.possible else (None, None)
        cosines = [total.cosine, low, high, *([total.target] if targets else [])]
        rates = [total.rate("conflicts"), total.rate("altered")]
        rows.append(
            [
                *(f"{cell(i)}, {cell(j)}", steps[i, j]),
                *("" if rate is None else f"{rate:.1f}%" for rate in rates),
                *("" if cosine is None else f"{cosine:+.4f}" for cosine in cosines),
            ]
        )
    heading = ["pair", "steps", "conflicts", "altered", "cosine", "min", "max"]
    if not rows:
        return ""  # one task
    return layout([*heading, *(["target"] if targets else [])], rows)


def conflict_note(lines: Sequence[surgery.Line]) -> str:
    """The method, and what it did over a run, in a sentence."""
    gradients, change = surgery.gradient_totals(lines), surgery.mean_change(lines)
    altered = "" if gradients["altered"] is None else f"{gradients['altered']} of "
    unmeasured = surgery.unmeasured_total(lines)
    parts = [
        f"{lines[-1]['method']}: {sum(line['window'] for line in lines)} steps",
        *([f"conflicts not measured in {unmeasured}"] if unmeasured else []),
        f"{altered}{gradients['possible']} gradients" + (" altered" if altered else ""),
        f"mean change of the update {'unknown' if change is None else f'{change:.4f}'}",
        f"{sum(line['nonfinite'] for line in lines)} non-finite steps",
    ]
    return ", ".join(parts) + "."


def by_epoch(lines: Sequence[surgery.Line]) -> list[dict[str, Any]]:
    """Conflicts and alterations of every ordered pair, added up by epoch."""
    epochs: dict[float | None, list[surgery.Line]] = {}
    for line in lines:
        epochs.setdefault(line["epoch"], []).append(line)
    return [
        {"epoch": epoch, **total}
        for epoch, windows in epochs.items()
        for total in surgery.totals(windows)
    ]


def _settings(config: Config) -> str:
    changed = {name: value for name, value in config.changed().items() if name != "output"}
    listed = ", ".join(f"{name} = {cell(_local(value))}" for name, value in changed.items())
    warnings = "".join(f"\n\n**Note:** {cell(sentence)}" for sentence in config.warnings())
    return (
        f"Settings that differ from the defaults: {listed or 'none'}. All of them: config.json."
        + warnings
    )


def _local(value: Any) -> Any:
    """A setting whose absolute paths, of the machine that trained, are their last parts."""
    if isinstance(value, dict):
        return {name: _local(part) for name, part in value.items()}
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value


def _data(run: RunDirectory) -> str:
    data = run.load_data()
    if data is None:
        return f"{run.data.name} is missing or damaged."
    text = table(
        ["task", "train", "dev"], [[cell(name), *sizes] for name, sizes in data["sizes"].items()]
    )
    skipped = data["skipped"]
    if not skipped:
        return text + "\n\nNo row was skipped."
    rows = [f"- {cell(row)}" for row in skipped[:LISTED]]
    if len(skipped) > LISTED:
        rows.append(f"- and {len(skipped) - LISTED} more, in {run.data.name}")
    return "\n".join([f"{text}\n\n{len(skipped)} rows were skipped:\n", *rows])


def _explanation() -> str:
    return (
        "`mean` averages the scores as they are; `leaderboard` takes (r + 1) / 2 for the "
        "similarity task first. The weights of the best epoch by `mean` are in best.safetensors."
    )


def _conflicts(lines: Sequence[surgery.Line]) -> str:
    if not lines:
        return "No window was logged."
    rows = [
        [
            *(
                row["epoch"],
                f"{cell(row['i'])} <- {cell(row['j'])}",
                row["possible"],
                row["conflicts"],
            ),
            "" if row["altered"] is None else row["altered"],
            "" if row["mean"] is None else f"{row['mean']:+.4f}",
        ]
        for row in by_epoch(lines)
    ]
    heading = ["epoch", "pair", "possible", "conflicts", "altered", "mean cosine"]
    explanation = (
        "By epoch; `i <- j` reads: gradient i, altered because of j. A conflict is a negative "
        "cosine: nearly orthogonal gradients conflict in half of the steps by chance."
    )
    parts = [
        *(conflict_table(lines), conflict_note(lines), surgery.judgement(lines)),
        *(explanation, table(heading, rows)),
    ]
    return "\n\n".join(part for part in parts if part)


def _pictures(
    run: RunDirectory, rows: Sequence[dict[str, Any]], lines: Sequence[surgery.Line]
) -> str:
    drawn = {"losses": figures.losses(rows), "scores": figures.scores(rows)}
    totals = by_epoch(lines)
    met = any(row["possible"] for row in totals)
    if met:
        drawn["conflicts_by_epoch"] = figures.conflicts_by_epoch(totals)
    files = [plots.save(figure, run.path / f"{name}.png") for name, figure in drawn.items()]
    if met:
        with writing(run.path), TemporaryDirectory(prefix=".pictures", dir=run.path) as unfinished:
            # Renamed from there: a link in place of a picture is replaced, not followed.
            files += [
                path.replace(run.path / path.name) for path in surgery.draw(lines, unfinished)
            ]
    return "\n\n".join(f"![{file.stem}]({file.name})" for file in files)
