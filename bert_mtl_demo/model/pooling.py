"""Pooling: one vector per token to one vector per sentence; five parts, joined end to end.

`mean` is the default because the packaged all-MiniLM was trained under a masked mean, which makes
the cosine of two sentences meaningful before the first step, while its pooler weights were never
trained at all. `pooler` (dense + tanh on [CLS]) is what four of the reports use on BERT-base, where
it was trained by next-sentence prediction. `cnn` and `bilstm` are small networks of their own, over
the token vectors that the encoder gives; all tasks share them, as they share the encoder.

The fifth report (sbert_simcse) joins `mean+cnn+bilstm`. It says at one place that the n-grams of
the CNN "were also fed" to the BiLSTM, and at another that a sentence is the average of BERT's
vectors, the maxima of a CNN over them, and the hidden states of a BiLSTM over them. The second,
which is the definition it gives, is what is built here.

Every part is called with hidden [R, T, H], mask [R, T] and BERT's pooler output [R, H] or None,
gives [R, its width], and looks at real tokens only: padding changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from bert_mtl_demo.config import Config

NGRAMS = (1, 2, 3, 4)


def mean_of_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average over the real tokens: [R, T, H] and [R, T] to [R, H].

    >>> mean_of_tokens(torch.tensor([[[2.0], [4.0], [99.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[3.]])
    """
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # [R, T, 1]
    # A tokenizer always writes [CLS] and [SEP], so the count is never 0.
    return (hidden * weights).sum(1) / weights.sum(1)


class Mean(nn.Module):
    """Average over the real tokens.

    >>> Mean(1)(torch.tensor([[[2.0], [4.0], [99.0]]]), torch.tensor([[1, 1, 0]]), None)
    tensor([[3.]])
    """

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.width = width

    def forward(self, hidden: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor:
        """[R, H]."""
        return mean_of_tokens(hidden, mask)


class Cls(nn.Module):
    """The first token as it is.

    >>> Cls(1)(torch.tensor([[[2.0], [4.0]]]), torch.tensor([[1, 1]]), None)
    tensor([[2.]])
    """

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.width = width

    def forward(self, hidden: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor:
        """[R, H]."""
        return hidden[:, 0]


class Pooler(nn.Module):
    """BERT's own pooler: tanh(W [CLS] + b), whose weights are the encoder's.

    >>> Pooler(1)(torch.zeros(1, 3, 1), torch.ones(1, 3), torch.tensor([[7.0]]))
    tensor([[7.]])
    """

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.width = width

    def forward(self, hidden: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor:
        """[R, H]."""
        assert pooled is not None, "the encoder was built without its pooling layer"
        return pooled


class Cnn(nn.Module):
    """Features of 1- to 4-grams, each where it is strongest: Kim (2014), section 2.

    For n = 1, 2, 3, 4 there are H // 4 filters over n neighbouring tokens, ReLU, and the maximum
    over the sentence, so that the four together are about as wide as the encoder. An n-gram begins
    at every real token and sees zeros past the last one: so a sentence shorter than n has one too,
    and the padding of a batch is never seen.

    >>> Cnn(8, 0.0)(torch.zeros(3, 2, 8), torch.ones(3, 2), None).shape
    torch.Size([3, 8])
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        filters = max(1, width // len(NGRAMS))
        self.filters = nn.ModuleList(nn.Conv1d(width, filters, n) for n in NGRAMS)
        self.dropout = nn.Dropout(dropout)
        self.width = filters * len(NGRAMS)

    def forward(self, hidden: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor:
        """[R, about H]."""
        real = mask.unsqueeze(1).to(hidden.dtype)  # [R, 1, T]
        tokens = hidden.transpose(1, 2) * real  # [R, H, T]
        maxima = [
            # After ReLU nothing is below 0, so a 0 at the padding never is the only maximum.
            (torch.relu(grams(nn.functional.pad(tokens, (0, n - 1)))) * real).amax(-1)
            for n, grams in zip(NGRAMS, self.filters, strict=True)
        ]
        joined: Tensor = self.dropout(torch.cat(maxima, dim=-1))
        return joined


class BiLstm(nn.Module):
    """Last states of an LSTM from the left and one from the right, H // 2 each.

    >>> BiLstm(8, 0.0)(torch.zeros(3, 2, 8), torch.ones(3, 2), None).shape
    torch.Size([3, 8])
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        half = max(1, width // 2)
        self.lstm = nn.LSTM(width, half, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.width = 2 * half

    def forward(self, hidden: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor:
        """[R, about H]."""
        # Packed, or the LSTM from the right would begin in the padding.
        packed = pack_padded_sequence(
            hidden, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False
        )
        _, (last, _) = self.lstm(packed)  # [2, R, H // 2]
        joined: Tensor = self.dropout(torch.cat([last[0], last[1]], dim=-1))
        return joined


# name -> builder(width of the encoder, dropout); a part has `.width`
POOLINGS: dict[str, Callable[[int, float], Any]] = {
    "mean": Mean,
    "cls": Cls,
    "pooler": Pooler,
    "cnn": Cnn,
    "bilstm": BiLstm,
}


class SentenceModel(nn.Module):
    """One vector per sentence: its parts end to end. All tasks share it.

    Args:
        parts: names from `POOLINGS`, in order.
        width: H, of the encoder.
        dropout: in the parts that are networks.

    >>> model = SentenceModel(("mean", "cnn", "bilstm"), width=8, dropout=0.1)
    >>> model.width, model(torch.zeros(3, 5, 8), torch.ones(3, 5), None).shape
    (24, torch.Size([3, 24]))
    """

    def __init__(self, parts: Sequence[str], width: int, dropout: float) -> None:
        super().__init__()
        built = {name: POOLINGS[name](width, dropout) for name in parts}
        self.parts = nn.ModuleDict(built)
        self.width: int = sum(part.width for part in built.values())

    def forward(self, hidden: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor:
        """[R, width] of hidden [R, T, H], mask [R, T] and the pooler's [R, H]."""
        vectors = [part(hidden, mask, pooled) for part in self.parts.values()]
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=-1)


def needs_pooler(config: Config) -> bool:
    """Whether the encoder has to be built with BERT's own pooler.

    >>> needs_pooler(Config(pooling="mean+pooler")), needs_pooler(Config())
    (True, False)
    """
    return "pooler" in config.poolings
