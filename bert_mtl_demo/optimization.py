"""What moves the weights: AdamW inside `GradientSurgery`, and a rate that rises and falls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import ConfigError
from gradsurgery import GradientSurgery, GradVac, PCGrad, Sum

# name -> the library's method, from the settings that concern it
METHODS: dict[str, Callable[[Config], Sum | PCGrad | GradVac]] = {
    "sum": lambda config: Sum(),
    "pcgrad": lambda config: PCGrad(seed=config.seed),
    "gradvac": lambda config: GradVac(
        beta=config.gradvac_beta,
        update="always" if config.gradvac_update == "always" else "on_alter",
        target=config.gradvac_target,
        seed=config.seed,
    ),
}


def build_optimizer(config: Config, model: nn.Module) -> GradientSurgery:
    """AdamW under gradient surgery, for every parameter that trains.

    It is a `torch.optim.Optimizer` like any other: the scheduler and the gradient scaler take it as
    they would AdamW.
    """
    return GradientSurgery(
        torch.optim.AdamW(decay_groups(model, config.weight_decay), lr=config.lr, fused=True),
        METHODS[config.method](config),
        tasks=config.tasks,
        grouping=config.grouping,
    )


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two parameter groups: matrices with weight decay, vectors without.

    Vectors are biases and LayerNorm, whose scale means something. Parameters travel with their
    names, from which `grouping="layer"` knows where a layer begins.

    >>> [len(group["params"]) for group in decay_groups(nn.Linear(2, 2), 0.01)]
    [1, 1]
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ConfigError("nothing to train: the encoder is frozen and no head has parameters")
    matrices = [(name, p) for name, p in named if p.ndim > 1]
    vectors = [(name, p) for name, p in named if p.ndim <= 1]
    groups = ((matrices, weight_decay), (vectors, 0.0))
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def build_scheduler(config: Config, optimizer: GradientSurgery, steps: int) -> LambdaLR:
    """The learning rate as a share of its peak, as a function of the steps taken."""
    return LambdaLR(optimizer, lr_curve(config.schedule, int(config.warmup * steps), steps))


def lr_curve(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
    """From 0 up to 1 in `warmup` steps, then down to 0 at `steps` ("linear") or level ("constant").

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
