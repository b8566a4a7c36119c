"""The logs of a run: JSON lines for programs, TensorBoard for the eye.

A resumed run continues its files: lines written after the checkpoint are cut first, because those
steps are about to be taken again. The checkpoint remembers where each file ended, so the cut falls
on the byte, and a checksum of the file up to there.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from bert_mtl_demo.errors import CheckpointError
from bert_mtl_demo.store import atomic, writing
from bert_mtl_demo.training.checkpoint import RunDirectory
from gradsurgery import ConflictLog, ConflictStatistics

# Where a log ends, and the CRC-32 of all its bytes. A checkpoint of 0.1.0 has the end alone.
Mark = tuple[int, int]
BLOCK = 1 << 20
WITHOUT = (
    "Restore it from a copy of this run, or delete it: the report then lacks what it held before "
    "the last checkpoint."
)
# kind of a line of metrics.jsonl -> what a report reads in it beside the step.
KINDS = {
    "model": ("trained_parameters",),
    "train": ("epoch", "loss"),
    "dev": ("epoch", "scores", "mean", "leaderboard", "best"),
}


class Log:
    """A trainer's log; this one, of a process that leaves writing to another, writes nothing."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one line of metrics."""

    def write_conflicts(self, conflicts: ConflictStatistics, step: int, epoch: int) -> None:
        """Write the conflicts of a window, and reset it."""
        conflicts.reset()

    def marks(self) -> dict[str, Mark]:
        """Where each JSON log ends, for the checkpoint."""
        return {}

    def close(self) -> None:
        """Flush what is held back."""


class RunLog(Log):
    """The three logs of one run, which are added to.

    Its methods raise `StorageError` when the system refuses to write.

    >>> import tempfile
    >>> log = RunLog(RunDirectory(Path(tempfile.mkdtemp())))
    >>> log.write({"kind": "dev", "step": 1, "scores": {"sst": 0.5}})
    >>> read_lines(log.run.metrics)[0]["scores"]["sst"]
    0.5
    """

    def __init__(self, run: RunDirectory, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        for path in (run.metrics, run.conflicts):
            with writing(path):
                path.touch()  # a run of no step has no line
        self._marks: dict[str, Mark] = {}
        self.conflict_log = ConflictLog(run.conflicts)
        # purge_step hides points that the interrupted process wrote after its last checkpoint.
        with writing(run.tensorboard):
            self.board = SummaryWriter(str(run.tensorboard), purge_step=step + 1)
        self._excepthook, threading.excepthook = threading.excepthook, self._raised_later

    def write(self, row: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and its numbers to TensorBoard."""
        with writing(self.run.metrics), self.run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        with writing(self.run.tensorboard):
            for name, value in flatten(row).items():
                if name not in ("step", "epoch", "seconds", "data_seconds"):
                    self.board.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def write_conflicts(self, conflicts: ConflictStatistics, step: int, epoch: int) -> None:
        """One line of conflicts.jsonl; the window is reset by it."""
        with writing(self.run.tensorboard):
            for name, value in conflicts.scalars().items():
                self.board.add_scalar(name, value, step)
        with writing(self.run.conflicts):
            self.conflict_log.write(conflicts, step=step, epoch=epoch)

    def marks(self) -> dict[str, Mark]:
        """Where each JSON log ends; they are on the disk up to there."""
        for path in (self.run.metrics, self.run.conflicts):
            if path.exists():
                with writing(path):
                    self._marks[path.name] = _mark(path, self._marks.get(path.name, (0, 0)))
        return dict(self._marks)

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        try:
            with writing(self.run.tensorboard):
                self.board.close()
        finally:
            threading.excepthook = self._excepthook

    def _raised_later(self, problem: threading.ExceptHookArgs) -> None:
        """Print what ended a thread, but for TensorBoard's, whose next write raises the same."""
        writer = "tensorboard" in type(problem.thread).__module__
        if not (writer and issubclass(problem.exc_type, OSError)):
            self._excepthook(problem)


def _mark(path: Path, begin: Mark) -> Mark:
    """The mark at a log's end, from an earlier one; flushed, so that no checkpoint is ahead."""
    size, crc = begin
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        file.seek(size)
        while block := file.read(BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


def cut(run: RunDirectory, marks: Mapping[str, Any]) -> None:
    """Cut the JSON logs back to where a checkpoint saw them end, each at once or not at all.

    A log that is shorter than that has lost lines to a crash of the machine; what is left stays,
    up to its last whole line.
    """
    for path in (run.metrics, run.conflicts):
        if path.exists():
            content = path.read_bytes()[: _end(marks, path)[0]]
            with atomic(path) as unfinished:
                unfinished.write_bytes(content[: content.rfind(b"\n") + 1])


def check(run: RunDirectory, marks: Mapping[str, Any], tasks: Collection[str]) -> list[str]:
    """What the JSON logs have lost of what a checkpoint saw, a sentence for each of them.

    Raises:
        CheckpointError: for a log with other bytes than were written, or with lines that a report
            could not read.
    """
    lost = []
    for path in (run.metrics, run.conflicts):
        (size, crc), content = _end(marks, path), b""
        if path.exists():
            content = path.read_bytes()[:size]
            content = content[: content.rfind(b"\n") + 1]
        if len(content) == size and crc is not None and zlib.crc32(content) != crc:
            raise CheckpointError(f"{path}: is damaged: its CRC-32 is another. {WITHOUT}")
        if len(content) < size:
            lost.append(f"{path}: {size - len(content)} of {size} bytes are missing")
        for number, line in enumerate(content.splitlines(), start=1):
            row = _parsed(path, number, line)
            if path == run.metrics:
                _check_row(path, number, row, tasks)
            else:
                check_tasks(path, number, tasks_of(row), tasks)
    return lost


def _end(marks: Mapping[str, Any], path: Path) -> tuple[int, int | None]:
    mark = marks.get(path.name, 0)
    return (mark, None) if isinstance(mark, int) else (mark[0], mark[1])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none when there is no file.

    Raises:
        CheckpointError: for a line that is no JSON object; the message names file and line.
    """
    if not path.exists():
        return []
    lines = enumerate(path.read_bytes().splitlines(), start=1)
    return [_parsed(path, number, line) for number, line in lines if line]


def read_metrics(path: Path, tasks: Collection[str]) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl.

    Raises:
        CheckpointError: as `read_lines`, and for a row of another form or with other tasks.
    """
    rows = read_lines(path)
    for number, row in enumerate(rows, start=1):
        _check_row(path, number, row, tasks)
    return rows


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise CheckpointError(f"{path}:{number}: is no JSON object: {line[:60]!r}. {WITHOUT}")
    return row


def _check_row(path: Path, number: int, row: Mapping[str, Any], tasks: Collection[str]) -> None:
    """Refuse a row that a report cannot read, or that names tasks the run has not."""
    kind = row.get("kind")
    missing = [name for name in ("step", *KINDS.get(str(kind), ())) if name not in row]
    if kind not in KINDS or missing:
        problem = f"has no {', '.join(missing)}" if kind in KINDS else f"is of kind {kind!r}"
        raise CheckpointError(f"{path}:{number}: {problem}. {WITHOUT}")
    named = [task for name in ("loss", "scores") for task in row.get(name, ())]
    check_tasks(path, number, named, tasks)


def tasks_of(window: Mapping[str, Any]) -> list[str]:
    """The tasks that a line of a conflict log names.

    >>> tasks_of({"pairs": [{"i": "sst", "j": "para"}]})
    ['sst', 'para']
    """
    return [str(pair[side]) for pair in window.get("pairs", ()) for side in ("i", "j")]


def check_tasks(path: Path, number: int, named: Iterable[str], tasks: Collection[str]) -> None:
    """Refuse a line that names tasks which the run has not."""
    others = [task for task in named if task not in tasks]
    if others:
        raise CheckpointError(
            f"{path}:{number}: has a task {others[0]!r}, but this run has {', '.join(tasks)}. "
            f"{WITHOUT}"
        )


def flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested mapping under slash names, which TensorBoard groups by.

    >>> flatten({"loss": {"sst": 1.5}, "lr": 0.1, "kind": "train"})
    {'loss/sst': 1.5, 'lr': 0.1}
    """
    numbers: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            numbers |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[prefix + key] = value
    return numbers
