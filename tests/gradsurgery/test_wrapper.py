"""The wrapper: an Optimizer around another, with its groups, state, hooks and extras."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from gradsurgery import GradientSurgery, PCGrad, Sum
from tests.gradsurgery.problems import (
    linear_losses,
    losses_of,
    train_heads,
    two_heads,
    vectors,
    wrap,
)


def test_it_is_an_optimizer_whose_parts_are_the_bases() -> None:
    model, optimizer = two_heads(PCGrad())
    train_heads(model, optimizer, range(1))
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state
    assert optimizer.defaults is optimizer.base.defaults
    optimizer.load_state_dict(optimizer.state_dict())  # rebinds the base's
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=10),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o, 0.1, 1), lr_scheduler.ExponentialLR(o, 0.5)], [1]
        ),
    ],
)
def test_schedulers_move_the_bases_rate_as_without_the_wrapper(schedule: Any) -> None:
    rates = []
    for wrapped in (True, False):
        model, optimizer = two_heads(Sum())
        target: Any = optimizer if wrapped else optimizer.base
        with warnings.catch_warnings():
            # SequentialLR steps its schedulers before the optimizer, and warns about it itself.
            warnings.simplefilter("ignore")
            scheduler = schedule(target)
        lrs = []
        for seed in range(4):
            optimizer.join(losses_of(model, seed)).backward()
            target.step()
            optimizer.zero_grad()
            scheduler.step()
            lrs.append(optimizer.base.param_groups[0]["lr"])
        rates.append(lrs)
    assert rates[0] == rates[1]


def test_reduce_on_plateau() -> None:
    _, optimizer = two_heads(Sum())
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        scheduler.step(1.0)
    assert optimizer.base.param_groups[0]["lr"] < 0.05


def test_hooks_fire_once() -> None:
    model, optimizer = two_heads(PCGrad())
    fired: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: fired.append("pre"))
    optimizer.register_step_post_hook(lambda *_: fired.append("post"))
    optimizer.base.register_step_post_hook(lambda *_: fired.append("base"))
    optimizer.register_state_dict_pre_hook(lambda *_: fired.append("save"))
    optimizer.register_load_state_dict_post_hook(lambda *_: fired.append("load"))
    train_heads(model, optimizer, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    assert fired == ["pre", "base", "post", "save", "load"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_stand_on_their_own(copied: Callable[[Any], Any]) -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], tasks=("a", "b"))
    lr_scheduler.ConstantLR(optimizer)  # patches `step` into the instance
    with optimizer.task("a"):
        w.sum().backward()
    twin = copied(optimizer)
    parameter = twin.param_groups[0]["params"][0]
    twin.join(linear_losses([parameter], vectors((1, 0), (-1, 1)))).backward()
    twin.step()
    assert w.tolist() == [0, 0]
    assert parameter.tolist() == pytest.approx(
        [-0.5 * twin.param_groups[0]["lr"]] * 1 + [-1.5 * twin.param_groups[0]["lr"]]
    )
    assert str(twin) == str(optimizer)


def test_amp_support_of_a_fused_base_is_not_forwarded() -> None:
    """A scaler that saw it would leave the gradients scaled, and the update a thousandfold."""
    w = nn.Parameter(torch.zeros(2))
    base = torch.optim.SGD([w], lr=0.1, fused=True)
    optimizer = GradientSurgery(base, Sum(), tasks=("a",))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(optimizer.join([w.sum()])).backward()
    scaler.step(optimizer)
    assert w.tolist() == pytest.approx([-0.1, -0.1])


def test_public_extras_of_the_base_are_reachable() -> None:
    class ScheduleFree(torch.optim.SGD):
        mode = "train"

        def eval(self) -> None:
            self.mode = "eval"

    w = nn.Parameter(torch.zeros(1))
    optimizer = wrap([w], base=ScheduleFree)
    optimizer.eval()
    assert optimizer.mode == "eval"
    with pytest.raises(AttributeError, match="_private"):
        _ = optimizer._private
