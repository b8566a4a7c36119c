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
from typing import Any

from gradsurgery.log import SCHEMA

Line = dict[str, Any]

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
    found = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            raise ValueError(f"{path}:{number}: not JSON: {text[:60]!r}") from None
        if not isinstance(line, dict) or line.get("schema") != SCHEMA:
            raise ValueError(f"{path}:{number}: not a conflict log line of schema {SCHEMA}")
        found.append({**line, "log": str(path)})
    if unfinished:
        print(f"{path}: passed over an unfinished last line", file=sys.stderr)
    return found


def totals(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Sum the windows of one log up, per ordered pair.

    Returns:
        Per pair: ``i``, ``j``, ``possible``, ``conflicts``, ``altered``, ``mean``, ``min`` and
        ``max`` of the cosine (None without any), and the last ``target``.
    """
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in (pair for line in lines for pair in line["pairs"]):
        empty = {
            "i": pair["i"],
            "j": pair["j"],
            "possible": 0,
            "conflicts": 0,
            "altered": 0,
            "sum": 0.0,
            "min": None,
            "max": None,
            "target": None,
        }
        _add(pairs.setdefault((pair["i"], pair["j"]), empty), pair)
    for total in pairs.values():
        possible, cosines = total["possible"], total.pop("sum")
        total["mean"] = cosines / possible if possible else None
    return list(pairs.values())


def _add(total: dict[str, Any], pair: Mapping[str, Any]) -> None:
    for name in ("possible", "conflicts", "altered"):
        total[name] += pair[name]
    cosine = pair["cosine"]
    if pair["possible"]:
        total["sum"] += pair["possible"] * cosine["mean"]
        total["min"] = min(x for x in (total["min"], cosine["min"]) if x is not None)
        total["max"] = max(x for x in (total["max"], cosine["max"]) if x is not None)
    if pair["target"] is not None:
        total["target"] = pair["target"]


def table(lines: Sequence[Line]) -> str:
    """Return the table of one or several logs, as Markdown: a row per log and pair of tasks."""
    rows: list[Sequence[str]] = [_COLUMNS, ["---"] * len(_COLUMNS)]
    notes = []
    for log, own in _by_log(lines).items():
        rows += [_row(own[-1]["method"], total) for total in totals(own)]
        notes.append(_note(log, own))
    widths = [max(len(row[c]) for row in rows) for c in range(len(_COLUMNS))]
    text = "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )
    return text + "\n\n" + "\n".join(notes)


def _row(method: str, total: Mapping[str, Any]) -> list[str]:
    possible = total["possible"]

    def share(count: int) -> str:
        return f"{count} ({100 * count / possible:.1f}%)" if possible else str(count)

    return [
        method,
        f"{total['i']} <- {total['j']}",
        str(possible),
        share(total["conflicts"]),
        share(total["altered"]),
        *(_number(total[name]) for name in ("mean", "min", "max", "target")),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def _note(log: str, lines: Sequence[Line]) -> str:
    steps = sum(line["window"] for line in lines)
    possible = sum(line["gradients"]["possible"] for line in lines)
    altered = sum(line["gradients"]["altered"] for line in lines)
    nonfinite = sum(line["nonfinite"] for line in lines)
    weighted = [(line["change"]["mean"], line["window"]) for line in lines]
    known = [(change, window) for change, window in weighted if change is not None]
    total = sum(window for _, window in known)
    change = f"{sum(c * w for c, w in known) / total:.4f}" if total else "unknown"
    return (
        f"{log}: {steps} steps, {altered} of {possible} gradients altered, mean change of the "
        f"update {change}, {nonfinite} non-finite steps"
    )


def _by_log(lines: Sequence[Line]) -> dict[str, list[Line]]:
    logs: dict[str, list[Line]] = {}
    for line in lines:
        logs.setdefault(line.get("log", "log"), []).append(line)
    return logs


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
    found = []
    for log, own in _by_log(lines).items():
        found += _plots.draw(own, directory, Path(log).stem)
    return found


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
    try:
        files = draw(lines, options.output or Path(options.log[0]).parent)
    except ModuleNotFoundError as error:
        print(f"no pictures: {error}; pip install matplotlib", file=sys.stderr)
        return 0
    print("\n".join(f"picture: {file}" for file in files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
