"""torch.compile: a compiled model trains as it does uncompiled, with a batch per task or shared."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._functorch import config as functorch

from tests.integration.by_hand import (
    GOALS,
    TASKS,
    Net,
    batch,
    fresh_model,
    furthest,
    momentum,
    separate,
    train,
    train_by_hand,
    wrapped,
)

STEPS = range(3)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before, and torch's setting as it was."""
    before = functorch.donated_buffer
    torch._dynamo.reset()
    yield
    functorch.donated_buffer = before
    torch._dynamo.reset()


def shared(model: nn.Module, step: int) -> dict[str, Tensor]:
    """One forward for all."""
    out = model(batch(step, "a"))
    return {task: (out[:, k] - GOALS[task]).square().mean() for k, task in enumerate(TASKS)}


def shared_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3))


def test_a_batch_per_task() -> None:
    model = fresh_model()
    compiled = torch.compile(model, backend="aot_eager")
    train(compiled, wrapped(momentum(model.parameters())), STEPS)
    plain = fresh_model()
    train_by_hand(plain, momentum(plain.parameters()), STEPS)
    assert furthest(model, plain) < 1e-6


def test_a_model_compiled_in_place() -> None:
    model: Net = fresh_model()
    model.trunk.compile(backend="aot_eager")
    optimizer = wrapped(momentum(model.parameters()))
    for step in STEPS:  # joined: all graphs are there before the first backward
        optimizer.join([separate(model, step, task) for task in TASKS]).backward()
        optimizer.step()
        optimizer.zero_grad()
    plain = fresh_model()
    train_by_hand(plain, momentum(plain.parameters()), STEPS)
    assert furthest(model, plain) < 1e-6


def warmed_up(model: nn.Module, backend: str) -> nn.Module:
    """Compiled, its backward by one that keeps no graph: the case that needs the setting."""
    compiled: nn.Module = torch.compile(model, backend=backend)
    compiled(batch(0, "b")).sum().backward()
    model.zero_grad()
    return compiled


def test_one_forward_for_all_is_refused_by_buffers_that_go() -> None:
    """torch's own error, which names the setting; nothing is left of the step."""
    functorch.donated_buffer = True
    model = shared_model()
    optimizer = wrapped(momentum(model.parameters()))
    joined = optimizer.join(shared(warmed_up(model, "aot_eager"), 0))
    with pytest.raises(RuntimeError, match="donated_buffer=False"):
        joined.backward()
    optimizer.step()  # nothing was left waiting
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler"),
        ),
    ],
)
def test_one_forward_for_all_with_buffers_that_stay(backend: str) -> None:
    functorch.donated_buffer = False
    model, plain = shared_model(), shared_model()
    compiled = warmed_up(model, backend)
    optimizer, reference = (wrapped(momentum(net.parameters())) for net in (model, plain))
    for step in STEPS:
        for net, surgeon in ((compiled, optimizer), (plain, reference)):
            surgeon.join(shared(net, step)).backward()
            surgeon.step()
            surgeon.zero_grad()
    assert optimizer.conflicts.summary()["gradients"]["altered"] > 0
    assert furthest(model, plain) < 1e-6
