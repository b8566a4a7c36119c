"""From one vector per token to one vector per sentence: three ways, one table.

`mean` is the default because the packaged all-MiniLM was trained under a masked mean, which makes
the cosine of two sentences meaningful before the first step, while its pooler weights were never
trained at all. `pooler` (dense + tanh on [CLS]) is what the five reports use on BERT-base, where it
was trained by next-sentence prediction.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# (hidden [R, T, H], mask [R, T], pooler output [R, H] or None) -> [R, H]
Pooling = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def mean(hidden: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor:
    """Average over the real tokens.

    >>> import torch
    >>> mean(torch.tensor([[[2.0], [4.0], [99.0]]]), torch.tensor([[1, 1, 0]]), None)
    tensor([[3.]])
    """
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # [R, T, 1]
    # A tokenizer always writes [CLS] and [SEP], so the count is never 0.
    return (hidden * weights).sum(1) / weights.sum(1)


def cls(hidden: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor:
    """The first token as it is."""
    return hidden[:, 0]


def pooler(hidden: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor:
    """BERT's own pooler: tanh(W [CLS] + b)."""
    assert pooled is not None, "the encoder was built without its pooling layer"
    return pooled


POOLINGS: dict[str, Pooling] = {"mean": mean, "cls": cls, "pooler": pooler}
