"""Fabric is bitwise the plain loop, with ``join``, ``task`` and ``combine`` on what it set up."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from lightning.fabric import Fabric

from gradsurgery import GradientSurgery
from tests.gradsurgery.problems import same
from tests.integration import lightning_ranks
from tests.integration.by_hand import TASKS, distance, fresh_model
from tests.integration.lightning_problem import (
    decay,
    loader,
    losses_of,
    plain_loop,
    surgery,
)

CLIP = 0.3  # binds in this problem


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Without the lines on devices and precision."""
    caplog.set_level(logging.WARNING, logger="lightning.fabric")


class Run:
    """A model and its optimizer, set up by Fabric, with the loop of the recipe."""

    def __init__(self, precision: Any = "32-true") -> None:
        self.fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        self.bare = fresh_model()
        self.surgeon = surgery(self.bare)
        self.schedule = decay(self.surgeon)
        self.model, self.optimizer = self.fabric.setup(self.bare, self.surgeon)
        self.data = self.fabric.setup_dataloaders(loader())

    def epochs(
        self, count: int, joins: bool = True, accumulate: int = 1, clip: float | None = None
    ) -> None:
        for _ in range(count):
            for index, batch in enumerate(self.data):
                last = (index + 1) % accumulate == 0 or index + 1 == len(self.data)
                self.backward(batch, joins, accumulate, last)
                if not last:
                    continue
                if clip:
                    self.fabric.clip_gradients(self.model, self.optimizer, max_norm=clip)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()

    def backward(
        self, batch: dict[str, torch.Tensor], joins: bool, accumulate: int, last: bool
    ) -> None:
        if joins:
            joined = self.optimizer.join(losses_of(self.model, batch), combine=last)
            self.fabric.backward(joined / accumulate)
            return
        for task in TASKS:
            with self.optimizer.task(task):
                loss = distance(self.model(batch[task], task), task)
                self.fabric.backward(loss / accumulate)
        if last:
            self.optimizer.combine()


@pytest.mark.parametrize("joins", [False, True], ids=["task", "join"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, CLIP])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric_is_the_plain_loop(
    joins: bool, accumulate: int, clip: float | None, precision: str
) -> None:
    run = Run(precision)
    run.epochs(2, joins, accumulate, clip)
    dtype = torch.bfloat16 if precision == "bf16-mixed" else None
    model, optimizer = plain_loop(2, accumulate=accumulate, clip=clip, precision=dtype)
    assert same(run.bare.state_dict(), model.state_dict())
    assert same(run.optimizer.state_dict(), optimizer.state_dict())
    assert run.optimizer.conflicts.summary() == optimizer.conflicts.summary()


def test_precision_is_one_that_is_seen() -> None:
    full, mixed = plain_loop(2)[0], plain_loop(2, precision=torch.bfloat16)[0]
    assert not torch.equal(full.trunk[0].weight, mixed.trunk[0].weight)


def test_the_optimizer_that_fabric_returns_is_one_of_ours() -> None:
    run = Run()
    assert isinstance(run.optimizer, GradientSurgery)
    assert run.optimizer.optimizer is run.surgeon
    run.epochs(1)
    # A method called on Fabric's object must leave nothing there: step() is called on ours.
    assert vars(run.optimizer).keys() == {"_optimizer", "_strategy", "_callbacks"}


def test_a_resumed_run_is_bitwise_the_one_that_never_stopped(tmp_path: Path) -> None:
    uninterrupted, first, second = Run(), Run(), Run()
    uninterrupted.epochs(2)
    first.epochs(1)

    def state(run: Run) -> dict[str, Any]:
        return {
            "model": run.model,
            "optimizer": run.optimizer,
            "schedule": run.schedule,
            "conflicts": run.optimizer.conflicts,
        }

    first.fabric.save(tmp_path / "last.ckpt", state(first))
    torch.load(tmp_path / "last.ckpt", weights_only=True)  # nothing in it needs code to load
    second.fabric.load(tmp_path / "last.ckpt", state(second))
    second.epochs(1)
    assert same(second.bare.state_dict(), uninterrupted.bare.state_dict())
    assert same(second.optimizer.state_dict(), uninterrupted.optimizer.state_dict())
    assert second.optimizer.conflicts.summary() == uninterrupted.optimizer.conflicts.summary()


# ------------------------------------------------------------------------------- two processes


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ddp_averages_each_task(accumulate: int) -> None:
    lightning_ranks.assert_together(f"DDP: fabric, {accumulate}")


def test_ddp_refuses_the_backwards_after_all_forwards() -> None:
    for outcome in lightning_ranks.outcome("DDP: fabric join"):
        assert "mark a variable ready only once" in outcome["error"]


@pytest.mark.parametrize("name", ["fabric, 2", "fabric join, 1", "fabric join, 2"])
def test_gradsurgery_averages_in_every_way(name: str) -> None:
    lightning_ranks.assert_together(f"ours: {name}")
