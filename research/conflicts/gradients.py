"""One task's gradient on one micro-batch: model and data as a run has them, examples drawn anew.

A run reads its examples pass by pass, each once, batches of similar length. Here every example is
drawn independently and uniformly from the training set, with replacement: then batches are truly
independent, and products of their gradients are unbiased for products of the expected ones. Passes
would not do, as distinct examples of a finite set are negatively correlated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bert_mtl_demo.config import Config
from bert_mtl_demo.data.tokenization import EncodedSet, encode
from bert_mtl_demo.model.encoder import load_encoder, load_tokenizer, locate
from bert_mtl_demo.model.multitask import new_model
from bert_mtl_demo.model.pooling import needs_pooler
from bert_mtl_demo.pretraining import pretrained
from bert_mtl_demo.runtime import choose_device
from bert_mtl_demo.tasks import resolve
from bert_mtl_demo.training.run import load_splits


@dataclass(frozen=True)
class Material:
    """The model of a run before its first step, and its training sets."""

    config: Config
    model: Any
    sets: Mapping[str, EncodedSet]
    device: torch.device


def load_material(config: Config) -> Material:
    """Model and training sets as `run.start_run` begins with."""
    device = choose_device(config.device)
    splits, skipped = load_splits(config)
    source = pretrained(config, locate(config.encoder), device, skipped=skipped)
    tokenizer = load_tokenizer(source)
    sets = {
        task.name: encode(splits[task.name].train, task, tokenizer, config.max_length, config.pairs)
        for task in resolve(config.trained)
    }
    encoder = load_encoder(source, pooler=needs_pooler(config), layers=config.encoder_layers)
    model = new_model(config, encoder).to(device)
    return Material(config, model, sets, device)


class Sampler:
    """Gradients of the encoder on independent micro-batches.

    Args:
        material: whose model is to be in the mode and state in which it is to be probed.
        seed: of the examples; dropout follows torch's own generator.
    """

    def __init__(self, material: Material, seed: int) -> None:
        self.material = material
        self.tasks = list(material.sets)
        parameters = shared(material.model)
        self.parameters = [parameter for _, parameter in parameters]
        self.segments = list(dict.fromkeys(layer_of(name) for name, _ in parameters))
        self.segment_of = [self.segments.index(layer_of(name)) for name, _ in parameters]
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> list[list[Tensor]]:
        """A fresh micro-batch of every task, and its gradients: [K][P], new tensors."""
        return [self._gradient(task) for task in self.tasks]

    def _gradient(self, task: str) -> list[Tensor]:
        examples, material = self.material.sets[task], self.material
        size = (material.config.batch_size,)
        indices = torch.randint(len(examples), size, generator=self.generator).tolist()
        loss = material.model.loss(task, examples.collate(indices, material.device))
        # What a task does not touch (types in a siamese model, say) is zero and not absent.
        return list(torch.autograd.grad(loss, self.parameters, materialize_grads=True))


def shared(model: Any) -> list[tuple[str, nn.Parameter]]:
    """The trained parameters of the encoder by name, in which all tasks have a part."""
    return [(name, p) for name, p in model.encoder.named_parameters() if p.requires_grad]


def layer_of(name: str) -> str:
    """The part of the encoder that a parameter belongs to.

    >>> layer_of("encoder.layer.0.output.dense.weight"), layer_of("embeddings.LayerNorm.bias")
    ('layer 1', 'embeddings')
    """
    numbered = re.search(r"\blayer\.(\d+)\.", name)
    if numbered:
        return f"layer {int(numbered.group(1)) + 1}"
    return "embeddings" if "embeddings." in name else name.split(".")[0]
