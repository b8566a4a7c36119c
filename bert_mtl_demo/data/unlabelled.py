"""A split without labels: texts with their ids, of which no row may be left out.

Answers go by ids, so a row that cannot be read is refused instead of skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bert_mtl_demo.data.directory import fields_of, layout_of, names_in
from bert_mtl_demo.data.examples import DataError
from bert_mtl_demo.tasks import Task

IDS = ("id", "index", "ID", "Id", "pair_ID", "test_id")  # columns of ids, the first of them counts


@dataclass(frozen=True)
class Unlabelled:
    """Texts of one task without labels; ``ids[n]``, ``first[n]`` and ``second[n]`` belong together.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> len(Unlabelled(TASKS["sst"], ["a1"], ["A quiet joy."], None))
    1
    """

    task: Task
    ids: list[str]
    first: list[str]
    second: list[str] | None

    def __len__(self) -> int:
        return len(self.ids)


def is_labelled(path: Path, task: Task) -> bool:
    """Whether a table has the column of the task's labels.

    Raises:
        DataError: when the file is missing or empty.
    """
    layout = layout_of(task)
    return layout.label in names_in(path, layout.delimiters)


def read_unlabelled(path: Path, task: Task) -> Unlabelled:
    """The texts of a table and their ids: those in its column `id`, or else numbers from 1.

    Raises:
        DataError: when the file is missing, empty or lacks a column, or for a row without text.
    """
    layout = layout_of(task)
    names = names_in(path, layout.delimiters)
    known = [name for name in IDS if name in names and name not in layout.texts][:1]
    columns = (*known, *layout.texts)
    ids, rows = [], []
    for number, row in fields_of(path, columns, layout.delimiters):
        if isinstance(row, str):
            raise DataError(f"{path.name}:{number}: {row}. Correct the row: each needs an answer.")
        texts = row[len(known) :]
        if not all(text.strip() for text in texts):
            raise DataError(f"{path.name}:{number}: a sentence is empty; each row needs an answer.")
        rows.append(texts)
        ids.append(row[0].strip() if known else str(len(rows)))
    if not rows:
        raise DataError(f"{path.name} has no row after the header.")
    return Unlabelled(task, ids, *_columns(rows, pair=task.pair))


def _columns(rows: Sequence[tuple[str, ...]], *, pair: bool) -> tuple[list[str], list[str] | None]:
    return [row[0] for row in rows], [row[1] for row in rows] if pair else None
