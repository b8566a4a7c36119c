"""The tasks of the study: what a label is, how a prediction is scored, how scores become one
number.

A new task is one entry in `TASKS`, plus its place in the sources that have it: `tables.LAYOUTS`,
`hub.DATASETS`, `sample.DRAWERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


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


# metric -> its range, both ends included
_SCORE_RANGE: dict[str, tuple[float, float]] = {"accuracy": (0.0, 1.0), "pearson": (-1.0, 1.0)}

_SENTIMENTS = ("very negative", "negative", "neutral", "positive", "very positive")

# The order is the column order of every report.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sst", "sentiment", False, 5, 0.0, 4.0, "accuracy", _SENTIMENTS),
        Task("para", "paraphrase", True, 2, 0.0, 1.0, "accuracy", ("different", "paraphrase")),
        Task("sts", "similarity", True, None, 0.0, 5.0, "pearson"),
        # Long reviews; the reports train it alone, as a check, so it is not among the defaults.
        Task("cfimdb", "polarity", False, 2, 0.0, 1.0, "accuracy", ("negative", "positive")),
    )
}


def resolve(names: Sequence[str]) -> tuple[Task, ...]:
    """Look up tasks by name, in the order given.

    Raises:
        ValueError: when a name is unknown or given twice, or when there is none.

    >>> [task.title for task in resolve(["sts", "sst"])]
    ['similarity', 'sentiment']
    """
    if isinstance(names, str):
        raise ValueError(
            f"Task names are a sequence of strings, got the string {names!r}; pass [{names!r}]."
        )
    if not names:
        raise ValueError(f"No task was named; name at least one of {_known()}.")
    for position, name in enumerate(names):
        if name not in TASKS:
            raise ValueError(f"Unknown task {name!r}; the known ones are {_known()}.")
        if name in names[:position]:
            raise ValueError(
                f"Task {name!r} is named twice in {list(names)}; "
                f"name each of {_known()} at most once."
            )
    return tuple(TASKS[name] for name in names)


def mean_score(scores: Mapping[str, float]) -> float:
    """Mean of the tasks' scores as they are: accuracies and Pearson's r side by side.

    Args:
        scores: task name -> score, for any non-empty subset of the tasks. A NaN (the r of constant
            predictions) makes the mean NaN: a run without a score has no overall score either.

    Raises:
        ValueError: for an unknown task, no task, or a score outside its metric's range.

    >>> round(mean_score({"sst": 0.492, "para": 0.769, "sts": 0.757}), 3)
    0.673
    """
    return _mean(scores, lambda task, score: score)


def leaderboard_score(scores: Mapping[str, float]) -> float:
    """Mean of the tasks' scores with each first brought to 0..1: accuracy as it is, r as (r + 1) /
    2.

    Same arguments and errors as `mean_score`. It flatters weak correlations (r = 0 counts as one
    half), so a report prints both and says which is which.

    >>> round(leaderboard_score({"sst": 0.514, "para": 0.774, "sts": 0.394}), 3)
    0.662
    """
    return _mean(scores, lambda task, score: (score + 1) / 2 if task.metric == "pearson" else score)


def _mean(scores: Mapping[str, float], value: Callable[[Task, float], float]) -> float:
    tasks = resolve(tuple(scores))
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


def _known() -> str:
    return ", ".join(map(repr, TASKS))
