"""Hooks on parameters: those that step in the backward are refused, those that read are told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torch.nn.utils import clip_grad_value_

from gradsurgery import GradientSurgery, GradVac, PCGrad, SurgeryWarning
from tests.gradsurgery.problems import TwoHeads, losses_of, same, wrap


def model_and_base() -> tuple[TwoHeads, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = TwoHeads()
    return model, torch.optim.SGD(model.named_parameters(), lr=0.05)


class Offloading(torch.optim.SGD):
    """Copies each gradient aside in the backward, and steps on the copies."""

    def __init__(self, parameters: Any, lr: float, way: str) -> None:
        super().__init__(parameters, lr=lr)
        self.aside: dict[Tensor, Tensor] = {}

        def copy(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.aside[parameter] = parameter.grad.clone()

        def copy_early(parameter: Tensor, grad: Tensor) -> None:
            self.aside[parameter] = grad.clone()

        for p in self.param_groups[0]["params"]:
            if way == "closure":
                p.register_post_accumulate_grad_hook(copy)
            elif way == "method":
                p.register_post_accumulate_grad_hook(partial(self.copied))
            else:
                p.register_hook(partial(copy_early, p))

    def copied(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.aside[parameter] = parameter.grad.clone()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter, grad in self.aside.items():
            parameter.grad = grad
        super().step()


def captured(optimizer: GradientSurgery, losses: dict[str, Tensor]) -> None:
    with optimizer.task("a"):
        losses["a"].backward()


@pytest.mark.parametrize("way", ["closure", "method", "early"])
@pytest.mark.parametrize("joins", [True, False])
def test_a_base_that_copies_in_the_backward_is_refused(way: str, joins: bool) -> None:
    model, _ = model_and_base()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = wrap(list(model.parameters()), tasks=("a", "b"), base=partial(Offloading, way=way))  # type: ignore[arg-type]
    losses = losses_of(model)
    backward = optimizer.join(losses).backward if joins else partial(captured, optimizer, losses)
    with pytest.raises(
        RuntimeError, match=r"Offloading has a hook on parameter 0 .*before surgery"
    ):
        backward()
    assert same(before, dict(model.named_parameters()))
    assert optimizer.conflicts.summary()["window"] == 0


def test_torchs_own_optimizers_in_the_backward_are_refused() -> None:
    model, base = model_and_base()
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    optimizer = GradientSurgery(base, PCGrad(), tasks=("a", "b"))
    with pytest.raises(RuntimeError, match="SGD steps in the backward of parameter 0"):
        optimizer.join(losses_of(model)).backward()


@pytest.mark.parametrize("takes", [True, False])
def test_a_hook_that_steps_is_refused(takes: bool) -> None:
    """The tutorial's, which nothing tells from a logger before it has run."""
    model, base = model_and_base()
    steppers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step_now(parameter: Tensor) -> None:
        steppers[parameter].step()
        if takes:
            steppers[parameter].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step_now)
    optimizer = GradientSurgery(base, PCGrad(), tasks=("a", "b"))
    with (
        pytest.warns(SurgeryWarning, match="step_now"),
        pytest.raises(RuntimeError, match=r"step_now.* changed the parameter .* of task 'a'"),
    ):
        optimizer.join(losses_of(model)).backward()


def test_a_hook_that_takes_the_gradient_is_refused() -> None:
    model, base = model_and_base()
    aside = []

    def offload(parameter: Tensor) -> None:
        aside.append(parameter.grad)
        parameter.grad = None

    model.lower.weight.register_post_accumulate_grad_hook(offload)
    optimizer = GradientSurgery(base, PCGrad(), tasks=("a", "b"))
    with (
        pytest.warns(SurgeryWarning, match="1 of the parameters"),
        pytest.raises(RuntimeError, match=r"offload.*\[4, 3\], took the gradient away"),
    ):
        optimizer.join(losses_of(model)).backward()
    assert model.lower.weight.grad is None


def logger(log: list[float]) -> Callable[[Tensor], None]:
    def norm(parameter: Tensor) -> None:
        assert parameter.grad is not None
        log.append(parameter.grad.norm().item())

    return norm


def test_a_hook_that_reads_is_told_once_and_runs() -> None:
    runs, log = [], list[float]()
    for hooked in (False, True):
        model, base = model_and_base()
        if hooked:
            for p in model.parameters():
                p.register_post_accumulate_grad_hook(logger(log))
        optimizer = GradientSurgery(base, GradVac(), tasks=("a", "b"))
        for step in range(3):
            joined = optimizer.join(losses_of(model, step))
            if hooked and step == 0:
                with pytest.warns(SurgeryWarning, match="hooks .*norm") as caught:
                    joined.backward()
                assert [warning.filename for warning in caught] == [__file__]
            else:
                joined.backward()
            optimizer.step()
            optimizer.zero_grad()
        runs.append(model.state_dict())
    used = 2 * 4 + 2 + 2 + 2  # lower and upper for both tasks, the adapter, the heads
    assert len(log) == 3 * used
    assert same(*runs)


def test_a_hook_on_a_later_group_is_seen() -> None:
    v, w = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = wrap([v], tasks=("a", "b"))
    optimizer.join([v.sum(), -v.sum()]).backward()
    w.register_post_accumulate_grad_hook(logger([]))
    optimizer.add_param_group({"params": [w]})
    with pytest.warns(SurgeryWarning, match="1 of the parameters"):
        optimizer.join([w.sum(), -w.sum()]).backward()


def test_torchs_own_hooks_are_not_spoken_of() -> None:
    w = nn.Parameter(torch.ones(2))
    w.register_post_accumulate_grad_hook(partial(clip_grad_value_, clip_value=1.0))  # as DDP's are
    optimizer = wrap([w], tasks=("a", "b"))
    optimizer.join([w.sum(), -w.sum()]).backward()


class Private(torch.optim.Optimizer):
    """Puts what it made of each example's gradient into ``.grad``, as Opacus does."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            p.grad = p.grad_sample.clamp(-1, 1).sum(0)
        return self.optimizer.step()


@pytest.mark.parametrize("outside", [True, False])
def test_an_optimizer_of_per_sample_gradients_is_told(outside: bool) -> None:
    w = nn.Parameter(torch.ones(2))
    base: torch.optim.Optimizer = torch.optim.SGD([w], lr=0.1)
    if outside:
        surgery = GradientSurgery(base, PCGrad(), tasks=("a", "b"))
        stepper: torch.optim.Optimizer = Private(surgery)
    else:
        stepper = surgery = GradientSurgery(Private(base), PCGrad(), tasks=("a", "b"))
    surgery.join([w.sum(), -w.sum()]).backward()
    w.grad_sample = torch.ones(4, 2)  # type: ignore[attr-defined]
    with pytest.warns(SurgeryWarning, match="grad_sample"):
        stepper.step()
