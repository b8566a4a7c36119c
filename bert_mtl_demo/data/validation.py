"""Validation of rows, the same for every source.

No row is repaired: a label that has to be guessed is a label that nobody gave.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from bert_mtl_demo.data.examples import DataError, Examples, Skipped
from bert_mtl_demo.tasks import NUMBER, Task, class_name

# A file with more bad rows than this is a wrong file (other delimiter, other labels), not one with
# a few bad rows.
MAX_BAD = 0.10

# The line of a row (from 1), and its sentences and label, or the reason why it cannot be read.
Row = tuple[int, "tuple[tuple[object, ...], object] | str"]


def validated(
    task: Task, file: str, rows: Iterable[Row], *, refuse: bool
) -> tuple[Examples, list[Skipped]]:
    """The valid rows of a source as examples, and the others.

    Raises:
        DataError: when no row is valid, when more than `MAX_BAD` of them are not, and with `refuse`
            for the first bad row.
    """
    validator = RowValidator(task, file, refuse)
    for line, row in rows:
        if isinstance(row, str):
            validator.reject(line, row)
        else:
            validator.take(line, *row)
    return validator.examples(), validator.skipped


@dataclass
class RowValidator:
    """Collects the valid rows of one file and notes, or refuses, the others.

    Args:
        task: decides what a valid label is.
        file: the name that messages use.
        refuse: raise at the first bad row instead of noting it.
    """

    task: Task
    file: str
    refuse: bool = False
    skipped: list[Skipped] = field(default_factory=list)
    _first: list[str] = field(default_factory=list)
    _second: list[str] = field(default_factory=list)
    _labels: list[float] = field(default_factory=list)

    def take(self, line: int, texts: tuple[object, ...], label: object) -> None:
        """Take one row: its one or two sentences and its label, as the source has them."""
        problems = []
        names = ("first ", "second ") if self.task.pair else ("",)
        for name, text in zip(names, texts, strict=True):
            if not isinstance(text, str) or not text.strip():
                problems.append(f"the {name}sentence is empty")
        value = 0.0
        try:
            value = label_of(self.task, label)
        except DataError as error:
            problems.append(str(error))
        if problems:
            self.reject(line, ", ".join(problems))
            return
        self._first.append(str(texts[0]))
        if self.task.pair:
            self._second.append(str(texts[1]))
        self._labels.append(value)

    def reject(self, line: int, reason: str) -> None:
        """Note a bad row, or raise DataError for it if bad rows are refused."""
        row = Skipped(self.file, line, reason)
        if self.refuse:
            raise DataError(
                f"{row}. Correct the row, or leave such rows out and list them "
                'with bad_rows="skip".'
            )
        self.skipped.append(row)

    def examples(self) -> Examples:
        """The examples of the valid rows."""
        good, bad = len(self._labels), len(self.skipped)
        reasons = "; ".join(f"line {row.line}: {row.reason}" for row in self.skipped[:3])
        if not good:
            raise DataError(
                f"{self.file}: no usable row for task {self.task.name!r} "
                + (f"in {bad} ({reasons})" if bad else "(nothing after the header)")
                + ". Check that this is the right file."
            )
        if bad > MAX_BAD * (good + bad):
            raise DataError(
                f"{self.file}: {bad} of {good + bad} rows are bad, more than {MAX_BAD:.0%} "
                f"({reasons}). Check that this is the right file for task {self.task.name!r}."
            )
        labels: list[float] | list[int] = self._labels
        if self.task.classes is not None:
            labels = [int(value) for value in self._labels]
        return Examples(self.task, self._first, self._second if self.task.pair else None, labels)


def label_of(task: Task, label: object) -> float:
    """The label as a number, checked against the task: ``"1.0"`` is class 1, ``"0.5"`` is no class.

    The classes of a user's task go by their names.

    Raises:
        DataError: with the bare fact only; the caller knows file and line.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> label_of(TASKS["sts"], " 3.80 ")
    3.8
    """
    text = "" if label is None else str(label).strip()
    if not text:
        raise DataError("the label is empty")
    words = task.layout.labels if task.layout is not None else ()
    if task.custom and task.classes is not None:
        words = task.label_names
    if words:
        name = class_name(text)
        if name not in words:
            raise DataError(f"the label {text!r} is none of {', '.join(words)}")
        return float(words.index(name))
    if not NUMBER.fullmatch(text):
        raise DataError(f"the label {text!r} is not a number")
    value = float(text)
    if not task.low <= value <= task.high:
        raise DataError(f"the label {text} is outside {task.low:g}..{task.high:g}")
    if task.classes and not value.is_integer():
        raise DataError(
            f"the label {text} is not a whole number, and task {task.name!r} has classes"
        )
    return value
