"""A run's report: what was trained, how it scored, and what surgery did, with pictures.

Scores never stand without the conflict counts: a table with and without surgery that shows two
equal rows may only mean that surgery was never applied.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import CheckpointError
from bert_mtl_demo.reporting import plots
from bert_mtl_demo.training.checkpoint import RunDirectory
from bert_mtl_demo.training.logs import read_lines
from bert_mtl_demo.training.progress import short
from gradsurgery import report as surgery

SHOWN = 20  # skipped rows listed in the report; data.json has all of them


def write_report(directory: Path) -> str:
    """Write report.md and its pictures into a run; the summary for the terminal."""
    run = RunDirectory(Path(directory))
    config, rows = run.load_config(), read_lines(run.metrics)
    dev = [row for row in rows if row["kind"] == "dev"]
    if not dev:
        raise CheckpointError(f"{run.path}: has no scores to report, as no epoch was finished")
    lines = surgery.read([run.conflicts])
    sections = [
        f"# {config.method} on {', '.join(config.tasks)}",
        _settings(config),
        "## Data\n\n" + _data(run),
        "## Scores on dev\n\n" + score_table(dev),
        _explanation(),
        "## Conflicts\n\n" + _conflicts(lines, config),
        "## Pictures\n\n" + _pictures(run, rows, lines, config),
    ]
    place = run.path / "report.md"
    place.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return f"\n{score_table(dev)}\n\n{surgery.table(lines)}\n\nreport: {place}"


def score_table(dev: Sequence[dict[str, Any]]) -> str:
    """Scores of every epoch, the best marked, as Markdown.

    >>> print(score_table([{"epoch": 1, "step": 9, "scores": {"sst": 0.5}, "mean": 0.5,
    ...     "leaderboard": 0.5, "best": True}]))
    | epoch | step | sst | mean | leaderboard | |
    |---|---|---|---|---|---|
    | 1 | 9 | .500 | .500 | .500 | best |
    """
    tasks = list(dev[0]["scores"])
    best = [row for row in dev if row["best"]][-1]
    heading = ["epoch", "step", *tasks, "mean", "leaderboard", ""]
    body = [
        [
            str(row["epoch"]),
            str(row["step"]),
            *(short(row["scores"][task]) for task in tasks),
            short(row["mean"]),
            short(row["leaderboard"]),
            "best" if row is best else "",
        ]
        for row in dev
    ]
    return markdown(heading, body)


def markdown(heading: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(markdown(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    rows = ["| " + " | ".join(row) + " |" for row in (heading, *body)]
    rows = [row.replace("|  |", "| |") for row in rows]
    return "\n".join([rows[0], "|" + "---|" * len(heading), *rows[1:]])


def by_epoch(lines: Sequence[surgery.Line]) -> list[dict[str, Any]]:
    """Conflicts and alterations of every ordered pair, added up by epoch."""
    return [
        {"epoch": epoch, **total}
        for epoch in sorted({line["epoch"] or 0 for line in lines})
        for total in surgery.totals([line for line in lines if line["epoch"] == epoch])
    ]


def _settings(config: Config) -> str:
    shown = {k: v for k, v in config.changed().items() if k != "output"}
    changed = ", ".join(f"{name} = {value}" for name, value in shown.items())
    warnings = "".join(f"\n\n**Note:** {sentence}" for sentence in config.warnings())
    return (
        f"Settings that differ from the defaults: {changed or 'none'}. All of them: config.json."
        + warnings
    )


def _data(run: RunDirectory) -> str:
    if not run.data.exists():
        return "data.json is missing."
    found = json.loads(run.data.read_text(encoding="utf-8"))
    sizes = [[n, str(size["train"]), str(size["dev"])] for n, size in found["sizes"].items()]
    text = markdown(["task", "train", "dev"], sizes)
    skipped = found["skipped"]
    if not skipped:
        return text + "\n\nNo row was skipped."
    listed = "\n".join(f"- {row['file']}:{row['line']}: {row['reason']}" for row in skipped[:SHOWN])
    more = f"\n- and {len(skipped) - SHOWN} more, in data.json" if len(skipped) > SHOWN else ""
    return f"{text}\n\n{len(skipped)} rows were skipped:\n\n{listed}{more}"


def _explanation() -> str:
    return (
        "`mean` averages the scores as they are; `leaderboard` takes (r + 1) / 2 for the "
        "similarity "
        "task first. The weights of the best epoch by `mean` are in best.safetensors."
    )


def _conflicts(lines: Sequence[surgery.Line], config: Config) -> str:
    if not lines:
        return "No window was logged."
    totals = by_epoch(lines)
    body = [
        [
            str(row["epoch"]),
            f"{row['i']} <- {row['j']}",
            str(row["possible"]),
            str(row["conflicts"]),
            str(row["altered"]),
            "" if row["mean"] is None else f"{row['mean']:+.4f}",
        ]
        for row in totals
    ]
    heading = ["epoch", "pair", "possible", "conflicts", "altered", "mean cosine"]
    return (
        f"{surgery.table(lines)}\n\nBy epoch; `i <- j` reads: gradient i, altered because of j. A "
        "conflict is a "
        "negative cosine: nearly orthogonal gradients conflict in half of the steps by chance.\n\n"
        + markdown(heading, body)
    )


def _pictures(
    run: RunDirectory,
    rows: Sequence[dict[str, Any]],
    lines: Sequence[surgery.Line],
    config: Config,
) -> str:
    files = [
        plots.losses(rows, run.path / "losses.png"),
        plots.scores(rows, run.path / "scores.png"),
    ]
    totals = by_epoch(lines)
    if any(row["possible"] for row in totals):
        files.append(plots.conflicts_by_epoch(totals, run.path / "conflicts_by_epoch.png"))
        files += surgery.draw(lines, run.path)
    return "\n\n".join(f"![{file.stem}]({file.name})" for file in files)
