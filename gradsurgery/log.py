"""ConflictLog: one JSON line per window of steps, for people, plots and other programs."""

from __future__ import annotations

import json
from pathlib import Path

from gradsurgery.statistics import ConflictStatistics
from gradsurgery.summary import Line

SCHEMA = 1


class ConflictLog:
    """Append windows of conflict statistics to a file, one JSON object a line.

    Args:
        path: the file; its folder is made. Lines already there stay.

    Example:
        >>> import tempfile
        >>> log = ConflictLog(Path(tempfile.mkdtemp()) / "conflicts.jsonl")
        >>> line = log.write(ConflictStatistics(("a", "b"), "Sum()"), step=100)
        >>> line["step"], line["pairs"][0]["cosine"]["mean"] is None
        (100, True)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, conflicts: ConflictStatistics, *, step: int, epoch: int | None = None) -> Line:
        """Write the window as one line and begin the next.

        Args:
            conflicts: ``optimizer.conflicts``; it is reset.
            step: optimizer steps done so far.
            epoch: the epoch they belong to, counted from 1, if the caller counts epochs.

        Returns:
            What was written.
        """
        line: Line = {"schema": SCHEMA, "step": step, "epoch": epoch, **conflicts.summary()}
        text = json.dumps(line, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        conflicts.reset()
        return line
