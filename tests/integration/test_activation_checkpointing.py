"""Activation checkpointing: recomputed activations give the same bits, whatever the order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.integration.by_hand import (
    GOALS,
    TASKS,
    adamw,
    batch,
    furthest,
    momentum,
    same_bits,
    train,
    train_by_hand,
    wrapped,
)

STEPS = range(3)

# None: no checkpointing; otherwise checkpoint's use_reentrant.
MODES = {"reentrant": True, "non-reentrant": False}


class Blocks(nn.Module):
    """Two blocks with dropout, recomputed in the backward; an answer per task."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reentrant, self.runs = reentrant, 0
        self.first = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.2)) for _ in range(2)
        )
        self.heads = nn.ModuleDict({task: nn.Linear(16, 1) for task in TASKS})

    def _block(self, hidden: Tensor, index: int) -> Tensor:
        self.runs += 1
        out: Tensor = self.blocks[index](hidden)
        return out

    def hidden(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.first(x)
        for index in range(2):
            if self.reentrant is None:
                hidden = self._block(hidden, index)
            else:
                hidden = checkpoint(self._block, hidden, index, use_reentrant=self.reentrant)
        return hidden


def loss_of(model: Blocks, hidden: Tensor, task: str) -> Tensor:
    return (model.heads[task](hidden) - GOALS[task]).square().mean()


def separate(model: Blocks, step: int, task: str) -> Tensor:
    """A batch of the task's own, and dropout that depends on step and task alone."""
    torch.manual_seed(10 * step + TASKS.index(task))
    return loss_of(model, model.hidden(batch(step, task)), task)


def joined(model: Blocks, step: int, one_forward: bool) -> list[Tensor]:
    if not one_forward:
        return [separate(model, step, task) for task in TASKS]
    torch.manual_seed(step)
    hidden = model.hidden(batch(step, "a"))
    return [loss_of(model, hidden, task) for task in TASKS]


@pytest.mark.parametrize("mode", MODES)
def test_a_backward_per_task(mode: str) -> None:
    checkpointed, kept = Blocks(MODES[mode]), Blocks(None)
    for model in (checkpointed, kept):
        train(model, wrapped(adamw(model.parameters())), STEPS, separate)
    assert same_bits(checkpointed, kept)
    assert checkpointed.runs == 2 * kept.runs  # so that it did recompute


def test_it_is_the_loop_by_hand() -> None:
    model, plain = Blocks(False), Blocks(None)
    train(model, wrapped(momentum(model.parameters())), STEPS, separate)
    train_by_hand(plain, momentum(plain.parameters()), STEPS, separate)
    assert furthest(model, plain) < 1e-6


@pytest.mark.parametrize("one_forward", [False, True], ids=["own forwards", "one forward"])
@pytest.mark.parametrize("mode", MODES)
def test_joined_losses(mode: str, one_forward: bool) -> None:
    """Reentrant checkpoints run a backward inside a backward inside the joined one."""
    checkpointed, kept = Blocks(MODES[mode]), Blocks(None)
    for model in (checkpointed, kept):
        optimizer = wrapped(adamw(model.parameters()))
        for step in STEPS:
            optimizer.join(joined(model, step, one_forward)).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert optimizer.conflicts.summary()["gradients"]["altered"] > 0
    assert same_bits(checkpointed, kept)
    # Each backward recomputes: with one forward for all, K times.
    recomputed = len(TASKS) if one_forward else 1
    assert checkpointed.runs == (1 + recomputed) * kept.runs


@pytest.mark.parametrize("mode", MODES)
def test_a_transformers_model(mode: str) -> None:
    pytest.importorskip("transformers")
    from tests.integration import tiny_bert

    checkpointed, kept = tiny_bert.Tasks(tiny_bert.trunk()), tiny_bert.Tasks(tiny_bert.trunk())
    # Renamed in the course of version 5; the old name goes with version 6.
    enable = getattr(
        checkpointed.bert,
        "activation_checkpointing_enable",
        checkpointed.bert.gradient_checkpointing_enable,
    )
    enable({"use_reentrant": MODES[mode]})
    for model in (checkpointed, kept):
        train(model, wrapped(adamw(model.parameters())), STEPS, tiny_bert.separate)
    assert same_bits(checkpointed, kept)
    assert [m.gradient_checkpointing for m in checkpointed.bert.encoder.layer] == [True, True]
