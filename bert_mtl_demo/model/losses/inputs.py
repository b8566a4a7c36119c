"""The inputs of a loss: the answer, the labels, and the sentence vectors behind the answer.

Most losses need the first two. Those that set pairs of a batch against each other also need the
sentence vectors, and the head itself, to ask it about pairs that the data do not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LossInputs:
    """One batch as a loss sees it; B examples.

    >>> inputs = LossInputs(torch.tensor([2.5]), torch.tensor([5.0]))
    >>> inputs.answer.item(), inputs.epoch
    (2.5, 1)
    """

    answer: Tensor  # [B, C] logits, [B] logits of two classes, or [B] scores
    labels: Tensor  # [B] int64 classes or float32 scores
    u: Tensor | None = None  # [B, H] first sentences of siamese pairs
    v: Tensor | None = None  # [B, H] second sentences
    head: Callable[[Tensor, Tensor], Tensor] | None = None  # vectors [..., H] twice -> scores [...]
    epoch: int = 1  # from 1
    temperature: float = 0.05

    def pair(self) -> tuple[Tensor, Tensor]:
        """u and v, [B, H] float32."""
        assert self.u is not None, "this loss needs siamese pairs, which the config checks"
        assert self.v is not None, "as above"
        return self.u.float(), self.v.float()

    def scores(self, u: Tensor, v: Tensor) -> Tensor:
        """The head's scores of any pairs, [...] float32 of vectors [..., H]."""
        assert self.head is not None, "this loss needs a head, which the model gives"
        return self.head(u, v).float()

    def raw(self, u: Tensor, v: Tensor) -> Tensor:
        """The head's answers to any pairs before they are scaled, [...] float32."""
        assert isinstance(self.head, nn.Module), "as above"
        answers: Tensor = self.head.raw(u, v)  # type: ignore[operator]
        return answers.float()

    def all_scores(self) -> Tensor:
        """The head's scores of every first sentence with every second one, [B, B] float32."""
        u, v = self.pair()
        size = (len(u), *v.shape)
        return self.scores(u[:, None].expand(size), v[None].expand(size))

    def all_cosines(self) -> Tensor:
        """cos(u_i, v_j), [B, B] float32."""
        return all_cosines(*self.pair())

    def nothing(self) -> Tensor:
        """A zero with a graph: the loss of a batch that holds nothing to learn from."""
        zero = self.answer.float().sum() * 0
        return zero if self.u is None else zero + sum(part.sum() * 0 for part in self.pair())


def all_cosines(u: Tensor, v: Tensor) -> Tensor:
    """cos(u_i, v_j) of vectors [A, H] and [B, H], [A, B].

    >>> all_cosines(torch.eye(2), torch.tensor([[3.0, 0.0]])).tolist()
    [[1.0], [0.0]]
    """
    # Not as a product of matrices, which autocast would take in half precision: over a small
    # temperature its rounding is a sixth of a unit.
    return torch.cosine_similarity(u[:, None], v[None], dim=-1)
