"""AdamW inside `GradientSurgery`, and the learning-rate schedule.

With `layer_decay` each layer's rate is a fraction of the rate of the layer above it (Howard & Ruder
2018, section 3.2, where it is 1 / 2.6): what lies deeper is more general and should change
less. In an encoder of L layers, heads and all else above the layers learn at the full rate, the top
layer at layer_decay times that, the bottom one at layer_decay^L, the embeddings at
layer_decay^(L + 1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.training.sham import Sham
from gradsurgery import GradientSurgery, GradVac, Method, PCGrad, Sum

# name -> the library's method, from the settings that concern it
METHODS: dict[str, Callable[[Config], Method]] = {
    "sum": lambda config: Sum(),
    "pcgrad": lambda config: PCGrad(seed=config.seed),
    "gradvac": lambda config: GradVac(
        beta=config.gradvac_beta,
        update="always" if config.gradvac_update == "always" else "on_alter",
        target=config.gradvac_target,
        seed=config.seed,
    ),
    "sham": lambda config: Sham(seed=config.seed),
}


def build_optimizer(
    config: Config, model: nn.Module, process_group: Any = None, method: Method | None = None
) -> GradientSurgery:
    """AdamW under gradient surgery, for every parameter that trains.

    It is a `torch.optim.Optimizer` like any other: the scheduler and the gradient scaler take it as
    they would AdamW. With a process group, each task's gradient is averaged over it. A `method`
    stands in for the one that the settings name.
    """
    groups = decay_groups(model, config.weight_decay, config.lr, config.layer_decay)
    return GradientSurgery(
        torch.optim.AdamW(groups, lr=config.lr, fused=True),
        method or METHODS[config.method](config),
        tasks=config.trained,
        grouping=config.grouping,
        process_group=process_group,
    )


def decay_groups(
    model: nn.Module, weight_decay: float, lr: float | None = None, layer_decay: float = 1.0
) -> list[dict[str, object]]:
    """Two parameter groups for each depth: matrices with weight decay, vectors without.

    Vectors are biases and LayerNorm, whose scale means something, and single numbers that are
    learned, like a log-variance. Parameters travel with their names, from which `grouping="layer"`
    knows where a layer begins. Without layer decay all depths are one and the groups name no rate
    of their own; with it, depths come from the top down, so group 0 has the full rate.

    >>> [len(group["params"]) for group in decay_groups(nn.Linear(2, 2), 0.01)]
    [1, 1]
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ConfigError("nothing to train: the encoder is frozen and no head has parameters")
    if layer_decay == 1.0:
        return _by_shape(named, weight_decay)
    assert lr is not None, "layer_decay is a fraction of lr"
    # Counted in all parameters: a layer that does not train still lies between two that do.
    layers = number_of_layers(name for name, _ in model.named_parameters())
    depths = [distance(name, layers) for name, _ in named]
    return [
        {**group, "lr": lr * layer_decay**depth}
        for depth in sorted(set(depths))
        for group in _by_shape(
            [entry for entry, its_depth in zip(named, depths, strict=True) if its_depth == depth],
            weight_decay,
        )
    ]


def _by_shape(
    named: list[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, object]]:
    matrices = [(name, p) for name, p in named if p.ndim > 1]
    vectors = [(name, p) for name, p in named if p.ndim <= 1]
    groups = ((matrices, weight_decay), (vectors, 0.0))
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


LAYER = re.compile(r"\bencoder\.layer\.(\d+)\.")  # transformers' name of a layer of BERT
EMBEDDINGS = re.compile(r"\bembeddings\.")


def number_of_layers(names: Iterable[str]) -> int:
    """Number of layers of the encoder with these parameters.

    >>> number_of_layers(["encoder.encoder.layer.5.output.dense.bias", "heads.sst.weight"])
    6
    """
    matches = filter(None, map(LAYER.search, names))
    return max((int(match[1]) + 1 for match in matches), default=0)


def distance(name: str, layers: int) -> int:
    """Distance of a parameter from the heads: 0 outside the layers, 1 in the top layer.

    A layer's adapters lie in their layer. What adapters share among layers, the pooler and all that
    is learned after the encoder lie outside.

    >>> names = ("layer.11.attention.self.query.weight", "layer.0.output.dense.bias")
    >>> [distance("encoder.encoder." + name, 12) for name in names]
    [1, 12]
    >>> distance("encoder.embeddings.LayerNorm.bias", 12), distance("heads.sst.weight", 12)
    (13, 0)
    """
    if match := LAYER.search(name):
        return layers - int(match[1])
    return layers + 1 if EMBEDDINGS.search(name) else 0


def build_scheduler(config: Config, optimizer: GradientSurgery, steps: int) -> LambdaLR:
    """Each group's learning rate as a fraction of its peak, as a function of the steps taken."""
    return LambdaLR(optimizer, lr_curve(config.schedule, int(config.warmup * steps), steps))


def lr_curve(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
    """Factor that rises to 1 in `warmup` steps, then falls to 0 at `steps` or stays ("constant").

    >>> curve = lr_curve("linear", warmup=2, steps=6)
    >>> [round(curve(step), 2) for step in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    def factor(step: int) -> float:
        # Step 0 already moves: (step + 1), or the first batch of every run would be wasted.
        if step < warmup:
            return (step + 1) / warmup
        if schedule == "constant":
            return 1.0
        return max(0.0, (steps - step) / max(1, steps - warmup))

    return factor
