"""One encoder, a sentence model, a head and a loss per task, and the weights of the losses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from bert_mtl_demo.config import Config
from bert_mtl_demo.data.tokenization import Batch
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.model.heads import build_head
from bert_mtl_demo.model.losses import LossInputs, loss_of
from bert_mtl_demo.model.pooling import SentenceModel, needs_pooler
from bert_mtl_demo.model.weighting import build_weighting

# The modules and parameters that have an entry for each task.
TASK_MODULES = ("heads", "adapters", "log_variance")


class MultitaskModel(nn.Module):
    """A BERT shared by all tasks.

    `model(task, batch)` is the head's answer, `model.loss(task, batch, epoch)` the task's own loss,
    `model.weighting(task, loss, sizes)` what is minimised. With a frozen encoder its vectors are
    fixed features: it runs without dropout, and without a graph unless it has adapters, which
    train. The encoder is changed in place by `adapter` and `encoder_dropout`.

    >>> from transformers import BertConfig, BertModel
    >>> shape = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    >>> model = MultitaskModel(Config(), BertModel(shape, add_pooling_layer=False))
    >>> ones = torch.ones(2, 3, dtype=torch.int64)
    >>> model("sst", Batch(ones, ones, labels=torch.tensor([0, 4]))).shape
    torch.Size([2, 5])
    """

    def __init__(self, config: Config, encoder: Any) -> None:
        super().__init__()
        shape = encoder.config
        if config.pairs != "siamese" and shape.type_vocab_size < 2:
            raise ConfigError(
                f"pairs = {config.pairs}: this encoder knows {shape.type_vocab_size} type of "
                "token, and a pair in one row has two. Use --pairs siamese, or another encoder."
            )
        self.config = config
        self.encoder = encoder
        self.encoder.requires_grad_(not config.freeze_encoder)
        self.tasks = config.definitions
        self.pool = SentenceModel(config.poolings, shape.hidden_size, config.dropout)
        self.heads = nn.ModuleDict(
            {
                name: build_head(task, config, self.pool.width, shape.hidden_size)
                for name, task in self.tasks.items()
            }
        )
        self.weighting = build_weighting(config.weighting, tuple(self.tasks.values()))
        self.losses = {name: loss_of(task, config) for name, task in self.tasks.items()}
        if config.encoder_dropout is not None:
            set_dropout(encoder, config.encoder_dropout)
        # Last, so that one seed gives the same heads with adapters and without.
        self.adapters = self._attach()
        self._hold(config.untrained)

    def _attach(self) -> list[nn.Module]:
        """The modules that adapters add to the encoder; a list, since they are registered there."""
        if self.config.adapter == "none":
            return []
        from bert_mtl_demo.model.adapters import attach

        before = set(self.encoder.modules())
        attach(self.encoder, self.config.tasks, self.config.adapter, self.config.adapter_size)
        return [module for module in self.encoder.modules() if module not in before]

    def _hold(self, tasks: Sequence[str]) -> None:
        """Freeze the parameters of tasks that are only scored."""
        for name, parameter in self.named_parameters():
            parts = name.split(".")
            owners = {task for key, task in pairwise(parts) if key in TASK_MODULES}
            if not owners.isdisjoint(tasks):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> MultitaskModel:
        """Set the mode; the weights of a frozen encoder stay in evaluation mode."""
        super().train(mode)
        if self.config.freeze_encoder:
            self.encoder.eval()
            for module in self.adapters:
                module.training = mode
        return self

    def sentences(self, batch: Batch) -> Tensor:
        """One vector per row of the batch, [B or 2B, width of the sentence model]."""
        if batch.vectors is not None:
            return batch.vectors
        assert batch.ids is not None, "this batch holds pairs in one row only"
        assert batch.mask is not None, "as above"
        hidden, pooled = self._encode(input_ids=batch.ids, attention_mask=batch.mask)
        vectors: Tensor = self.pool(hidden, batch.mask, pooled)
        return vectors

    def crossed(self, batch: Batch) -> Tensor:
        """The [CLS] vector of each pair as one row, [B, H]; the pooler's, if `pooling` has it."""
        assert batch.cross is not None, "this batch holds no pairs in one row"
        rows = batch.cross
        hidden, pooled = self._encode(
            input_ids=rows.ids, attention_mask=rows.mask, token_type_ids=rows.types
        )
        return hidden[:, 0] if pooled is None or not needs_pooler(self.config) else pooled

    def forward(self, task: str, batch: Batch) -> Tensor:
        """Logits [B, C] or [B] of a task of classes, scores [B] of a task of regression."""
        return self._answer(task, self._vectors(task, batch))

    def loss(self, task: str, batch: Batch, epoch: int = 1) -> Tensor:
        """The task's own loss, a scalar; some losses change with the epoch, counted from 1."""
        vectors = self._vectors(task, batch)
        answer = self._answer(task, vectors)
        apart = self.tasks[task].pair and self.config.pairs == "siamese"
        u, v = vectors if apart else (None, None)
        return self.losses[task](
            LossInputs(answer, batch.labels, u, v, self.heads[task], epoch, self.config.temperature)
        )

    def _vectors(self, task: str, batch: Batch) -> tuple[Tensor, ...]:
        """The inputs of the task's head: u, or u and v, or w, or u and v and w."""
        with self._chosen(task):
            if not self.tasks[task].pair:
                return (self.sentences(batch),)
            crossed = () if self.config.pairs == "siamese" else (self.crossed(batch),)
            if self.config.pairs == "cross":
                return crossed
            u, v = self.sentences(batch).chunk(2)
            return (u, v, *crossed)

    def _answer(self, task: str, vectors: tuple[Tensor, ...]) -> Tensor:
        answer: Tensor = self.heads[task](*vectors)
        return answer

    def _encode(self, **rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Token vectors [R, T, H], and the pooler's [R, H] if the encoder has one."""
        learns = bool(self.adapters) or not self.config.freeze_encoder
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            output = self.encoder(**rows)
        return output.last_hidden_state, output.pooler_output

    def _chosen(self, task: str) -> AbstractContextManager[None]:
        if not self.adapters:
            return nullcontext()
        from bert_mtl_demo.model.adapters import active

        return active(self.encoder, task)


def set_dropout(encoder: Any, probability: float) -> None:
    """Give every dropout of a BERT another probability, in place.

    Attention reads its own from its dropout module at each call, whichever kernel it runs in; the
    config is changed as well, because parts that are added later read it there.

    >>> from transformers import BertConfig, BertModel
    >>> shape = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    >>> bert = BertModel(shape)
    >>> set_dropout(bert, 0.5)
    >>> {part.p for part in bert.modules() if isinstance(part, nn.Dropout)}
    {0.5}
    """
    for part in encoder.modules():
        if isinstance(part, nn.Dropout):
            part.p = probability
    encoder.config.hidden_dropout_prob = probability
    encoder.config.attention_probs_dropout_prob = probability


def new_model(config: Config, encoder: Any) -> MultitaskModel:
    """A model whose heads depend on the seed alone, not on what was drawn before."""
    torch.manual_seed(config.seed)
    return MultitaskModel(config, encoder)
