"""The one gate that every row of every source goes through.

No row is repaired: a label that has to be guessed is a label that nobody gave.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from bert_mtl_demo.data.examples import DataError, Examples, Skipped
from bert_mtl_demo.tasks import Task

# A file with more bad rows than this is a wrong file (other delimiter, other labels), not one with
# a few bad rows.
MAX_BAD = 0.10

# Plain ASCII decimals. float() would also take "1_0", "nan", "infinity" and digits of other
# scripts.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass
class Gate:
    """Collects the good rows of one file and notes, or refuses, the bad ones.

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

    def offer(self, line: int, texts: tuple[object, ...], label: object) -> None:
        """Take one row: its one or two sentences and its label, as the source has them.

        Raises:
            DataError: for a bad row, if this gate refuses.
        """
        wrong = []
        names = ("first ", "second ") if self.task.pair else ("",)
        for name, text in zip(names, texts, strict=True):
            if not isinstance(text, str) or not text.strip():
                wrong.append(f"the {name}sentence is empty")
        value = 0.0
        try:
            value = label_of(self.task, label)
        except DataError as error:
            wrong.append(str(error))
        if wrong:
            self.reject(line, ", ".join(wrong))
            return
        self._first.append(str(texts[0]))
        if self.task.pair:
            self._second.append(str(texts[1]))
        self._labels.append(value)

    def reject(self, line: int, reason: str) -> None:
        """Note a bad row, or raise DataError for it if this gate refuses."""
        row = Skipped(self.file, line, reason)
        if self.refuse:
            raise DataError(
                f"{row}. Correct the row, or leave such rows out and list them "
                'with bad_rows="skip".'
            )
        self.skipped.append(row)

    def close(self) -> Examples:
        """The examples that passed.

        Raises:
            DataError: when none passed, or when more than `MAX_BAD` of the rows were bad.
        """
        good, bad = len(self._labels), len(self.skipped)
        shown = "; ".join(f"line {row.line}: {row.reason}" for row in self.skipped[:3])
        if not good:
            raise DataError(
                f"{self.file}: no usable row for task {self.task.name!r} "
                + (f"in {bad} ({shown})" if bad else "(nothing after the header)")
                + ". Check that this is the right file."
            )
        if bad > MAX_BAD * (good + bad):
            raise DataError(
                f"{self.file}: {bad} of {good + bad} rows are bad, more than {MAX_BAD:.0%} "
                f"({shown}). Check that this is the right file for task {self.task.name!r}."
            )
        labels: list[float] | list[int] = (
            [int(v) for v in self._labels] if self.task.classes else self._labels
        )
        return Examples(self.task, self._first, self._second if self.task.pair else None, labels)


def label_of(task: Task, label: object) -> float:
    """The label as a number, checked against the task: ``"1.0"`` is class 1, ``"0.5"`` is no class.

    Raises:
        DataError: with the bare fact only; the caller knows file and line.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> label_of(TASKS["sts"], " 3.80 ")
    3.8
    """
    text = "" if label is None else str(label).strip()
    if not text:
        raise DataError("the label is empty")
    if not _NUMBER.fullmatch(text):
        raise DataError(f"the label {text!r} is not a number")
    value = float(text)
    if not task.low <= value <= task.high:
        raise DataError(f"the label {text} is outside {task.low:g}..{task.high:g}")
    if task.classes and not value.is_integer():
        raise DataError(
            f"the label {text} is not a whole number, and task {task.name!r} has classes"
        )
    return value
