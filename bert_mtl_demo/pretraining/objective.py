"""The objective of a stage: its encoder, a head that is thrown away, its data and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bert_mtl_demo.config import Config
from bert_mtl_demo.data import Examples
from bert_mtl_demo.data.tokenization import pad_rows, tokenise
from bert_mtl_demo.model.encoder import Source
from bert_mtl_demo.model.pooling import mean_of_tokens


@dataclass(frozen=True)
class Start:
    """The inputs of a stage.

    Args:
        config: the settings of the run.
        source: where the encoder was loaded from.
        encoder: a BertModel with its pooler, which no stage trains and every stage hands on.
        tokenizer: the one that belongs to it.
    """

    config: Config
    source: Source
    encoder: Any
    tokenizer: Any


class Objective(nn.Module, ABC):
    """A loss with its data.

    Attributes:
        encoder: what is kept.
        lengths: tokens of each of the N rows, so that a batch can hold rows of like length.
        remark: a sentence for the person who watches, or "".
    """

    def __init__(self, encoder: Any, lengths: Sequence[int], remark: str = "") -> None:
        super().__init__()
        self.encoder = encoder
        self.lengths = list(lengths)
        self.remark = remark

    @abstractmethod
    def loss(self, indices: Sequence[int]) -> Tensor:
        """The mean loss of these rows, a scalar in float32."""


@dataclass(frozen=True)
class Pairs:
    """The token ids of N pairs of sentences.

    >>> Pairs([[2, 9, 3]], [[2, 8, 7, 3]], pad=0).lengths()
    [4]
    """

    first: list[list[int]]
    second: list[list[int]]
    pad: int

    @classmethod
    def of(cls, examples: Examples, start: Start) -> Pairs:
        """The sentences of some examples, tokenised."""
        assert examples.second is not None
        first, second = (
            tokenise(start.tokenizer, texts, start.config.max_length)
            for texts in (examples.first, examples.second)
        )
        return cls(first, second, start.tokenizer.pad_token_id)

    def lengths(self) -> list[int]:
        """Tokens of each pair's longer sentence: it sets the padding."""
        return [max(len(u), len(v)) for u, v in zip(self.first, self.second, strict=True)]

    def vectors(self, encoder: Any, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Both sentence vectors of the pairs at `indices`, [B, H] and [B, H] float32.

        They go through the encoder as 2B rows at once, each row with its own dropout mask.
        """
        rows = [self.first[i] for i in indices] + [self.second[i] for i in indices]
        ids, mask = (part.to(encoder.device) for part in pad_rows(rows, self.pad))
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        u, v = mean_of_tokens(hidden.float(), mask).chunk(2)
        return u, v
