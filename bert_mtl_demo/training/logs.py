"""The logs of a run: JSON lines for programs, TensorBoard for the eye.

A resumed run continues its files: lines written after the checkpoint are cut first, because those
steps are about to be taken again. The checkpoint remembers where each file ended, so the cut falls
on the byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_mtl_demo.training.checkpoint import RunDirectory
from gradsurgery import ConflictLog, ConflictStatistics


class Log:
    """A trainer's log; this one, of a process that leaves writing to another, writes nothing."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one line of metrics."""

    def write_conflicts(self, conflicts: ConflictStatistics, step: int, epoch: int) -> None:
        """Write the conflicts of a window, and reset it."""
        conflicts.reset()

    def sizes(self) -> dict[str, int]:
        """Bytes of each JSON log, for the checkpoint."""
        return {}

    def close(self) -> None:
        """Flush what is held back."""


class RunLog(Log):
    """The three logs of one run; with `sizes`, those of a run that continues.

    >>> import tempfile
    >>> log = RunLog(RunDirectory(Path(tempfile.mkdtemp())))
    >>> log.write({"kind": "dev", "step": 1, "scores": {"sst": 0.5}})
    >>> read_lines(log.run.metrics)[0]["scores"]["sst"]
    0.5
    """

    def __init__(
        self, run: RunDirectory, step: int = 0, sizes: Mapping[str, int] | None = None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        if sizes is not None:
            cut(run, sizes)
        for path in (run.metrics, run.conflicts):
            path.touch()  # a run of no step has no line
        self.conflict_log = ConflictLog(run.conflicts)
        # purge_step hides points that the interrupted process wrote after its last checkpoint.
        self.board = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1)

    def write(self, row: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and its numbers to TensorBoard."""
        with self.run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in flatten(row).items():
            if name not in ("step", "epoch", "seconds", "data_seconds"):
                self.board.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def write_conflicts(self, conflicts: ConflictStatistics, step: int, epoch: int) -> None:
        """One line of conflicts.jsonl; the window is reset by it."""
        for name, value in conflicts.scalars().items():
            self.board.add_scalar(name, value, step)
        self.conflict_log.write(conflicts, step=step, epoch=epoch)

    def sizes(self) -> dict[str, int]:
        """Bytes of each JSON log, for the checkpoint."""
        paths = (self.run.metrics, self.run.conflicts)
        return {path.name: path.stat().st_size if path.exists() else 0 for path in paths}

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        self.board.close()


def cut(run: RunDirectory, sizes: Mapping[str, int]) -> None:
    """Cut the JSON logs back to the sizes a checkpoint remembers.

    A log that is shorter than that has lost lines to a crash of the machine; what is left stays,
    up to its last whole line.
    """
    for path in (run.metrics, run.conflicts):
        if path.exists():
            content = path.read_bytes()[: sizes.get(path.name, 0)]
            path.write_bytes(content[: content.rfind(b"\n") + 1])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none when there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


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
