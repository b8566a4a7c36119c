"""Losses: a task's answer and its labels to one number to minimise; one function each, two tables.

A loss is given `LossInputs` and returns a scalar in float32. Which loss a task takes is a setting
for the two tasks on pairs; single sentences are classified with a cross-entropy throughout.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bert_mtl_demo.config import Config
from bert_mtl_demo.model.losses.in_batch import mnrl_cosine, mnrl_label, mnrl_one, simcse
from bert_mtl_demo.model.losses.inputs import LossInputs
from bert_mtl_demo.model.losses.pairwise import cosine_embedding, negative_sampling, triplet
from bert_mtl_demo.model.losses.pointwise import bce, cross_entropy, huber, mse, squared_probability
from bert_mtl_demo.tasks import Task

__all__ = ["CLASS_LOSSES", "SIMILARITY_LOSSES", "Loss", "LossInputs", "loss_of"]

Loss = Callable[[LossInputs], Tensor]

# setting `para_loss` -> the loss of two classes
CLASS_LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "bce": bce,
    "mse": squared_probability,
}

# setting `sts_loss` -> the loss of similarity
SIMILARITY_LOSSES: dict[str, Loss] = {
    "mse": mse,
    "huber": huber,
    "cosine_embedding": cosine_embedding,
    "mnrl_one": mnrl_one,
    "mnrl_label": mnrl_label,
    "mnrl_cosine": mnrl_cosine,
    "simcse": simcse,
    "triplet": triplet,
    "negative_sampling": negative_sampling,
}


def loss_of(task: Task, config: Config) -> Loss:
    """The loss a task is trained with.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> [loss_of(TASKS[name], Config(para_loss="bce")).__name__ for name in ("sst", "para", "sts")]
    ['cross_entropy', 'bce', 'mse']
    """
    if task.classes is None:
        return SIMILARITY_LOSSES[config.sts_loss] if task.pair else mse
    return CLASS_LOSSES[config.para_loss] if task.pair and task.classes == 2 else cross_entropy
