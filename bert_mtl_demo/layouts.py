"""Files and columns of tables that have names of their own: `NAME=FILE:COLUMNS`.

    --map 'para=QQP/{split}.tsv:question1,question2,is_duplicate'

    [map.sts]
    file = "STS-B/{split}.tsv"
    columns = ["sentence1", "sentence2", "score"]
    low = 0
    high = 1

Columns are those of the sentences, then that of the label: names in the header or in the objects of
JSON lines, or numbers from 1 for a table without a header. A file without `{split}` is one table
for both: every tenth row is dev.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bert_mtl_demo.errors import unknown
from bert_mtl_demo.setting_types import is_writable
from bert_mtl_demo.tasks import TASKS, Layout, Task, class_name

KEYS = ("file", "columns", "labels", "low", "high")
EXAMPLE = "as in para=QQP/{split}.tsv:question1,question2,is_duplicate"
DELIMITERS = "\t,"  # of tables that a user names


@dataclass(frozen=True)
class TableOf:
    """The table of a built-in task: its file, columns, and what its labels are written as.

    >>> TableOf("sst", "sst-{split}.txt", ("2", "1")).of(TASKS["sst"]).layout.of("dev")
    'sst-dev.txt'
    """

    name: str
    file: str
    columns: tuple[str, ...]
    labels: tuple[str, ...] = ()  # the words in the order of the task's classes; none: numbers
    range: tuple[float, float] | None = None  # of scores; None: the task's

    def of(self, task: Task) -> Task:
        """The task with this table in place of its own."""
        *texts, label = self.columns
        layout = Layout(self.file, tuple(texts), label, DELIMITERS, self.labels)
        low, high = self.range or (task.low, task.high)
        return replace(task, layout=layout, hub=None, low=low, high=high)

    def below(self, directory: Path) -> TableOf:
        """The same with an absolute path; a relative one is below the directory."""
        return replace(self, file=str((directory / Path(self.file).expanduser()).absolute()))

    def written(self) -> dict[str, Any]:
        """Plain values, as a settings file has them."""
        values: dict[str, Any] = {"file": self.file, "columns": list(self.columns)}
        if self.labels:
            values["labels"] = list(self.labels)
        if self.range:
            values |= {"low": self.range[0], "high": self.range[1]}
        return values


def tables(value: Any) -> tuple[TableOf, ...]:
    """The tables that a setting names, whichever way it is written.

    >>> tables("sst=sst-{split}.txt:2,1")[0].columns
    ('2', '1')
    """
    if value is None or value == "none":
        return ()
    if isinstance(value, Mapping):
        entries: list[Any] = list(value.items())
    else:
        entries = (
            list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        )
    parsed = tuple(_parsed(entry) for entry in entries)
    names = [table.name for table in parsed]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"names the table of {name} twice; name it once")
    return parsed


def file_and_columns(text: str) -> tuple[str, tuple[str, ...]]:
    """The file and the columns in `FILE:COLUMNS`; the colon of a drive is no end of a file.

    >>> file_and_columns("C:/{split}.tsv:text,label"), file_and_columns("{split}.tsv")
    (('C:/{split}.tsv', ('text', 'label')), ('{split}.tsv', ()))
    """
    head, split, tail = text.rpartition("{split}")
    if split:
        rest, colon, columns = tail.partition(":")
        file = head + split + rest
    else:
        file, colon, columns = text.rpartition(":")
        if not colon or "/" in columns or "\\" in columns:
            return text, ()
    return file, tuple(name.strip() for name in columns.split(",")) if colon else ()


def columns_for(name: str, columns: Any, texts: int) -> tuple[str, ...]:
    """The columns of a table, checked: those of so many sentences, and that of the label."""
    listed = isinstance(columns, Sequence) and not isinstance(columns, str)
    names = tuple(str(column) for column in columns) if listed else ()
    if len(names) != texts + 1 or not all(names) or len(set(names)) < len(names):
        sentences = "the two sentences" if texts == 2 else "the sentence"
        raise ValueError(
            f"{name}: columns must name those of {sentences} and of the label, in this order, "
            f"{EXAMPLE}"
        )
    if not all(map(is_writable, names)):
        raise ValueError(f"{name}: columns must be texts in UTF-8 without NUL characters")
    return names


def _parsed(entry: Any) -> TableOf:
    if isinstance(entry, TableOf):
        return entry
    if isinstance(entry, str):
        name, _, rest = entry.partition("=")
        file, columns = file_and_columns(rest)
        entry = name, {"file": file, "columns": columns}
    name, values = entry if isinstance(entry, Sequence) and len(entry) == 2 else (entry, None)
    if not isinstance(values, Mapping):
        raise ValueError(f"{name!r} must be NAME=FILE:COLUMNS, {EXAMPLE}")
    for key in values:
        if key not in KEYS:
            raise ValueError(f"{name}: {unknown('key', str(key), KEYS)}")
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(
            f"{unknown('task', str(name), TASKS)}; one of your own names its columns with --task"
        )
    task, file = TASKS[name], str(values.get("file", ""))
    if not file or not is_writable(file):
        raise ValueError(f"{name}: file must be a text in UTF-8 without NUL characters, {EXAMPLE}")
    columns = columns_for(name, values.get("columns"), 2 if task.pair else 1)
    return TableOf(name, file, columns, _labels(task, values), _range(task, values))


def _labels(task: Task, values: Mapping[str, Any]) -> tuple[str, ...]:
    labels = values.get("labels") or ()
    if not labels:
        return ()
    if isinstance(labels, str) or not isinstance(labels, Sequence) or task.classes is None:
        raise ValueError(f"{task.name}: labels must be a list of words, of a task with classes")
    words = tuple(class_name(str(label)) for label in labels)
    if len(words) != task.classes or len(set(words)) < len(words):
        raise ValueError(
            f"{task.name}: labels must be {task.classes} different words, for "
            f"{', '.join(task.label_names)}"
        )
    if not all(map(is_writable, words)):
        raise ValueError(f"{task.name}: labels must be texts in UTF-8 without NUL characters")
    return words


def _range(task: Task, values: Mapping[str, Any]) -> tuple[float, float] | None:
    from bert_mtl_demo.user_tasks import range_of

    ends = range_of(task.name, values)
    if ends is not None and task.classes is not None:
        raise ValueError(f"{task.name}: low and high belong to scores, and this task has classes")
    return ends
