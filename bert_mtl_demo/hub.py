"""Loads the public data sets from the Hugging Face hub: no files to prepare, a network needed.

The hub's splits are the original ones (Quora has 363,846 training pairs there against the reports'
141,506), so scores from here stand beside each other, not beside the reports'. The validation split
serves as dev: GLUE does not publish test labels.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .examples import DataError, Examples, Gate, Skipped, Splits
from .tasks import Task


@dataclass(frozen=True)
class HubData:
    """A data set on the hub and the names of its columns."""

    path: tuple[str, ...]  # the positional arguments of load_dataset: repository, configuration
    texts: tuple[str, ...]
    label: str = "label"


DATASETS: dict[str, HubData] = {
    "sst": HubData(("SetFit/sst5",), ("text",)),
    "para": HubData(("nyu-mll/glue", "qqp"), ("question1", "question2")),
    "sts": HubData(("nyu-mll/glue", "stsb"), ("sentence1", "sentence2")),
}

_INSTEAD = 'Or train on files (a directory) or on the embedded data ("sample") instead.'


def load_hub(tasks: Sequence[Task], *, refuse: bool) -> tuple[dict[str, Splits], list[Skipped]]:
    """Load train and validation of `tasks` from the hub; see `bert_mtl_demo.data.load`.

    Raises:
        DataError: when `datasets` is not installed, the hub cannot be reached, or a data set has
            changed its shape.
    """
    try:
        # By name, because the package is optional and heavy: nothing else in the demo needs it.
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f'The source "hub" needs the package datasets: pip install datasets. {_INSTEAD}'
        ) from error
    splits: dict[str, Splits] = {}
    skipped: list[Skipped] = []
    for task in tasks:
        source = DATASETS[task.name]
        tables = _fetch(datasets, source)
        train, bad_train = _read(tables, source, "train", task, refuse)
        dev, bad_dev = _read(tables, source, "validation", task, refuse)
        splits[task.name] = Splits(train, dev)
        skipped += bad_train + bad_dev
    return splits, skipped


def _fetch(datasets: Any, source: HubData) -> Any:
    try:
        return datasets.load_dataset(*source.path)
    except Exception as error:
        # All of them: the hub's clients raise errors of four families, and not all are OSErrors.
        raise DataError(
            f"Could not load {'/'.join(source.path)} from the hub "
            f"({type(error).__name__}: {error}). "
            f"Check the network and HF_HUB_OFFLINE. {_INSTEAD}"
        ) from error


def _read(
    tables: Any, source: HubData, split: str, task: Task, refuse: bool
) -> tuple[Examples, list[Skipped]]:
    name = f"{'/'.join(source.path)}[{split}]"
    if split not in tables:
        raise DataError(
            f"{name}: no such split, only {list(tables)}; the data set has changed. {_INSTEAD}"
        )
    table, columns = tables[split], (*source.texts, source.label)
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(
            f"{name}: no column {missing[0]!r} in {table.column_names}; "
            f"the data set has changed. {_INSTEAD}"
        )
    gate = Gate(task, name, refuse)
    rows = zip(*(list(table[column]) for column in columns), strict=True)
    for number, (*texts, label) in enumerate(rows, start=1):
        gate.offer(number, tuple(texts), label)
    return gate.close(), gate.skipped
