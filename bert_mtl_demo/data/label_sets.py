"""The labels of a user's task, read from its tables: the names of its classes, or their range."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bert_mtl_demo.data.directory import layout_of, table_rows
from bert_mtl_demo.data.examples import DataError
from bert_mtl_demo.data.validation import label_of
from bert_mtl_demo.tasks import Task, class_name
from bert_mtl_demo.user_tasks import usable_range


def with_labels(task: Task) -> Task:
    """A user's task with its labels known, from its tables where the settings leave them out.

    Classes are those of train, in the order of their numbers or of the alphabet. The range of
    numbers is that of train and dev.

    Raises:
        DataError: when a table is missing or has no such column, or when all labels are equal.
    """
    if task.classes == 0:
        return _with_classes(task)
    return _with_range(task) if math.isinf(task.low) else task


def _with_classes(task: Task) -> Task:
    names = {class_name(label) for label in _labels(task, "train")} - {""}
    if len(names) == 1:
        raise DataError(
            f"{layout_of(task).of('train')}: every label is {names.pop()!r}. Task {task.name!r} "
            "needs at least two classes in train."
        )
    numbers = all(re.fullmatch(r"-?\d{1,300}", name, re.ASCII) for name in names)
    labels = tuple(sorted(names, key=int if numbers else None))
    return replace(task, classes=len(labels), high=len(labels) - 1.0, label_names=labels)


def _with_range(task: Task) -> Task:
    values = set()
    for split in ("train", "dev"):
        for label in _labels(task, split):
            try:
                values.add(label_of(task, label))
            except DataError:
                continue  # a bad row, which is reported when the examples are read
    values -= {math.inf, -math.inf}
    if len(values) == 1:
        raise DataError(
            f"{layout_of(task).file}: every label is {values.pop():g}. Task {task.name!r} needs at "
            "least two different ones."
        )
    if values and not usable_range(min(values), max(values)):
        raise DataError(
            f"{layout_of(task).file}: labels from {min(values):g} to {max(values):g} are on no "
            f"scale that numbers hold. Task {task.name!r} needs others, or low and high in a "
            "settings file, and rows outside are left out."
        )
    return replace(task, low=min(values), high=max(values)) if values else task


def _labels(task: Task, split: str) -> Iterator[str]:
    layout = layout_of(task)
    for _, row in table_rows(Path(layout.of(split)), layout):
        if not isinstance(row, str):
            yield str(row[1])
