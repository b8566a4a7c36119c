"""ConflictLog: one JSON line per window of steps, for people, plots and other programs."""

from __future__ import annotations

import json
import os
import uuid
import zlib
from operator import index
from pathlib import Path
from typing import BinaryIO, cast

from gradsurgery.statistics import ConflictStatistics
from gradsurgery.summary import Line

SCHEMA = 1
SEAL = ', "crc32": "'  # begins the checksum that ends a line
_TAIL = 1 << 16  # bytes read at once, in search of a file's last line


class ConflictLog:
    """Append windows of conflict statistics to a file, one JSON object a line.

    Every line names its ``run``, and ends in a checksum of itself. A log that is opened again goes
    on with the run that its last line names if the steps go on, too; otherwise it begins a new one:
    training started once more, another process that writes the same file, or steps done twice. The
    report shows runs apart. Steps are counted for each list of tasks on its own, so that several
    wrapped optimizers may share a log.

    Args:
        path: the file; its folder is made, ``~`` is the home folder, and a relative path stays with
            the working directory of now. Lines already there stay; what follows a line that a
            killed process left unfinished begins a line of its own.

    Raises:
        OSError: if the folder cannot be made.

    Example:
        >>> import tempfile
        >>> log = ConflictLog(Path(tempfile.mkdtemp()) / "conflicts.jsonl")
        >>> line = log.write(ConflictStatistics(("a", "b"), "Sum()"), step=100)
        >>> line["step"], line["pairs"][0]["cosine"]["mean"] is None
        (100, True)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._written: dict[tuple[str, ...], tuple[str, int]] = {}  # tasks: run and last step

    def write(
        self, conflicts: ConflictStatistics, *, step: int, epoch: float | None = None
    ) -> Line:
        """Write the window as one line and begin the next.

        Args:
            conflicts: ``optimizer.conflicts``; it is reset, but not where writing fails.
            step: optimizer steps done so far.
            epoch: the epoch they belong to, counted from 1, if the caller counts epochs.

        Returns:
            What was written.

        Raises:
            OSError: if the file cannot be written, a full disk for example.
        """
        step, summary = index(step), conflicts.summary()
        with self.path.open("a+b") as file:
            run = self._run(file, conflicts.tasks, step, step - summary["window"])
            head = {"schema": SCHEMA, "run": run, "step": step, "epoch": epoch}
            line = cast(Line, {**head, **summary})
            file.write((b"" if _ends_a_line(file) else b"\n") + _sealed(line))
        self._written[conflicts.tasks] = run, step
        conflicts.reset()
        return line

    def _run(self, file: BinaryIO, tasks: tuple[str, ...], step: int, begin: int) -> str:
        """Return the id of the run that this step goes on with, or a new one."""
        if tasks in self._written:
            run, last = self._written[tasks]
            if step > last:
                return run
        elif (line := _last_line(file)) and line.get("tasks") == list(tasks):
            former, end = line.get("run"), line.get("step")
            if isinstance(former, str) and isinstance(end, int) and end <= begin:
                return former
        return uuid.uuid4().hex[:8]  # no generator that training draws from


def _sealed(line: Line) -> bytes:
    """Add the checksum; return the line as it is written."""
    text = json.dumps(line, allow_nan=False)[:-1].encode()
    line["crc32"] = f"{zlib.crc32(text):08x}"
    return text + f'{SEAL}{line["crc32"]}"}}\n'.encode()


def is_sealed(text: bytes) -> bool:
    """Return whether a line fits its checksum; True without one."""
    content, seal, checksum = text.rpartition(SEAL.encode())
    return not seal or checksum[:8] == f"{zlib.crc32(content):08x}".encode()


def _ends_a_line(file: BinaryIO) -> bool:
    if not file.seek(0, os.SEEK_END):
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _last_line(file: BinaryIO) -> dict[str, object]:
    """Return the last whole line; empty where there is none, or none that can be read."""
    start = size = file.seek(0, os.SEEK_END)
    tail = b""
    while start and tail.count(b"\n") < 2:
        start = max(0, size - max(_TAIL, 2 * len(tail)))
        file.seek(start)
        tail = file.read()
    lines = tail.split(b"\n")[:-1]
    try:
        line = json.loads(lines[-1]) if lines else {}
    except (ValueError, RecursionError):
        return {}
    return line if isinstance(line, dict) else {}
