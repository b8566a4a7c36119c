"""Encoders of published shapes, and lists of parameters without values.

Shapes and names are those of ``transformers.BertModel``, read off the meta device. Besides them
there are thousands of tiny tensors, and vectors cut into equal slices.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch


class Shape(NamedTuple):
    """An encoder's sizes; intermediate layers are four times as wide."""

    width: int
    layers: int
    heads: int
    vocabulary: int = 30522
    positions: int = 512


ENCODERS = {
    "mini": Shape(32, 1, 2, vocabulary=100, positions=32),  # for smoke runs
    "minilm": Shape(384, 6, 12),
    "bert-base": Shape(768, 12, 12),
    "bert-large": Shape(1024, 24, 16),
}

#: Lists of vectors of 1 to 64 elements, where calls cost more than bytes.
CRUMBS = {"100 tiny tensors": 100, "10000 tiny tensors": 10_000}


class Parameters(NamedTuple):
    """Names and shapes of a model's parameters."""

    names: list[str]
    shapes: list[torch.Size]

    @property
    def elements(self) -> int:
        """N."""
        return sum(shape.numel() for shape in self.shapes)


@cache
def parameters(name: str) -> Parameters:
    """Return the parameters called ``name``, of :data:`ENCODERS` or :data:`CRUMBS`."""
    if name in CRUMBS:
        shapes = [torch.Size([1 + (37 * i) % 64]) for i in range(CRUMBS[name])]
        return Parameters([f"layer.{i // 100}.tensor_{i}" for i in range(len(shapes))], shapes)
    with torch.device("meta"):
        named = list(encoder(name).named_parameters())
    return Parameters([n for n, _ in named], [p.shape for _, p in named])


def sliced(elements: int, size: int) -> Parameters:
    """Return exactly ``elements``, in vectors of ``size`` and a rest."""
    shapes = [torch.Size([size])] * (elements // size)
    rest = elements % size
    shapes += [torch.Size([rest])] if rest else []
    return Parameters([f"slice.{i}" for i in range(len(shapes))], shapes)


def encoder(name: str, dropout: float = 0.1) -> Any:
    """Return a ``BertModel`` without pooler, untrained."""
    from transformers import BertConfig, BertModel  # slow to import, and gradients need no model

    shape = ENCODERS[name]
    config = BertConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertModel(config, add_pooling_layer=False)
