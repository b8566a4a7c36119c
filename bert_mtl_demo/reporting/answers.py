"""Files of answers to a split without labels: the course's leaderboard format, or TSV.

The course's format has a header between a space and a tab, and rows between a space and a comma:

    id 	 Predicted_Sentiment
    5b2c1f , 3
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bert_mtl_demo.tasks import Task

# The headers that the course's leaderboard reads, with its spelling.
HEADERS = {
    "sst": "Predicted_Sentiment",
    "para": "Predicted_Is_Paraphrase",
    "sts": "Predicted_Similiary",
    "cfimdb": "Predicted_Sentiment",
}


def content(task: Task, ids: Sequence[str], answers: Any, *, tsv: bool) -> str:
    """A file of answers.

    Args:
        task: a built-in task's classes are numbers, those of a user's task their names.
        ids: one per answer.
        answers: `Answers` of the model, in the same order.
        tsv: columns `id`, `label` and for classes `probability`, between tabs.

    >>> import numpy as np
    >>> from bert_mtl_demo.tasks import TASKS
    >>> from bert_mtl_demo.training.inference import Answers
    >>> answers = Answers(TASKS["sst"], np.array([3.0]), np.eye(5)[[3]])
    >>> content(TASKS["sst"], ["5b2c1f"], answers, tsv=False)
    'id \\t Predicted_Sentiment \\n5b2c1f , 3 \\n'
    """
    labels = [label(task, float(value)) for value in answers.values]
    if not tsv:
        header = HEADERS.get(task.name, f"Predicted_{task.name.capitalize()}")
        rows = [f"{name} , {text} " for name, text in zip(ids, labels, strict=True)]
        return "\n".join([f"id \t {header} ", *rows]) + "\n"
    columns = [ids, labels]
    heading = ["id", "label"]
    if answers.probabilities is not None:
        columns.append([f"{row.max():.4f}" for row in answers.probabilities])
        heading.append("probability")
    return "".join("\t".join(row) + "\n" for row in [heading, *zip(*columns, strict=True)])


def label(task: Task, value: float) -> str:
    """An answer as the task's table would have it.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> label(TASKS["sst"], 3.0), label(TASKS["sts"], 3.25)
    ('3', '3.25')
    """
    if task.classes is None:
        return f"{value:.6g}"
    words = task.label_names if task.custom else task.layout.labels if task.layout else ()
    return words[int(value)] if words else str(int(value))
