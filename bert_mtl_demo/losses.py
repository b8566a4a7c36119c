"""From a task's answer and its labels to one number to minimise: one function per loss, one table.

All of them work in float32 whatever the model ran in: a loss is a mean over few examples, and bf16
would round it to two digits.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from bert_mtl_demo.tasks import Task

# (answer [B, C] or [B], labels [B]) -> scalar
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label], averaged.

    >>> import torch
    >>> round(cross_entropy(torch.zeros(1, 2), torch.tensor([1])).item(), 4)
    0.6931
    """
    return F.cross_entropy(logits.float(), labels)


def mse(scores: Tensor, labels: Tensor) -> Tensor:
    """(score - label)^2, averaged.

    >>> import torch
    >>> mse(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 5.0])).item()
    2.0
    """
    return F.mse_loss(scores.float(), labels.float())


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse}


def loss_of(task: Task) -> Loss:
    """The loss a task is trained with.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> loss_of(TASKS["sts"]).__name__
    'mse'
    """
    return LOSSES["mse" if task.classes is None else "cross_entropy"]
