"""Distribution of a task's labels: described in a line, and refused where they mean something else.

Labels of another meaning can lie in a task's range: 0 and 1 of two classes, or scores from 0 to 1.
Every row of such a file is valid, and what a model learns from it is not the task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import quantiles

from bert_mtl_demo.data.examples import DataError, Examples, Splits
from bert_mtl_demo.printing import wrapped

# The chance below which labels are not taken for a part of the task's, if all were equally likely.
CHANCE = 1e-12
# Tables are not always shuffled: 450 rows in a row of SST's have no lowest class. So a table is
# refused only if that many times as many rows would have been unlikely.
ALIKE = 8


def refuse_other_labels(file: str, examples: Examples) -> None:
    """Refuse a table of a built-in task that uses only a part of the range of its labels.

    A few rows may do so by chance, so it takes many: 242 of 0 and 1 where there are five classes.
    A user's own task has the labels that its table has.

    Raises:
        DataError: with the labels of the table, and those of the task.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> rows = Examples(TASKS["sst"], ["A joy."] * 300, None, [0, 1] * 150)
    >>> refuse_other_labels("ids-sst-train.csv", rows)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bert_mtl_demo.data.examples.DataError: ids-sst-train.csv: all 300 labels are from 0 to 1, but...
    """
    if problem := _other_labels(examples, len(examples) / ALIKE):
        raise DataError(
            f"{file}: {problem}. Convert them; or, if they mean something else, give the table as "
            "a task of your own with --task NAME=KIND:FILE."
        )


def _other_labels(examples: Examples, draws: float) -> str | None:
    """What is wrong with labels that so many draws would not give, if anything is."""
    task = examples.task
    if task.custom or not len(examples):
        return None
    low, high = min(examples.labels), max(examples.labels)
    if task.classes is None:
        # A fifth of the scale is another scale; stopping a little short of the ends is not.
        share = 0.2 if high - low <= 0.2 * (task.high - task.low) else 1.0
        meaning = f"scores from {task.low:g} to {task.high:g}"
    else:
        share = (high - low + 1) / task.classes
        meaning = f"{task.low:g} ({task.label_names[0]}) to {task.high:g} ({task.label_names[-1]})"
    if share**draws >= CHANCE:
        return None
    labels = f"from {low:g} to {high:g}" if low < high else f"{low:g}"
    return f"all {len(examples)} labels are {labels}, but those of task {task.name!r} are {meaning}"


def described(splits: Splits) -> str:
    """The sizes of a task's data and the distribution of its labels in train, in a line.

    >>> from bert_mtl_demo.data import load
    >>> from bert_mtl_demo.tasks import resolve
    >>> splits, _ = load("sample", resolve(["para", "sts"]))
    >>> print(*map(described, splits.values()), sep="\\n")
    para: 1200 train (different 50%, paraphrase 50%), 300 dev
    sts: 1200 train (0 to 5, quartiles 1.2, 2.4, 3.6), 300 dev
    """
    train = splits.train
    task = train.task
    if task.classes is None:
        labels = _scores(train.labels)
    else:
        counts = Counter(train.labels)
        labels = ", ".join(
            f"{name} {counts[number] / len(train):.0%}"
            for number, name in enumerate(task.label_names)
        )
    return f"{task.name}: {len(train)} train ({labels}), {len(splits.dev)} dev"


def _scores(labels: Sequence[float]) -> str:
    ends = f"{min(labels):g} to {max(labels):g}"
    if len(labels) < 2:
        return ends
    return f"{ends}, quartiles {', '.join(f'{value:.3g}' for value in quantiles(labels))}"


def concerns(data: Mapping[str, Splits]) -> list[str]:
    """What is allowed but probably not meant, one sentence each.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> rows = Examples(TASKS["sst"], ["A joy.", "Dire."], None, [4, 0])
    >>> concerns({"sst": Splits(rows, rows.take([0]))})
    ['sst: 1 of 1 dev examples is also in train, so its scores say nothing about new text']
    """
    sentences = []
    for name, splits in data.items():
        shared, size = splits.overlap(), len(splits.dev)
        if shared:
            verb = "is" if shared == 1 else "are"
            sentences.append(f"{name}: {shared} of {size} dev examples {verb} also in train")
            if 2 * shared > size:
                sentences[-1] += ", so its scores say nothing about new text"
        if problem := _other_labels(splits.train, len(splits.train)):
            sentences.append(f"{name}: {problem}; if they mean something else, so do the scores")
    return sentences


def announce(data: Mapping[str, Splits]) -> None:
    """Print a line for each task, and what may not be meant."""
    for splits in data.values():
        print(wrapped(described(splits)))
    for sentence in concerns(data):
        print(wrapped(f"warning: {sentence}"))
