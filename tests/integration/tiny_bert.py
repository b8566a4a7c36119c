"""A BERT of two layers with a head per task, for what wraps or changes a transformers model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from tests.integration.by_hand import TASKS, distance

CONFIG = BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
)


def trunk() -> BertModel:
    """With BERT's dropout of 0.1, in training mode."""
    torch.manual_seed(0)
    return BertModel(CONFIG).train()


class Tasks(nn.Module):
    """The trunk, and a head per task: the same at first, so that other goals mean a conflict."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert
        self.heads = nn.ModuleDict()
        for task in TASKS:
            torch.manual_seed(1)
            self.heads[task] = nn.Linear(16, 1)

    def forward(self, ids: Tensor, task: str) -> Tensor:
        out: Tensor = self.heads[task](self.bert(input_ids=ids).pooler_output)
        return out


def separate(model: nn.Module, step: int, task: str) -> Tensor:
    """A batch of the task's own; its dropout depends on step and task alone."""
    seed = 10 * step + TASKS.index(task)
    ids = torch.randint(40, (4, 10), generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    return distance(model(ids, task), task)
