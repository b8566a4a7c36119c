"""A user's own tasks, from settings: `NAME=KIND:FILE` on the command line, a table in a file.

    --task mood=classification:mood-{split}.tsv

    [task.mood]
    kind = "classification"
    file = "mood-{split}.tsv"
    labels = ["calm", "angry"]

Columns of other names follow the file: `mood-{split}.tsv:text,label`, or are a list `columns`.
`{split}` stands for `train` and `dev`. Labels, and `low` and `high` of numbers, may be left out:
they are then read from the tables, and saved with the run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bert_mtl_demo.errors import unknown
from bert_mtl_demo.layouts import DELIMITERS, columns_for, file_and_columns
from bert_mtl_demo.setting_types import is_writable
from bert_mtl_demo.tasks import KINDS, TASKS, TOP, Layout, Task, class_name

# The columns of scores that every log and report has, and words that settings and modules use.
RESERVED = ("mean", "leaderboard", "none", "embeddings")
KEYS = ("kind", "file", "columns", "labels", "low", "high")
EXAMPLE = "as in mood=classification:mood-{split}.csv"


def user_tasks(value: Any) -> tuple[Task, ...]:
    """The tasks that a setting defines, whichever way it is written.

    >>> [task.layout.of("dev") for task in user_tasks("mood=classification:mood-{split}.csv")]
    ['mood-dev.csv']
    >>> user_tasks({"mood": {"kind": "similarity", "file": "mood.csv"}})
    Traceback (most recent call last):
    ValueError: file mood.csv needs {split}, for train and dev, as in mood-{split}.csv
    """
    if value is None or value == "none":
        return ()
    tasks = tuple(_parsed(entry) for entry in _entries(value))
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"defines {name} twice; give each task its own name")
    return tasks


def written(tasks: Iterable[Task]) -> dict[str, dict[str, Any]]:
    """Tasks as a settings file has them: name -> kind, file, and what is known of the labels.

    >>> text = "mood=similarity:mood-{split}.csv"
    >>> written(user_tasks(text))
    {'mood': {'kind': 'similarity', 'file': 'mood-{split}.csv'}}
    >>> user_tasks(written(user_tasks(text))) == user_tasks(text)
    True
    """
    return {task.name: _written(task) for task in tasks}


def _written(task: Task) -> dict[str, Any]:
    values: dict[str, Any] = {"kind": task.kind, "file": file_of(task)}
    assert task.layout is not None
    if task.layout.columns != (*KINDS[task.kind].columns, "label"):
        values["columns"] = list(task.layout.columns)
    if task.label_names:
        values["labels"] = list(task.label_names)
    if task.classes is None and math.isfinite(task.low):
        values |= {"low": task.low, "high": task.high}
    return values


def file_of(task: Task) -> str:
    """The table of a user's task, with {split}."""
    assert task.layout is not None
    return task.layout.file


def _entries(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.items())
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _parsed(entry: Any) -> Task:
    if isinstance(entry, Task):
        return entry
    if isinstance(entry, str):
        name, equals, rest = entry.partition("=")
        kind, colon, file = rest.partition(":")
        if not (equals and colon and file):
            raise ValueError(f"{entry!r} must be NAME=KIND:FILE, {EXAMPLE}")
        file, columns = file_and_columns(file)
        return _task(
            name, {"kind": kind, "file": file, **({"columns": columns} if columns else {})}
        )
    name, values = entry if isinstance(entry, Sequence) and len(entry) == 2 else (entry, None)
    if not isinstance(values, Mapping):
        raise ValueError(f"{name!r} must be NAME=KIND:FILE or a table with {', '.join(KEYS)}")
    for key in values:
        if key not in KEYS:
            raise ValueError(f"{name}: {unknown('key', str(key), KEYS)}")
    return _task(str(name), values)


def _task(name: str, values: Mapping[str, Any]) -> Task:
    _check_name(name)
    kind_name, file = str(values.get("kind", "")), str(values.get("file", ""))
    if kind_name not in KINDS:
        raise ValueError(f"{name}: {unknown('kind', kind_name, KINDS)}")
    if not is_writable(file):
        raise ValueError(f"{name}: file must be a text in UTF-8 without NUL characters")
    if "{split}" not in file and "columns" not in values:
        stem, dot, ending = file.rpartition(".")
        example = f"{stem}-{{split}}.{ending}" if dot else "mood-{split}.csv"
        raise ValueError(f"file {file} needs {{split}}, for train and dev, as in {example}")
    kind = KINDS[kind_name]
    labels = _labels(name, values.get("labels", ())) if kind.classes else ()
    low, high = 0.0, len(labels) - 1.0
    if not kind.classes:
        low, high = range_of(name, values) or (-math.inf, math.inf)
    columns = (*kind.columns, "label")
    if "columns" in values:
        columns = columns_for(name, values["columns"], len(kind.columns))
    return Task(
        name=name,
        title=name,
        pair=kind.pair,
        classes=len(labels) if kind.classes else None,
        low=low,
        high=high,
        metric="accuracy" if kind.classes else "pearson",
        label_names=labels,
        layout=Layout(file, columns[:-1], columns[-1], DELIMITERS),
        custom=True,
    )


def _check_name(name: str) -> None:
    # It becomes a part of parameter, metric and file names.
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ValueError(
            f"name {name!r} must be letters, digits, - and _, with a letter first, {EXAMPLE}"
        )
    if name in TASKS:
        raise ValueError(f"{name} is a built-in task; choose another name")
    if name in RESERVED:
        raise ValueError(f"{name} cannot name a task, as it has another meaning; choose another")


def _labels(name: str, values: Any) -> tuple[str, ...]:
    labels = (
        tuple(class_name(str(label)) for label in values) if isinstance(values, Sequence) else ()
    )
    if values and (isinstance(values, str) or len(labels) < 2 or len(set(labels)) < len(labels)):
        raise ValueError(f"{name}: labels must be a list of two or more different names")
    return labels


def range_of(name: str, values: Mapping[str, Any]) -> tuple[float, float] | None:
    """The range of scores in the settings of a task; None if they leave it out.

    >>> range_of("mood", {"low": 0, "high": 1})
    (0.0, 1.0)
    """
    ends = [values.get("low"), values.get("high")]
    if ends == [None, None]:
        return None
    try:
        low, high = (float(end) for end in ends)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        low = high = math.nan
    if not usable_range(low, high):
        raise ValueError(f"{name}: low and high must be two numbers, the lower one first")
    return low, high


def usable_range(low: float, high: float) -> bool:
    """Whether labels of this range can be brought to another scale.

    >>> usable_range(0, 1), usable_range(1, 1), usable_range(-1e308, 1e308)
    (True, False, False)
    """
    return low < high and math.isfinite(high - low) and (high - low) / TOP > 0
