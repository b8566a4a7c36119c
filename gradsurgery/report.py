"""python -m gradsurgery.report LOG...: what a conflict log says, as a table and as pictures.

The table has one row per log and ordered pair of tasks. The pictures (``pip install matplotlib``)
show what counts hide: the cosines with their spread, and how much surgery changed the update.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from gradsurgery._log_reader import log_file, read_runs
from gradsurgery._markdown import cell, visible
from gradsurgery._warnings import warn
from gradsurgery.evidence import Evidence, sentence
from gradsurgery.summary import (
    Line,
    Pair,
    PairCounts,
    gradient_totals,
    mean_change,
    pair_names,
    pair_totals,
    ranked,
    unmeasured_total,
)

__all__ = [
    "Line",
    "PairCounts",
    "cell",
    "draw",
    "gradient_totals",
    "main",
    "mean_change",
    "pair_totals",
]
__all__ += ["evidence", "judgement", "read", "table", "totals", "unmeasured_total", "verdict"]

LISTED = 20  # pairs of a log, if they are not all asked for
WINDOWS = 200  # of a run, that the command holds at a time; neighbours are added up

_ASSUMED = (
    "Mean cosines with 95% intervals, for all pairs of a log together. They speak of the expected "
    "gradients if each task draws its own batches; where tasks share a batch, of its noise, too."
)
_COLUMNS = ("method", "pair", "possible", "conflicts", "altered", "cosine", "min", "max", "target")


def read(paths: Iterable[str | Path]) -> list[Line]:
    """Return the lines of conflict logs, in order, each with its file under ``"log"``.

    The lines of several runs in one log stand one run after the other, with the run's name under
    ``"run"``. Windows whose steps were done again, after training was resumed from an older
    checkpoint, are left out. The table and the pictures show runs apart; what adds lines up adds
    all that it is handed.

    Args:
        paths: of logs, or of the folders of runs with a ``conflicts.jsonl``.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for a line that is no conflict log line, or was changed after it was written;
            the message names file, line and cause.

    Warns:
        SurgeryWarning: of lines that a killed process left unfinished, of several runs in a log,
            and of windows left out.

    Example:
        >>> import tempfile
        >>> from gradsurgery import ConflictLog, ConflictStatistics
        >>> log = ConflictLog(Path(tempfile.mkdtemp()) / "c.jsonl")
        >>> _ = log.write(ConflictStatistics(("a", "b"), "Sum()"), step=100)
        >>> read([log.path])[0]["step"]
        100
    """
    lines, notes = _read(paths)
    for note in notes:
        warn(note)
    return lines


def _read(paths: Iterable[str | Path], windows: int | None = None) -> tuple[list[Line], list[str]]:
    lines: list[Line] = []
    notes: list[str] = []
    seen: set[Path] = set()
    for path in map(log_file, paths):
        if path.resolve() in seen:
            notes.append(f"{visible(path)}: named twice, and read once")
            continue
        seen.add(path.resolve())
        log, remarks = read_runs(path, windows)
        lines, notes = lines + log, notes + remarks
    return lines, notes


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


def table(lines: Sequence[Line], pairs: int | None = LISTED) -> str:
    """Return the table of one or several logs, as Markdown: a row per log and ordered pair.

    Args:
        lines: as :func:`read` returns them.
        pairs: of each run at most, both directions counting as one; None for all. Where there are
            more, those with evidence of conflict come first, then those of the lowest cosines.
    """
    logs = _by_log(lines)
    rows: list[Sequence[str]] = [_COLUMNS, ["---"] * len(_COLUMNS)]
    notes = []
    for log, windows in logs:
        method, counts = cell(windows[-1]["method"]), _pairs(windows)
        unmeasured = unmeasured_total(windows) > 0
        listed, left_out = _listed(counts, pairs)
        rows += [[method, *_cells(pair, counts[pair], unmeasured)] for pair in listed]
        notes += [_note(log, windows), *([left_out] if left_out else [])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [" | ".join(map(str.ljust, row, widths)) for row in rows]
    return "\n".join([*(f"| {row} |" for row in padded), "", *notes])


def _listed(counts: Mapping[Pair, PairCounts], limit: int | None) -> tuple[list[Pair], str]:
    """The pairs that are listed, and a sentence on the others, if there are any."""
    pairs = ranked(counts)
    if len(pairs) <= LISTED:
        return list(counts), ""  # in the order of the tasks
    listed = [pair for i, j in pairs[:limit] for pair in ((i, j), (j, i)) if pair in counts]
    if limit is None or len(pairs) <= limit:
        return listed, ""
    return listed, (
        f"Listed are {limit} of {len(pairs)} pairs: first those with evidence of conflict, then "
        "those with the lowest mean cosines (--all-pairs lists all)."
    )


def _cells(pair: tuple[str, str], counts: PairCounts, unmeasured: bool) -> list[str]:
    name = " <- ".join(map(cell, pair))
    if unmeasured and not counts.possible:
        return [name, "not measured", *[""] * 6]
    summary = counts.to_json(*pair)
    return [
        name,
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


def _by_log(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    """Return the lines of every log with its name; where a log has several runs, of every run."""
    logs: dict[tuple[str, str | None], list[Line]] = {}
    for line in lines:
        logs.setdefault((line.get("log", "log"), line.get("run")), []).append(line)
    return [
        (cell(log) if run is None else f"{cell(log)}, run {cell(run)}", windows)
        for (log, run), windows in logs.items()
    ]


def evidence(lines: Iterable[Mapping[str, Any]]) -> dict[str, Evidence]:
    """Return by pair, as ``a/b``, whether its expected gradients conflict.

    Windows and logs add up: give the lines of one run, or of several seeds of it.

    Args:
        lines: as :func:`read` returns them. Older logs hold no evidence, and add nothing.
    """
    rows = (pair for line in lines for pair in line["pairs"])
    pairs = {pair: c.evidence for pair, c in pair_totals(rows).items() if c.evidence.steps}
    return {name: pairs[pair] for pair, name in pair_names(pairs, "/").items()}


def verdict(lines: Iterable[Mapping[str, Any]]) -> str | None:
    """Return in one sentence whether the tasks conflict and what to do; None without evidence.

    Args:
        lines: as for :func:`evidence`.
    """
    pairs = evidence(lines)
    return sentence(pairs) if pairs else None


def judgement(lines: Sequence[Line], pairs: int | None = LISTED) -> str:
    """Return for each log the pairs' intervals, and one verdict; empty without evidence.

    Args:
        lines: as for :func:`evidence`.
        pairs: listed of each log, as in :func:`table`; the verdict is on all of them.
    """
    logs = _by_log(lines)
    parts = [(log, _judged(windows, pairs)) for log, windows in logs]
    texts = [f"{log}:\n\n{text}" if len(logs) > 1 else text for log, text in parts if text]
    return "\n\n".join([_ASSUMED, *texts]) if texts else ""


def _judged(lines: Sequence[Line], limit: int | None) -> str:
    counts = {pair: c for pair, c in _pairs(lines).items() if c.evidence.steps}
    if not counts:
        return ""
    names = pair_names(counts, "/")
    listed, left_out = _listed(counts, limit)
    rows = [
        f"- {cell(names[pair])}: {counts[pair].evidence.describe(len(counts))}" for pair in listed
    ]
    judged = sentence({names[pair]: c.evidence for pair, c in counts.items()})
    return "\n".join([*rows, *([f"\n{left_out}"] if left_out else []), "", f"Verdict: {judged}"])


def draw(lines: Sequence[Line], directory: str | Path) -> list[Path]:
    """Draw one picture per log: cosines, conflicts, alterations and change, over the steps.

    A run of many windows is drawn with neighbours added up, a log of many pairs with those that
    :func:`table` lists first, and a map of all.

    Args:
        lines: as :func:`read` returns them.
        directory: where the PNG files go; made when missing. Logs of one name get the names of
            their folders, too.

    Returns:
        The files written; one more per log when it has several segments, or many pairs.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return _draw(lines, directory)


def _draw(lines: Sequence[Line], directory: Path | None) -> list[Path]:
    """Into the directory, or beside each log."""
    from gradsurgery import _plots

    files: list[Path] = []
    stems: set[Path] = set()
    for _, windows in _by_log(lines):
        log, run = Path(windows[0].get("log", "log")), windows[0].get("run")
        stem = _stem(directory or log.parent, log, run, stems)
        stems.add(stem)
        files += _plots.draw(windows, stem)
    return files


def _stem(directory: Path, log: Path, run: str | None, taken: Collection[Path]) -> Path:
    """A path for a log's pictures, without the ending, that no other has."""
    end = "" if run is None else f"-{re.sub('[^0-9A-Za-z]', '_', run)}"
    folder = log.absolute().parent.name
    names = [f"{log.stem}{end}", f"{folder}-{log.stem}{end}"]
    more = (f"{names[1]}-{n}" for n in count(2))
    return next(path for name in chain(names, more) if (path := directory / name) not in taken)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gradsurgery.report", description=__doc__)
    parser.add_argument("log", nargs="+", help="conflict logs (JSON lines), or folders of runs")
    parser.add_argument("--output", help="folder of the pictures (default: beside each log)")
    parser.add_argument(
        "--all-pairs",
        action="store_true",
        help=f"list all pairs of tasks; without it, the {LISTED} that matter most",
    )
    options = parser.parse_args(arguments)
    pairs = None if options.all_pairs else LISTED
    try:
        directory = None if options.output is None else _folder(options.output)
        lines, notes = _read(options.log, WINDOWS)
    except (OSError, ValueError) as error:
        return _failed(error)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if not lines:
        return _failed(f"no window in {visible(', '.join(options.log))}")
    try:
        _print(table(lines, pairs))
        _print(_pictures(lines, directory))
        judged = judgement(lines, pairs)
        if judged:
            _print(f"\n{judged}")
    except OSError as error:
        return _failed(error)
    return 0


def _folder(path: str) -> Path:
    """Make the folder, before any work is done for it."""
    folder = Path(path).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{visible(folder)}: cannot be written to")
    return folder


def _pictures(lines: Sequence[Line], directory: Path | None) -> str:
    """Draw; return the files."""
    try:
        files = _draw(lines, directory)
    except ModuleNotFoundError as error:
        print(f"no pictures: {error}; pip install matplotlib", file=sys.stderr)
        return ""
    return "\n".join(f"picture: {visible(file)}" for file in files)


def _failed(error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _print(text: str) -> None:
    """Print, with codes for what the terminal cannot encode. Whoever closes a pipe needs no more.

    Raises:
        OSError: where standard output is full.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        if text:
            print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        # What is left in the buffer must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


if __name__ == "__main__":
    sys.exit(main())
