"""Heads: from sentence vectors to a task's answer.

A head is called with what its task has: u [B, H] of a single sentence; u and v of a pair; w [B, H],
the [CLS] vector of a pair that was read as one row; or u, v and w. It gives logits [B, C] of
classes, one logit [B] where two classes are told apart by one number, or scores [B] of regression,
on a scale from 0 to 5 whatever that of the labels is.

`raw` is the answer before it is brought to the scale of the labels. Two heads that are added (an
*ensemble*) are added raw, since a bound on one of them would make the sum mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bert_mtl_demo.config import Config
from bert_mtl_demo.tasks import TOP, Task


def alone(u: Tensor) -> Tensor:
    """One vector as it is."""
    return u


def concat(u: Tensor, v: Tensor) -> Tensor:
    """[u; v].

    >>> concat(torch.tensor([1.0]), torch.tensor([3.0])).tolist()
    [1.0, 3.0]
    """
    return torch.cat([u, v], dim=-1)


def difference(u: Tensor, v: Tensor) -> Tensor:
    """[u; v; |u - v|], as Reimers and Gurevych (2019), section 3, join two sentences.

    >>> difference(torch.tensor([1.0]), torch.tensor([3.0])).tolist()
    [1.0, 3.0, 2.0]
    """
    return torch.cat([u, v, (u - v).abs()], dim=-1)


# name -> (vectors in it, how they are joined)
FEATURES: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "alone": (1, alone),
    "concat": (2, concat),
    "difference": (3, difference),
}


class Projection(nn.Module):
    """Dropout, hidden layers if any, and a last linear layer.

    Args:
        features: a name from `FEATURES`, for what the layers see.
        width: H, of each vector.
        outputs: numbers in an answer; one is given as [B], not as [B, 1].
        dropout: on the features, and after each hidden layer.
        hidden_layers: each is linear, ReLU and dropout, H wide; the first one brings the features
            to that width.
        bounded: whether the answer is 5 sigmoid(raw).

    >>> Projection("concat", 8, 2, dropout=0.0)(torch.zeros(3, 8), torch.zeros(3, 8)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        features: str,
        width: int,
        outputs: int,
        dropout: float,
        hidden_layers: int = 0,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        vectors, self.join = FEATURES[features]
        self.bounded = bounded
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Sequential()
        entering = vectors * width
        for _ in range(hidden_layers):
            self.hidden.extend([nn.Linear(entering, width), nn.ReLU(), nn.Dropout(dropout)])
            entering = width
        self.linear = nn.Linear(entering, outputs)

    def raw(self, *vectors: Tensor) -> Tensor:
        """Numbers without bounds, [..., C], or [...] of one output, of vectors [..., H]."""
        outputs: Tensor = self.linear(self.hidden(self.dropout(self.join(*vectors))))
        return outputs.squeeze(-1) if outputs.shape[-1] == 1 else outputs

    def forward(self, *vectors: Tensor) -> Tensor:
        """The answer, on the scale of the labels if it is bounded."""
        outputs = self.raw(*vectors)
        return TOP * torch.sigmoid(outputs.float()) if self.bounded else outputs


class Cosine(nn.Module):
    """5 relu(cos(u, v)): no parameters, the encoder does all of the work.

    >>> Cosine()(torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([5.])
    """

    def raw(self, u: Tensor, v: Tensor) -> Tensor:
        """cos(u, v), [...] of vectors [..., H]."""
        # In float32: under bf16 a cosine near 1 has steps of 1/128, a fifth of a point of
        # similarity.
        return F.cosine_similarity(u.float(), v.float(), dim=-1)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """Scores [...]."""
        return TOP * torch.relu(self.raw(u, v))


class Ensemble(nn.Module):
    """The raw answer to two sentences read apart plus the raw answer to them read together.

    For classes both are logits. For similarity with the cosine it is cos(u, v) + linear(w), the
    sbert_simcse report taken at its word: no 5 relu(), so the linear part learns the scale as well.

    >>> both = Ensemble(Cosine(), Projection("alone", 8, 1, dropout=0.0))
    >>> both(torch.ones(3, 8), torch.ones(3, 8), torch.ones(3, 8)).shape
    torch.Size([3])
    """

    def __init__(self, siamese: Any, cross: Any) -> None:
        super().__init__()
        self.siamese, self.cross = siamese, cross

    def forward(self, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """Logits [B, C] or [B], or scores [B] without bounds."""
        total: Tensor = self.siamese.raw(u, v) + self.cross.raw(w)
        return total


# Heads of similarity: name -> builder(width, dropout, hidden layers).
HEADS: dict[str, Callable[[int, float, int], nn.Module]] = {
    "cosine": lambda width, dropout, hidden: Cosine(),
    "concat": lambda width, dropout, hidden: Projection(
        "concat", width, 1, dropout, hidden, bounded=True
    ),
    "linear": lambda width, dropout, hidden: Projection("concat", width, 1, dropout, hidden),
    "difference": lambda width, dropout, hidden: Projection(
        "difference", width, 1, dropout, hidden, bounded=True
    ),
}


def one_logit(task: Task, config: Config) -> bool:
    """Whether two classes are told apart by one logit: pairs of sentences under `bce` and `mse`.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> [one_logit(TASKS[name], Config(para_loss="bce")) for name in ("sst", "para", "sts")]
    [False, True, False]
    """
    return task.pair and task.classes == 2 and config.para_loss != "cross_entropy"


def build_head(task: Task, config: Config, width: int, cross_width: int | None = None) -> nn.Module:
    """The head of a task.

    Args:
        task: whose.
        config: the settings: which kind, how deep, how much dropout.
        width: of a sentence's vector.
        cross_width: of the [CLS] vector of a pair in one row; None: the same. It is the encoder's,
            to which the sentence model may have added parts.

    The scores of a crossed pair are linear and without bounds, those of one sentence are bounded.
    """
    # A head that is not used is not built: its initial weights would shift those of the next one.
    if not task.pair or config.pairs == "siamese":
        return _siamese(task, config, width)
    if config.pairs == "cross":
        return _cross(task, config, cross_width or width)
    return Ensemble(_siamese(task, config, width), _cross(task, config, cross_width or width))


def _siamese(task: Task, config: Config, width: int) -> nn.Module:
    if task.kind == "similarity":
        return HEADS[config.sts_head](width, config.dropout, config.hidden_layers)
    features, bounded = config.para_head if task.pair else "alone", task.classes is None
    outputs = _outputs(task, config)
    return Projection(features, width, outputs, config.dropout, config.hidden_layers, bounded)


def _cross(task: Task, config: Config, width: int) -> nn.Module:
    return Projection("alone", width, _outputs(task, config), config.dropout, config.hidden_layers)


def _outputs(task: Task, config: Config) -> int:
    return 1 if task.classes is None or one_logit(task, config) else task.classes
