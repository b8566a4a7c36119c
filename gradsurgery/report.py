"""python -m gradsurgery.report LOG...: what a conflict log says, as a table and as pictures.

The table has one row per log and ordered pair of tasks. The pictures (``pip install matplotlib``)
show what counts hide: the cosines with their spread, and how much surgery changed the update.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from gradsurgery.evidence import Evidence, sentence
from gradsurgery.log import SCHEMA
from gradsurgery.summary import (
    Line,
    PairCounts,
    gradient_totals,
    mean_change,
    pair_totals,
    unmeasured_total,
)

__all__ = ["Line", "PairCounts", "draw", "gradient_totals", "main", "mean_change", "pair_totals"]
__all__ += ["evidence", "judgement", "read", "table", "totals", "unmeasured_total", "verdict"]

_ASSUMED = (
    "Mean cosines with 95% intervals, for all pairs of a log together. They speak of the expected "
    "gradients if each task draws its own batches; where tasks share a batch, of its noise, too."
)
_COLUMNS = ("method", "pair", "possible", "conflicts", "altered", "cosine", "min", "max", "target")


def read(paths: Iterable[str | Path]) -> list[Line]:
    """Return the lines of conflict logs, in order, each with its file under ``"log"``.

    Raises:
        ValueError: for a line that is no conflict log line; the message names file and line. A last
            line that a killed process left unfinished is passed over.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "c.jsonl"
        >>> _ = path.write_text('{"schema": 1, "step": 100}\\n')
        >>> read([path])[0]["step"]
        100
    """
    return [line for path in paths for line in _lines(Path(path))]


def _lines(path: Path) -> list[Line]:
    texts = path.read_text(encoding="utf-8").split("\n")
    unfinished = texts.pop()  # "" after a last newline
    lines: list[Line] = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            raise ValueError(f"{path}:{number}: not JSON: {text[:60]!r}") from None
        if not isinstance(line, dict) or line.get("schema") != SCHEMA:
            raise ValueError(f"{path}:{number}: not a conflict log line of schema {SCHEMA}")
        lines.append(cast(Line, {**line, "log": str(path)}))
    if unfinished:
        print(f"{path}: passed over an unfinished last line", file=sys.stderr)
    return lines


def totals(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Add up the windows of one log, per ordered pair.

    Returns:
        Per pair: ``i``, ``j``, ``possible``, ``conflicts``, ``altered``, ``mean``, ``min`` and
        ``max`` of the cosine (None without any), and the last ``target``. Plain values, which
        :meth:`PairCounts.from_json` reads.
    """
    rows: list[dict[str, Any]] = []
    for pair, counts in _pairs(lines).items():
        row: dict[str, Any] = {**counts.to_json(*pair)}
        cosine = row.pop("cosine")
        rows.append({**row, **cosine})
    return rows


def _pairs(lines: Sequence[Line]) -> dict[tuple[str, str], PairCounts]:
    return pair_totals(pair for line in lines for pair in line["pairs"])


def table(lines: Sequence[Line]) -> str:
    """Return the table of one or several logs, as Markdown: a row per log and pair of tasks."""
    logs = _by_log(lines)
    rows: list[Sequence[str]] = [_COLUMNS, ["---"] * len(_COLUMNS)]
    for windows in logs.values():
        method = windows[-1]["method"]
        unmeasured = unmeasured_total(windows) > 0
        rows += [[method, *_cells(*pair, unmeasured)] for pair in _pairs(windows).items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [" | ".join(map(str.ljust, row, widths)) for row in rows]
    notes = [_note(log, windows) for log, windows in logs.items()]
    return "\n".join([*(f"| {row} |" for row in padded), "", *notes])


def _cells(pair: tuple[str, str], counts: PairCounts, unmeasured: bool) -> list[str]:
    if unmeasured and not counts.possible:
        return [" <- ".join(pair), "not measured", *[""] * 6]
    summary = counts.to_json(*pair)
    return [
        " <- ".join(pair),
        str(counts.possible),
        _count(counts.conflicts, counts.rate("conflicts")),
        _count(counts.altered, counts.rate("altered")),
        *(_number(value) for value in (*summary["cosine"].values(), counts.target)),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def _count(count: int | None, rate: float | None) -> str:
    return ("" if count is None else f"{count}") + ("" if rate is None else f" ({rate:.1f}%)")


def _note(log: str, lines: Sequence[Line]) -> str:
    counts, change = gradient_totals(lines), mean_change(lines)
    gradients = f"{counts['possible']} gradients"
    if counts["altered"] is not None:
        gradients = f"{counts['altered']} of {gradients} altered"
    steps = f"{sum(line['window'] for line in lines)} steps"
    if unmeasured := unmeasured_total(lines):
        steps += f" (conflicts not measured in {unmeasured})"
    return (
        f"{log}: {steps}, {gradients}, mean change of the "
        f"update {'unknown' if change is None else f'{change:.4f}'}, "
        f"{sum(line['nonfinite'] for line in lines)} non-finite steps"
    )


def _by_log(lines: Sequence[Line]) -> dict[str, list[Line]]:
    logs: dict[str, list[Line]] = {}
    for line in lines:
        logs.setdefault(line.get("log", "log"), []).append(line)
    return logs


def evidence(lines: Iterable[Mapping[str, Any]]) -> dict[str, Evidence]:
    """Return by pair, as ``a/b``, whether its expected gradients conflict.

    Windows and logs add up: give the lines of one run, or of several seeds of it.

    Args:
        lines: as :func:`read` returns them. Older logs hold no evidence, and add nothing.
    """
    pairs = pair_totals(pair for line in lines for pair in line["pairs"])
    return {f"{i}/{j}": c.evidence for (i, j), c in pairs.items() if c.evidence.steps}


def verdict(lines: Iterable[Mapping[str, Any]]) -> str | None:
    """Return in one sentence whether the tasks conflict and what to do; None without evidence.

    Args:
        lines: as for :func:`evidence`.
    """
    pairs = evidence(lines)
    return sentence(pairs) if pairs else None


def judgement(lines: Sequence[Line]) -> str:
    """Return for each log the pairs' intervals, and one verdict; empty without evidence."""
    parts = []
    logs = _by_log(lines)
    for log, windows in logs.items():
        pairs = evidence(windows)
        if pairs:
            rows = [f"{name}: {pair.describe(len(pairs))}" for name, pair in pairs.items()]
            text = "\n".join([*(f"- {row}" for row in rows), "", f"Verdict: {sentence(pairs)}"])
            parts.append(f"{log}:\n\n{text}" if len(logs) > 1 else text)
    return "\n\n".join([_ASSUMED, *parts]) if parts else ""


def draw(lines: Sequence[Line], directory: str | Path) -> list[Path]:
    """Draw one picture per log: cosines, conflicts, alterations and change, over the steps.

    Args:
        lines: as :func:`read` returns them.
        directory: where the PNG files go; made when missing.

    Returns:
        The files written; one more per log when it has several segments.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    from gradsurgery import _plots

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    logs = _by_log(lines).items()
    return [path for log, rows in logs for path in _plots.draw(rows, directory, Path(log).stem)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gradsurgery.report", description=__doc__)
    parser.add_argument("log", nargs="+", help="conflict logs (JSON lines)")
    parser.add_argument("--output", help="folder of the pictures (default: beside the first log)")
    options = parser.parse_args(arguments)
    try:
        lines = read(options.log)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not lines:
        print(f"error: no window in {', '.join(options.log)}", file=sys.stderr)
        return 2
    print(table(lines))
    _draw(lines, options.output or Path(options.log[0]).parent)
    judged = judgement(lines)
    if judged:
        print(f"\n{judged}")
    return 0


def _draw(lines: Sequence[Line], directory: str | Path) -> None:
    """Draw, and print the files or what is missing."""
    try:
        files = draw(lines, directory)
    except ModuleNotFoundError as error:
        print(f"no pictures: {error}; pip install matplotlib", file=sys.stderr)
    else:
        print("\n".join(f"picture: {file}" for file in files))


if __name__ == "__main__":
    sys.exit(main())
