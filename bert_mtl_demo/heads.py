"""From sentence vectors to a task's answer: one small module per kind of head, one table.

Every head is called with u [B, H] and, for a task of pairs, v [B, H]. A head of classes gives
logits [B, C], a head of similarity gives scores [B] between 0 and 5.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bert_mtl_demo.tasks import Task

TOP = 5.0  # the similarity of two sentences that mean the same


class Classify(nn.Module):
    """Dropout and one linear layer on a single sentence.

    >>> Classify(8, 5, 0.0)(torch.zeros(3, 8)).shape
    torch.Size([3, 5])
    """

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, classes)

    def forward(self, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Logits [B, C]."""
        logits: Tensor = self.linear(self.dropout(u))
        return logits


class ClassifyPair(nn.Module):
    """Dropout and one linear layer on (u, v).

    >>> ClassifyPair(8, 2, 0.0)(torch.zeros(3, 8), torch.zeros(3, 8)).shape
    torch.Size([3, 2])
    """

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """Logits [B, C]."""
        logits: Tensor = self.linear(self.dropout(torch.cat([u, v], dim=-1)))
        return logits


class Cosine(nn.Module):
    """5 relu(cos(u, v)): no parameters, the encoder does all of the work.

    >>> Cosine()(torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([5.])
    """

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """Scores [B]."""
        # In float32: under bf16 a cosine near 1 has steps of 1/128, a fifth of a point of
        # similarity.
        return TOP * torch.relu(F.cosine_similarity(u.float(), v.float(), dim=-1))


class Concat(nn.Module):
    """5 sigmoid(linear(dropout(u, v))): the reports' baseline.

    >>> bool((Concat(8, 0.0)(torch.zeros(3, 8), torch.zeros(3, 8)) < 5).all())
    True
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * width, 1)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """Scores [B]."""
        logit = self.linear(self.dropout(torch.cat([u, v], dim=-1)))
        return TOP * torch.sigmoid(logit.squeeze(-1).float())


# name -> builder(task, width, dropout)
HEADS: dict[str, Callable[[Task, int, float], nn.Module]] = {
    "classify": lambda task, width, dropout: Classify(width, task.classes or 1, dropout),
    "classify_pair": lambda task, width, dropout: ClassifyPair(width, task.classes or 1, dropout),
    "cosine": lambda task, width, dropout: Cosine(),
    "concat": lambda task, width, dropout: Concat(width, dropout),
}


def head_name(task: Task, similarity: str) -> str:
    """Which head a task takes; `similarity` is the choice for tasks without classes.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> [head_name(task, "cosine") for task in TASKS.values()]
    ['classify', 'classify_pair', 'cosine']
    """
    if task.classes is None:
        return similarity
    return "classify_pair" if task.pair else "classify"


def build_head(task: Task, similarity: str, width: int, dropout: float) -> nn.Module:
    """The head of a task on sentence vectors of `width`."""
    return HEADS[head_name(task, similarity)](task, width, dropout)
