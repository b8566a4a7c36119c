"""The embedded data: sentences made from templates, so that the demo runs with no file and no
network.

They are no benchmark. They are there so that a run has something to learn in two minutes: answers
follow from how words are combined (negation, order, a changed number), not from one word alone.
Everything is drawn from this package's own `random.Random`, so it is the same on every machine and
leaves the caller's random state alone.

Dev contains no sentence or pair of train; besides, certain combinations of words (`common.unseen`)
occur in dev only.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from bert_mtl_demo.data.examples import Examples, Splits
from bert_mtl_demo.data.sample.common import Drawer, draw_split
from bert_mtl_demo.tasks import Task

SEED = 20_240_611
TRAIN, DEV = 1200, 300  # examples per task


def load_sample(tasks: Sequence[Task]) -> dict[str, Splits]:
    """The embedded train and dev examples; those of a task do not depend on which others are
    loaded.

    >>> from bert_mtl_demo.tasks import resolve
    >>> sample = load_sample(resolve(["sst", "para"]))
    >>> len(sample["sst"].train), len(sample["para"].dev), sample["para"].overlap()
    (1200, 300, 0)
    """
    return {task.name: _splits(task) for task in tasks}


def drawer_of(task: Task) -> Drawer:
    """The generator of a task, its label groups equally frequent.

    The groups are the classes, or bins of width one, of which the last includes the highest label:
    balanced bins make balanced labels.
    """
    draw = importlib.import_module(f"{__name__}.{task.sample}").draw
    groups = task.classes or int(task.high)
    return Drawer(draw, groups, group_of=lambda label: min(int(label), groups - 1))


def _splits(task: Task) -> Splits:
    train, dev = draw_split(drawer_of(task), f"{SEED} {task.name}", TRAIN, DEV)
    return Splits(_examples(task, train), _examples(task, dev))


def _examples(task: Task, rows: list[tuple[str, str | None, float]]) -> Examples:
    labels: list[float] | list[int]
    labels = [int(label) for *_, label in rows] if task.classes else [label for *_, label in rows]
    second = [str(text) for _, text, _ in rows] if task.pair else None
    return Examples(task, [first for first, *_ in rows], second, labels)
