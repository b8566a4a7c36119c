"""Task-specific parts inside every BERT layer: projected attention layers, or low-rank ones.

Stickland & Murray (2019), "BERT and PALs", section 3.2: all tasks share BERT, and each adds a small
function of its own beside every layer, in the sum before the layer's last LayerNorm:

    LN(FFN(a) + a + TS_task(h))      h the layer's input, a what comes out of its attention block

- `pals`: TS(h) = gelu(V_D MH(V_E h)). The encoder V_E [H -> s] and the decoder V_D [s -> H] exist
  once per task and serve all layers; MH is an attention of width s with BERT's number of heads and
  no output projection, one per task and layer.
- `low_rank`: TS(h) = V_D V_E h, both matrices per task and layer. (Linear, as the name says; the
  paper's published implementation has a GELU between the two.)

At H = 768 the paper's sizes are s = 204 and s = 100; both make eight tasks cost 1.13 BERTs.

Where the paper leaves room, its published implementation decides: every matrix is a linear layer
with a bias, GELU is the exact one, and the only dropout is that of BERT's attention, on MH's
probabilities. New weights are N(0, .02) and biases 0, as BERT's own were. With LayerNorm's unit
inputs at H = 768 a term then starts at a hundredth (pals) or a tenth (low_rank) of what it is added
to, so training begins close to the pretrained function, yet no factor is zero, and all of them have
a gradient from the first step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.bert.modeling_bert import BertLayer

from bert_mtl_demo.errors import ConfigError, EncoderError, unknown

SIZES = {"pals": 204, "low_rank": 100}  # at width 768, the paper's
# Their layers hand the mask on in a form that `scaled_dot_product_attention` takes as it is: None,
# bool [B, 1, T, T] with True for what may be seen (sdpa), or the same to be added (eager).
ATTENTIONS = ("sdpa", "eager")


class Projection(nn.Module):
    """V_E [H -> s] and V_D [s -> H]; called, it is the low-rank TS(h).

    >>> import torch
    >>> Projection(8, 2)(torch.zeros(1, 3, 8), None).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.encode = nn.Linear(width, size)
        self.decode = nn.Linear(size, width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, H] -> [B, T, H]; each token by itself, so the mask is of no concern."""
        term: Tensor = self.decode(self.encode(hidden))
        return term


class ProjectedAttention(nn.Module):
    """The PAL of one task in one layer: its own attention between its task's V_E and V_D.

    >>> import torch
    >>> pal = ProjectedAttention(Projection(8, 4), size=4, heads=2, dropout=0.1)
    >>> pal(torch.zeros(1, 3, 8), None).shape
    torch.Size([1, 3, 8])
    >>> [name for name, _ in pal.named_children()]
    ['query', 'key', 'value', 'dropout']
    """

    def __init__(self, shared: Projection, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        # In a tuple, so that it is not registered here as well: it belongs to the encoder, and a
        # state_dict would hold it once per layer.
        self.shared = (shared,)
        self.heads = heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, H] -> [B, T, H], with the mask of BERT's own attention."""
        (shared,) = self.shared
        small = shared.encode(hidden)  # [B, T, s]
        query, key, value = (
            part(small).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, s / heads]
            for part in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=self.dropout.p if self.training else 0.0
        )
        return F.gelu(shared.decode(attended.transpose(1, 2).flatten(2)))


@dataclass
class Selection:
    """The task that runs; one object for all layers of an encoder."""

    task: str | None = None


class AdaptedLayer(BertLayer):  # type: ignore[no-untyped-call]
    """A BertLayer that adds the chosen task's term; `attach` makes it from an existing layer."""

    adapters: nn.ModuleDict  # task -> TS
    selection: Selection

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **kwargs: Any
    ) -> Tensor:
        """[B, T, H] -> [B, T, H]."""
        if self.selection.task is None:
            raise RuntimeError(
                "the encoder has parts of its own for every task, and no task was chosen: call it "
                "inside `with adapters.active(encoder, task):`"
            )
        term = self.adapters[self.selection.task](hidden_states, attention_mask)
        attended, _weights = self.attention(hidden_states, attention_mask, **kwargs)
        # BertOutput is LN(dropout(dense(first)) + second): the term joins the sum, but not the FFN.
        output: Tensor = self.output(self.intermediate(attended), attended + term)
        return output


def attach(encoder: Any, tasks: Sequence[str], kind: str, size: int | None = None) -> None:
    """Give every layer of a BertModel a term per task, in place; they train, whatever BERT does.

    Parameters are in the encoder's `state_dict`, as `encoder.layer.3.adapters.sst...`, and what
    layers share as `adapters.sst...`. Initial values are drawn from torch's generator.

    >>> from transformers import BertConfig, BertModel
    >>> shape = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    >>> bert = BertModel(shape, add_pooling_layer=False)
    >>> attach(bert, ["sst"], "low_rank", 2)
    >>> [name for name in bert.state_dict() if "adapters" in name][::2]
    ['encoder.layer.0.adapters.sst.encode.weight', 'encoder.layer.0.adapters.sst.decode.weight']
    """
    config, layers = encoder.config, encoder.encoder.layer
    _check(encoder, kind)
    size = inner_size(kind, config.hidden_size, config.num_attention_heads, size)
    if kind == "pals":
        # Beside the layers, not in one of them, as no layer owns it more than another.
        encoder.adapters = nn.ModuleDict(
            {task: Projection(config.hidden_size, size) for task in tasks}
        )
    selection = Selection()
    for layer in layers:
        layer.__class__ = AdaptedLayer  # same parts, same names, another sum
        layer.selection = selection
        layer.adapters = nn.ModuleDict()
        for task in tasks:
            layer.adapters[task] = (
                ProjectedAttention(
                    encoder.adapters[task],
                    size,
                    config.num_attention_heads,
                    config.attention_probs_dropout_prob,
                )
                if kind == "pals"
                else Projection(config.hidden_size, size)
            )
    like = encoder.embeddings.word_embeddings.weight
    for module in _homes(encoder):
        module.apply(lambda part: _initialise(part, config.initializer_range))
        module.to(device=like.device, dtype=like.dtype).train(encoder.training)


def inner_size(kind: str, width: int, heads: int, size: int | None = None) -> int:
    """The inner width s: the one asked for, or the paper's in proportion to BERT's width.

    A PAL's is a multiple of the heads: what is scaled is rounded to one, what is asked for has to
    be one.

    >>> inner_size("pals", 768, 12), inner_size("pals", 384, 12), inner_size("low_rank", 384, 12)
    (204, 96, 50)
    >>> inner_size("pals", 768, 12, 100)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bert_mtl_demo.errors.ConfigError: adapter_size = 100: a PAL has as many heads as ...
    """
    step = heads if kind == "pals" else 1
    if size is None:
        return max(1, round(SIZES[kind] * width / 768 / step)) * step
    if size % step:
        lower = size - size % step
        near = f"{lower} or {lower + step}" if lower else f"{step}"
        raise ConfigError(
            f"adapter_size = {size}: a PAL has as many heads as the encoder, {heads}, so its width "
            f"is a multiple of that. Use {near}."
        )
    return size


@contextmanager
def active(encoder: Any, task: str) -> Iterator[None]:
    """Choose the task of the forward passes in the block; without adapters, do nothing.

    >>> from transformers import BertConfig, BertModel
    >>> shape = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    >>> with active(BertModel(shape), "sst"):
    ...     pass
    """
    layer = encoder.encoder.layer[0]
    if not isinstance(layer, AdaptedLayer):
        yield
        return
    if task not in layer.adapters:
        raise ConfigError(f"adapters: {unknown('task', task, layer.adapters)}")
    selection, before = layer.selection, layer.selection.task
    selection.task = task
    try:
        yield
    finally:
        selection.task = before


def adapter_parameters(encoder: Any) -> Iterator[nn.Parameter]:
    """Everything that `attach` added, each parameter once; nothing when it added nothing."""
    for module in _homes(encoder):
        yield from module.parameters()


def _homes(encoder: Any) -> list[nn.ModuleDict]:
    owners = (encoder, *encoder.encoder.layer)
    return [owner.adapters for owner in owners if hasattr(owner, "adapters")]


def _check(encoder: Any, kind: str) -> None:
    if kind not in SIZES:
        raise ConfigError(f"adapter: {unknown('kind', kind, SIZES)}")
    if isinstance(encoder.encoder.layer[0], AdaptedLayer):
        raise RuntimeError("the encoder has adapters already; attach them to a fresh one")
    if encoder.config.is_decoder:
        raise EncoderError("adapters are for an encoder, but this BERT has is_decoder = true")
    if encoder.config._attn_implementation not in ATTENTIONS:
        raise EncoderError(
            f"adapters with attention {encoder.config._attn_implementation!r}: a PAL cannot read "
            f"its mask. Load the encoder with attn_implementation {' or '.join(ATTENTIONS)}."
        )


def _initialise(module: nn.Module, deviation: float) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=deviation)
        nn.init.zeros_(module.bias)
