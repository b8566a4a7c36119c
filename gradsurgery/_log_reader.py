"""Reading conflict logs: line by line, checked, and by the run that wrote each line.

A log is appended to, so it holds what happened to its writers. A line that a kill or a full disk
cut is passed over, also where the next line was written on behind it; anything else that is no line
of a log is an error. Neither is silent.

**Runs.** Windows of two runs, or of several processes that wrote the same file, must not add up to
one. Lines belong to one run if they name the same one and their steps go on. A run that begins
where an earlier one ended goes on with it: training was resumed. If it begins in the middle, then
training was resumed from an older checkpoint, and the earlier run's steps from there on were done
twice: its windows are superseded. Logs of earlier versions name no runs, and are told apart by the
steps alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from gradsurgery._log_schema import LineError, check
from gradsurgery._markdown import visible
from gradsurgery._thinning import Thinned
from gradsurgery.log import SCHEMA, is_sealed
from gradsurgery.summary import Line

NAME = "conflicts.jsonl"  # of the log in a run's folder

_BEGIN = '{"schema":'  # of every line as it is written
_BYTE_ORDERS = (b"\xff\xfe", b"\xfe\xff")
#: What is left behind the place at which JSON breaks off: a part of a number, word or escape.
_UNFINISHED = re.compile(r"[-+.\w]{0,24}")


def log_file(path: str | Path) -> Path:
    """Return the log itself; the one inside, for the folder of a run."""
    path = Path(path).expanduser()
    return path / NAME if path.is_dir() else path


@dataclass
class Run:
    """A run of one log.

    Attributes:
        id: as its first line names it; None in a log without run ids.
        tasks: in order.
        windows: the last step and the index of each line that counts.
        unit: what ``step`` grows by at each step of a window; 1 but where the caller counts
            something else than optimizer steps.
    """

    id: str | None
    tasks: list[str]
    windows: list[tuple[int, int]] = field(default_factory=list)
    unit: float | None = None

    @property
    def last(self) -> int:
        """The step at which the run ends so far."""
        return self.windows[-1][0]

    def begin(self, line: Line) -> int:
        """Return the step before the line's first, in this run's count."""
        return line["step"] - round(line["window"] * (self.unit or 1))

    def measure(self, line: Line) -> None:
        """Learn the unit from the next line of the same writer; a line lost makes none of 1."""
        if self.unit != 1 and line["window"]:
            self.unit = (line["step"] - self.last) / line["window"]


class Runs:
    """The runs of one log, told apart as its lines come in.

    Attributes:
        all: the runs, in the order of their first lines.
        superseded: the indices of the lines whose steps were done again.
    """

    def __init__(self) -> None:
        self.all: list[Run] = []
        self.superseded: set[int] = set()
        self._latest: list[Run] = []  # the same, the one that was added to last at the end
        self._named: dict[tuple[str | None, tuple[str, ...]], Run] = {}

    def add(self, line: Line, index: int) -> Run:
        """Return the line's run, a new one where it goes on with none."""
        name = line.get("run"), tuple(line["tasks"])
        run = self._named.get(name)
        if run is not None and line["step"] > run.last:
            run.measure(line)
        else:
            run = self._resumed(line)
            if run is None:
                run = Run(name[0], line["tasks"])
                self.all.append(run)
                self._latest.append(run)
            self._named[name] = run
        if self._latest[-1] is not run:
            self._latest.remove(run)
            self._latest.append(run)
        run.windows.append((line["step"], index))
        return run

    def _resumed(self, line: Line) -> Run | None:
        """Return the run that the first line of another goes on with."""
        runs = [run for run in reversed(self._latest) if run.tasks == line["tasks"]]
        unnamed = line.get("run") is None
        for run in runs:
            if run.last <= run.begin(line) or (
                unnamed and run.id is None and run.last < line["step"]
            ):
                return run
        for run in runs:
            begin = run.begin(line)
            if run.windows[0][0] <= begin:
                while run.last > begin:
                    self.superseded.add(run.windows.pop()[1])
                return run
        return None

    def names(self) -> list[str | None]:
        """Return a name for every run; None for the only one of a log."""
        if len(self.all) < 2:
            return [None] * len(self.all)
        ids = [run.id for run in self.all]
        unique = None not in ids and len(set(ids)) == len(ids)
        return list(ids) if unique else [str(n) for n in range(1, len(ids) + 1)]

    def notes(self, path: Path) -> Iterator[str]:
        """Say that there are several."""
        if len(self.all) > 1:
            runs = zip(self.names(), self.all, strict=True)
            listed = [f"{visible(name)} (to step {run.last})" for name, run in runs]
            rest = f" and {len(listed) - 9} more" if len(listed) > 9 else ""
            yield (
                f"{visible(path)}: holds {len(listed)} runs, which are kept apart: "
                f"{', '.join(listed[:9])}{rest}. Give each run, and each process, a log of its own."
            )


def read_runs(path: Path, windows: int | None = None) -> tuple[list[Line], list[str]]:
    """Return the lines that count, each with its file and run, and notes on the others.

    Args:
        path: of the log.
        windows: at most about that many of each run, neighbours added up; None for all. The log is
            then read without holding it in memory.
    """
    skipped: set[int] = set()
    while True:
        runs, notes = Runs(), list[str]()
        lines: dict[int, Thinned] = {}
        for index, line in enumerate(checked_lines(path, notes)):
            if index not in skipped:
                run = runs.add(line, index)
                lines.setdefault(id(run), Thinned(windows)).add(line)
        if not runs.superseded:
            break
        skipped |= runs.superseded
    named = [
        {**line, "log": str(path), "run": name}
        for run, name in zip(runs.all, runs.names(), strict=True)
        for line in lines[id(run)].lines()
    ]
    if skipped:
        notes.append(
            f"{visible(path)}: left out {len(skipped)} windows, whose steps were done again by "
            "training that was resumed from an older checkpoint"
        )
    return cast(list[Line], named), notes + list(runs.notes(path))


def checked_lines(path: Path, notes: list[str]) -> Iterator[Line]:
    """Yield the lines of a log; a note is added for what was passed over.

    Raises:
        ValueError: for what is no line of a log; the message names file, line and cause.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                if raw.startswith(_BYTE_ORDERS):
                    raise ValueError(f"{visible(path)}: is UTF-16, not UTF-8: convert it")
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            where = f"{visible(path)}:{number}"
            for piece in _pieces(raw.strip(b"\0 \t\r\n"), where):
                line = _line(piece, where)
                if line is None:
                    notes.append(f"{where}: passed over a line that was cut off: {_short(piece)}")
                else:
                    yield line


def _pieces(raw: bytes, where: str) -> Iterable[str]:
    """What was written as one line each: nothing, a line, or a part of one and the next."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: not UTF-8 at byte {error.start}: {_short(str(raw[:60]))}"
        ) from None
    if _BEGIN not in text[1:]:
        return [text] if text else []
    first, *rest = text.split(_BEGIN)
    return [piece.strip("\0") for piece in (first, *(_BEGIN + piece for piece in rest)) if piece]


def _line(text: str, where: str) -> Line | None:
    """Return a line, or None where it was cut off."""
    try:
        line: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and _is_cut(text, error):
            return None
        raise ValueError(f"{where}: not JSON: {_short(text)}") from None
    if not isinstance(line, dict) or line.get("schema") != SCHEMA:
        raise ValueError(f"{where}: not a conflict log line of schema {SCHEMA}: {_short(text)}")
    if not is_sealed(text.encode()):
        raise ValueError(
            f"{where}: does not fit its checksum, so it was changed after it was written; lines "
            'that were changed on purpose have no "crc32"'
        )
    try:
        check(line)
    except LineError as error:
        raise ValueError(f"{where}: not a conflict log line: {error}") from None
    line.pop("crc32", None)
    line.setdefault("run", None)
    return cast(Line, line)


def _is_cut(text: str, error: json.JSONDecodeError) -> bool:
    """Return whether JSON that begins as a line does breaks off at its end."""
    broken = error.msg.startswith("Unterminated string") or _UNFINISHED.fullmatch(text[error.pos :])
    return text.startswith("{") and bool(broken)


def _short(text: str) -> str:
    return ascii(text[:60])
