"""Mixed precision: loss scaling changes no bit, and autocast is the loop by hand in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from tests.integration.by_hand import (
    TASKS,
    Loss,
    adamw,
    fresh_model,
    furthest,
    momentum,
    same_bits,
    separate,
    train,
    train_by_hand,
    wrapped,
)

STEPS = range(5)
Build = Callable[..., torch.optim.Optimizer]

BASES: dict[str, Build] = {
    "single": adamw,
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, fused=True),
    "fused SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, fused=True),
    "foreach": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, foreach=True),
}


def bf16() -> AbstractContextManager[None]:
    return torch.autocast("cpu", torch.bfloat16)


def halved(model: nn.Module, step: int, task: str) -> Tensor:
    with bf16():
        return separate(model, step, task)


def trained(build: Build, scale: float | None, unscale: bool, loss: Loss) -> nn.Module:
    """Train with a loss scale that doubles every other step, or without any."""
    model = fresh_model()
    optimizer = wrapped(build(model.parameters()))
    scaler = torch.amp.GradScaler(
        "cpu", enabled=scale is not None, init_scale=scale or 1.0, growth_interval=2
    )
    for step in STEPS:
        joined = optimizer.join([loss(model, step, task) for task in TASKS])
        scaler.scale(joined).backward()
        if unscale:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    if scale is not None:
        assert scaler.get_scale() == 4 * scale
    assert optimizer.conflicts.summary()["gradients"]["altered"] > 0
    return model


@pytest.mark.parametrize("unscale", [False, True], ids=["as it comes", "unscaled and clipped"])
@pytest.mark.parametrize("base", BASES)
def test_a_loss_scale_changes_no_bit(base: str, unscale: bool) -> None:
    """Powers of two scale exactly; a fused base must not be left to unscale by itself as well."""
    scaled, plain = (trained(BASES[base], s, unscale, halved) for s in (2.0**10, None))
    assert same_bits(scaled, plain)


def test_bf16_autocast_is_the_loop_by_hand_under_autocast() -> None:
    model, plain = fresh_model(), fresh_model()
    train(model, wrapped(momentum(model.parameters())), STEPS, halved)
    train_by_hand(plain, momentum(plain.parameters()), STEPS, halved)
    assert furthest(model, plain) < 1e-6
    other = fresh_model()
    train(other, wrapped(momentum(other.parameters())), STEPS)
    assert furthest(model, other) > 1e-4  # so autocast was on
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("around", [True, False], ids=["all forwards", "each forward"])
def test_where_autocast_begins_makes_no_difference(around: bool) -> None:
    """Around all of them, the graphs share autocast's copies of the weights."""
    joined, apart = fresh_model(), fresh_model()
    optimizer = wrapped(adamw(joined.parameters()))
    for step in STEPS:
        with bf16() if around else nullcontext():
            losses = [(separate if around else halved)(joined, step, task) for task in TASKS]
        optimizer.join(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
    train(apart, wrapped(adamw(apart.parameters())), STEPS, halved)
    assert same_bits(joined, apart)
