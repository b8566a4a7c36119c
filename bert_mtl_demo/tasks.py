"""Tasks: what a label is, how answers are scored, where the examples are, and overall scores.

A built-in task is one row of `TASKS`; `user_tasks` makes tasks from a user's own tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePath
from typing import NamedTuple

# Plain ASCII decimals. float() would also take "1_0", "nan", "infinity" and digits of other
# scripts.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

# Regression is learned on a scale from 0 to TOP, whatever the scale of the labels.
TOP = 5.0


class Kind(NamedTuple):
    """A kind of task: its settings, heads and losses are the same."""

    pair: bool  # whether an example holds two sentences
    classes: bool  # whether a label is a class; otherwise it is a number

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of sentences in a user's table."""
        return ("sentence1", "sentence2") if self.pair else ("sentence",)


KINDS = {
    "classification": Kind(pair=False, classes=True),
    "pair-classification": Kind(pair=True, classes=True),
    "similarity": Kind(pair=True, classes=False),
    "regression": Kind(pair=False, classes=False),
}


@dataclass(frozen=True)
class Layout:
    """A table of one task: its file and the columns that matter."""

    file: str  # with {split} for train and dev; without, every tenth row is dev
    texts: tuple[str, ...]  # names in the header, or numbers from 1 where there is none
    label: str
    delimiters: str = "\t"  # the first of them that occurs in the header separates the columns
    labels: tuple[str, ...] = ()  # words for the classes of a built-in task, in their order

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the sentences, and that of the label."""
        return (*self.texts, self.label)

    def of(self, split: str) -> str:
        """The file of a split.

        >>> Layout("sts-{split}.csv", ("sentence1", "sentence2"), "similarity").of("dev")
        'sts-dev.csv'
        """
        return self.file.replace("{split}", split)


@dataclass(frozen=True)
class HubData:
    """A data set on the hub and the names of its columns."""

    path: tuple[str, ...]  # the positional arguments of load_dataset: repository, configuration
    texts: tuple[str, ...]
    label: str | None = "label"

    @property
    def name(self) -> str:
        """The data set, as messages name it."""
        return "/".join(self.path)

    def of(self, split: str) -> str:
        """One split of it, as messages name it.

        >>> HubData(("nyu-mll/glue", "stsb"), ("sentence1", "sentence2")).of("train")
        'nyu-mll/glue/stsb[train]'
        """
        return f"{self.name}[{split}]"


@dataclass(frozen=True)
class Task:
    """One supervised task on sentences or on pairs of sentences.

    Args:
        name: the short name that configurations, files and logs use, e.g. ``"sst"``.
        title: what the task asks, for people, e.g. ``"sentiment"``.
        pair: whether an example holds two sentences.
        classes: number of classes, or None for regression.
        low, high: smallest and largest label, both included.
        metric: ``"accuracy"`` (0..1) or ``"pearson"`` (-1..1).
        label_names: one name per class, in label order; empty for regression.
        layout: its table in a directory of data, or a user's own table.
        hub: its data set on the hub, if there is one.
        custom: whether a user defined it: `layout` is then the only source. Until its table has
            been read it has no classes, or labels from -inf to inf.

    >>> TASKS["sst"].label_names[4]
    'very positive'
    """

    name: str
    title: str
    pair: bool
    classes: int | None
    low: float
    high: float
    metric: str
    label_names: tuple[str, ...] = ()
    layout: Layout | None = None
    hub: HubData | None = None
    custom: bool = False

    def __post_init__(self) -> None:
        if self.metric not in _SCORE_RANGE:
            raise ValueError(
                f"Task {self.name!r} has metric {self.metric!r}; the known ones are "
                f"{', '.join(map(repr, _SCORE_RANGE))}."
            )
        if len(self.label_names) != (self.classes or 0):
            raise ValueError(
                f"Task {self.name!r} names {len(self.label_names)} labels for "
                f"{self.classes or 0} classes; give one name per class, and none for regression."
            )

    @property
    def kind(self) -> str:
        """The name of its kind in `KINDS`.

        >>> [task.kind for task in TASKS.values()][1:]
        ['pair-classification', 'similarity', 'classification']
        """
        kind = Kind(self.pair, self.classes is not None)
        return next(name for name, known in KINDS.items() if known == kind)

    @property
    def elsewhere(self) -> bool:
        """Whether its table is not one of the run's directory of data, or of the hub."""
        assert self.layout is not None
        return self.custom or PurePath(self.layout.file).is_absolute()

    @property
    def unit(self) -> float:
        """The size of one unit of the regression scale, in units of the labels."""
        return (self.high - self.low) / TOP

    def scaled(self, label: float) -> float:
        """A regression label on the scale from 0 to `TOP` that heads and losses work on.

        >>> TASKS["sts"].scaled(3.8)
        3.8
        """
        return (label - self.low) / self.unit


# metric -> its range, both ends included
_SCORE_RANGE: dict[str, tuple[float, float]] = {"accuracy": (0.0, 1.0), "pearson": (-1.0, 1.0)}

_SENTIMENTS = ("very negative", "negative", "neutral", "positive", "very positive")
_SENTENCE, _PAIR = KINDS["classification"].columns, KINDS["similarity"].columns
_GLUE = "nyu-mll/glue"

# The order is the column order of every report.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            *("sst", "sentiment", False, 5, 0.0, 4.0, "accuracy", _SENTIMENTS),
            layout=Layout("ids-sst-{split}.csv", _SENTENCE, "sentiment"),
            hub=HubData(("SetFit/sst5",), ("text",)),
        ),
        Task(
            *("para", "paraphrase", True, 2, 0.0, 1.0, "accuracy", ("different", "paraphrase")),
            layout=Layout("quora-{split}.csv", _PAIR, "is_duplicate"),
            hub=HubData((_GLUE, "qqp"), ("question1", "question2")),
        ),
        Task(
            *("sts", "similarity", True, None, 0.0, 5.0, "pearson"),
            layout=Layout("sts-{split}.csv", _PAIR, "similarity"),
            hub=HubData((_GLUE, "stsb"), _PAIR),
        ),
        # Long reviews; the reports train it alone, as a check, so it is not among the defaults.
        Task(
            *("cfimdb", "polarity", False, 2, 0.0, 1.0, "accuracy", ("negative", "positive")),
            layout=Layout("ids-cfimdb-{split}.csv", _SENTENCE, "sentiment"),
        ),
    )
}


def class_name(text: str) -> str:
    """A label as the name of a class; whole numbers have one spelling.

    >>> class_name(" calm "), class_name("1.0"), class_name("01"), class_name("9007199254740993")
    ('calm', '1', '1', '9007199254740993')
    """
    text = text.strip()
    if not NUMBER.fullmatch(text):
        return text
    try:
        number = Decimal(text)  # exact, where floats would make one class of two long numbers
    except ArithmeticError:  # an exponent of twenty digits
        return text
    # Compared first: the digits of 1e999999999 would fill the memory.
    whole = number.copy_abs() < 10**300 and number == int(number)
    return str(int(number)) if whole else text


def resolve(names: Sequence[str], known: Mapping[str, Task] = TASKS) -> tuple[Task, ...]:
    """Look up tasks by name, in the order given.

    Raises:
        ValueError: when a name is unknown or given twice, or when there is none.

    >>> [task.title for task in resolve(["sts", "sst"])]
    ['similarity', 'sentiment']
    """
    listing = _quoted(known)
    if isinstance(names, str):
        raise ValueError(
            f"Task names are a sequence of strings, got the string {names!r}; pass [{names!r}]."
        )
    if not names:
        raise ValueError(f"No task was named; name at least one of {listing}.")
    for position, name in enumerate(names):
        if name not in known:
            raise ValueError(f"Unknown task {name!r}; the known ones are {listing}.")
        if name in names[:position]:
            raise ValueError(
                f"Task {name!r} is named twice in {list(names)}; "
                f"name each of {listing} at most once."
            )
    return tuple(known[name] for name in names)


def mean_score(scores: Mapping[str, float], known: Mapping[str, Task] = TASKS) -> float:
    """Mean of the tasks' scores as they are: accuracies and Pearson's r side by side.

    Args:
        scores: task name -> score, for any non-empty subset of the tasks. A NaN (the r of constant
            predictions) makes the mean NaN: a run without a score has no overall score either.
        known: the tasks by name.

    Raises:
        ValueError: for an unknown task, no task, or a score outside its metric's range.

    >>> round(mean_score({"sst": 0.492, "para": 0.769, "sts": 0.757}), 3)
    0.673
    """
    return _mean(scores, known, lambda task, score: score)


def leaderboard_score(scores: Mapping[str, float], known: Mapping[str, Task] = TASKS) -> float:
    """Mean of the tasks' scores with each first brought to 0..1: accuracy as it is, r as (r + 1) /
    2.

    Same arguments and errors as `mean_score`. It flatters weak correlations (r = 0 counts as one
    half), so a report prints both and says which is which.

    >>> round(leaderboard_score({"sst": 0.514, "para": 0.774, "sts": 0.394}), 3)
    0.662
    """
    return _mean(
        scores, known, lambda task, score: (score + 1) / 2 if task.metric == "pearson" else score
    )


def _mean(
    scores: Mapping[str, float],
    known: Mapping[str, Task],
    value: Callable[[Task, float], float],
) -> float:
    tasks = resolve(tuple(scores), known)
    for task in tasks:
        low, high = _SCORE_RANGE[task.metric]
        score = scores[task.name]
        # Rounding may carry r a hair past 1; a percentage is far outside. NaN fails both
        # comparisons and passes.
        if score < low - 1e-6 or score > high + 1e-6:
            raise ValueError(
                f"The {task.metric} of {task.name!r} is {score}, outside {low:g}..{high:g}; "
                "pass fractions, not percent."
            )
    return sum(value(task, scores[task.name]) for task in tasks) / len(tasks)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
