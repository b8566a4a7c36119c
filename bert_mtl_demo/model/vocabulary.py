"""The word embeddings of the tokens in use, in place of all: less to sum up, clip and update.

Half of a small BERT is its table of word embeddings, and most rows of it belong to tokens that no
example has. Their gradient is zero at every step, so AdamW moves them by weight decay alone. Here
the optimizer sees the other rows, and one more of ones: it decays as those left out would have, and
so tells at any time what they would be now. A `state_dict` holds the whole table, as if nothing had
been left out, and loads from one.

Rows in use get the very gradients that they had (bitwise); norms and dot products over the table
are summed in another order, so a run is the same to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class TrimmedEmbedding(nn.Module):
    """Some rows of an embedding; ids stay what they were.

    Args:
        whole: the embedding; not changed.
        used: ids that will be looked up.

    Raises:
        IndexError: on the CPU, when another id is looked up.

    >>> whole = nn.Embedding(9, 2)
    >>> trimmed, ids = TrimmedEmbedding(whole, [0, 7, 3]), torch.tensor([[3, 7]])
    >>> trimmed.weight.shape, torch.equal(trimmed(ids), whole(ids))
    (torch.Size([4, 2]), True)
    >>> torch.equal(trimmed.state_dict()["weight"], whole.weight)
    True
    """

    whole: Tensor
    used: Tensor
    rows: Tensor

    def __init__(self, whole: nn.Embedding, used: Iterable[int]) -> None:
        super().__init__()
        table = whole.weight.detach()
        ids = torch.tensor(sorted(set(used)), device=table.device)
        rows = torch.full((len(table),), len(table), device=table.device)  # past the end: refused
        rows[ids] = torch.arange(len(ids), device=table.device)
        for name, value in (("whole", table.clone()), ("used", ids), ("rows", rows)):
            self.register_buffer(name, value, persistent=False)
        self.weight = nn.Parameter(
            torch.cat([table[ids], torch.ones_like(table[:1])]), whole.weight.requires_grad
        )
        pad = whole.padding_idx
        self.padding_idx = None if pad is None or pad not in set(used) else int(rows[pad])

    @property
    def left_out(self) -> int:
        """Numbers of the table that are not in `weight`."""
        return self.whole.numel() - self.weight.numel()

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors [..., H] of ids [...]."""
        return nn.functional.embedding(self.rows[ids], self.weight, self.padding_idx)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        weight = self.weight.detach()
        table = self.whole * weight[-1]
        table[self.used] = weight[:-1]
        destination[prefix + "weight"] = table

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        table = state_dict[prefix + "weight"].to(self.whole)
        with torch.no_grad():
            self.whole.copy_(table)
            self.weight.copy_(torch.cat([table[self.used], torch.ones_like(table[:1])]))


def trim(encoder: Any, used: Iterable[int]) -> None:
    """Leave the other tokens' word embeddings out of a BERT's parameters, in place.

    >>> from transformers import BertConfig, BertModel
    >>> shape = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    >>> bert = BertModel(shape)
    >>> trim(bert, [0, 1, 2])
    >>> bert.embeddings.word_embeddings.weight.shape
    torch.Size([4, 8])
    """
    embeddings = encoder.embeddings
    embeddings.word_embeddings = TrimmedEmbedding(embeddings.word_embeddings, used)
