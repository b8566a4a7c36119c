"""Loads the public data sets from the Hugging Face hub: no files to prepare, a network needed.

The hub's splits are the original ones (Quora has 363,846 training pairs there against the reports'
141,506), so scores from here stand beside each other, not beside the reports'. The validation split
serves as dev: GLUE does not publish test labels. CFIMDB is not there.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from bert_mtl_demo.data.examples import DataError, Examples, Skipped
from bert_mtl_demo.data.validation import Row, validated
from bert_mtl_demo.tasks import HubData, Task

_INSTEAD = 'Or train on files (a directory) or on the embedded data ("sample") instead.'


# A task's split -> the hub's.
SPLITS = {"train": "train", "dev": "validation"}


def load_hub(
    task: Task, splits: Sequence[str], *, refuse: bool
) -> Iterator[tuple[Examples, list[Skipped]]]:
    """Load splits of a task from the hub; see `bert_mtl_demo.data.load`.

    Raises:
        DataError: when the task is not on the hub, `datasets` is not installed, the hub cannot be
            reached, or a data set has changed its shape.
    """
    source = source_of(task)
    tables = fetch(source)
    for split in (SPLITS[name] for name in splits):
        yield validated(task, source.of(split), rows_of(tables, source, split), refuse=refuse)


def source_of(task: Task) -> HubData:
    """The data set of a task, or DataError if it has none."""
    if task.hub is None:
        assert task.layout is not None
        raise DataError(
            f"Task {task.name!r} has no data set on the hub. Give a directory that holds "
            f"{task.layout.of('train')} and {task.layout.of('dev')}, use the "
            'embedded data ("sample"), or leave the task out.'
        )
    return task.hub


def fetch(source: HubData) -> Any:
    """All splits of a data set.

    Raises:
        DataError: when `datasets` is not installed, or the hub cannot be reached.
    """
    try:
        # By name, because the package is optional and heavy: nothing else in the demo needs it.
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f'The source "hub" needs the package datasets: pip install datasets. {_INSTEAD}'
        ) from error
    try:
        return datasets.load_dataset(*source.path)
    except Exception as error:
        # All of them: the hub's clients raise errors of four families, and not all are OSErrors.
        raise DataError(
            f"Could not load {source.name} from the hub "
            f"({type(error).__name__}: {error}). "
            f"Check the network and HF_HUB_OFFLINE. {_INSTEAD}"
        ) from error


def rows_of(tables: Any, source: HubData, split: str) -> Iterator[Row]:
    """Yield (row from 1, (texts, label)) of a split, as they are; 0 if it has no labels.

    Raises:
        DataError: when the split or a column is not there.
    """
    name = source.of(split)
    if split not in tables:
        raise DataError(
            f"{name}: no such split, only {list(tables)}; the data set has changed. {_INSTEAD}"
        )
    table = tables[split]
    columns = (*source.texts, *([source.label] if source.label else []))
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(
            f"{name}: no column {missing[0]!r} in {table.column_names}; "
            f"the data set has changed. {_INSTEAD}"
        )
    width = len(source.texts)
    rows = zip(*(list(table[column]) for column in columns), strict=True)
    for number, row in enumerate(rows, start=1):
        yield number, (row[:width], row[width] if source.label else 0)
