"""One encoder, a pooling, and a head and a loss per task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bert_mtl_demo.config import Config
from bert_mtl_demo.heads import build_head
from bert_mtl_demo.losses import loss_of
from bert_mtl_demo.pooling import POOLINGS
from bert_mtl_demo.tasks import resolve
from bert_mtl_demo.tokens import Batch


class MultitaskModel(nn.Module):
    """A BERT shared by all tasks.

    `model(task, batch)` is the head's answer, `model.loss(task, batch)` what is minimised. With a
    frozen encoder only the heads train, and the encoder runs without a graph and without dropout:
    its vectors are fixed features.

    >>> from transformers import BertConfig, BertModel
    >>> shape = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    >>> model = MultitaskModel(Config(), BertModel(shape, add_pooling_layer=False))
    >>> ones = torch.ones(2, 3, dtype=torch.int64)
    >>> model("sst", Batch(ones, ones, labels=torch.tensor([0, 4]))).shape
    torch.Size([2, 5])
    """

    def __init__(self, config: Config, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = POOLINGS[config.pooling]
        self.frozen = config.freeze_encoder
        self.encoder.requires_grad_(not self.frozen)
        self.tasks = {task.name: task for task in resolve(config.tasks)}
        width = encoder.config.hidden_size
        self.heads = nn.ModuleDict(
            {
                name: build_head(task, config.sts_head, width, config.dropout)
                for name, task in self.tasks.items()
            }
        )

    def train(self, mode: bool = True) -> MultitaskModel:
        """As in torch, except that a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def sentences(self, batch: Batch) -> Tensor:
        """One vector per row of the batch, [B or 2B, H]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found = self.encoder(input_ids=batch.ids, attention_mask=batch.mask)
            return self.pool(found.last_hidden_state, batch.mask, found.pooler_output)

    def forward(self, task: str, batch: Batch) -> Tensor:
        """Logits [B, C] of a task of classes, scores [B] of a task of similarity."""
        vectors = self.sentences(batch)
        parts = vectors.chunk(2) if self.tasks[task].pair else (vectors,)
        answer: Tensor = self.heads[task](*parts)
        return answer

    def loss(self, task: str, batch: Batch) -> Tensor:
        """The scalar the task is trained to make small."""
        return loss_of(self.tasks[task])(self(task, batch), batch.labels)


def new_model(config: Config, encoder: Any) -> MultitaskModel:
    """A model whose heads depend on the seed alone, not on what was drawn before."""
    torch.manual_seed(config.seed)
    return MultitaskModel(config, encoder)
