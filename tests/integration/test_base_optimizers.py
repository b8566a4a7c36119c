"""Bases from torch and elsewhere: each is fed what it would be fed by hand, and resumes."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.integration.by_hand import (
    GOALS,
    TASKS,
    adamw,
    batch,
    furthest,
    orders,
    same_bits,
    separate,
    wrapped,
    write_update,
)

Build = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
RATE = 0.02


def eight_bit(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    optim = pytest.importorskip("bitsandbytes").optim
    # Smaller tensors than 4096 elements keep 32 bits by default; those here are all smaller.
    return optim.AdamW8bit(parameters, lr=RATE, min_8bit_size=1)  # type: ignore[no-any-return]


def schedule_free(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    package = pytest.importorskip("schedulefree")
    optimizer: torch.optim.Optimizer = package.AdamWScheduleFree(
        parameters, lr=RATE, warmup_steps=2
    )
    return optimizer


def of_transformers(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    optimization = pytest.importorskip("transformers.optimization")
    optimizer: torch.optim.Optimizer = optimization.Adafactor(
        parameters, lr=RATE, relative_step=False, scale_parameter=False
    )
    return optimizer


BASES: dict[str, Build] = {
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=RATE, fused=True),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=RATE, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9, fused=True),
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9, foreach=True),
    "AdamW8bit": eight_bit,
    "AdamWScheduleFree": schedule_free,
    "Muon": lambda p: torch.optim.Muon(p, lr=RATE),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=RATE),
    "Adafactor of transformers": of_transformers,
    "NAdam": lambda p: torch.optim.NAdam(p, lr=RATE),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=RATE),
}


class Matrices(nn.Module):
    """Matrices only, as Muon wants them; an answer per task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = [(8, 16), (16, 16), (16, 3)]
        self.layers = nn.ModuleList(nn.Linear(*size, bias=False) for size in sizes)

    def forward(self, x: Tensor, task: str) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).tanh()
        out: Tensor = self.layers[-1](x)[:, TASKS.index(task)]
        return out


def build(base: Build) -> tuple[Matrices, torch.optim.Optimizer]:
    model = Matrices()
    optimizer = base(list(model.parameters()))
    if hasattr(optimizer, "train"):
        optimizer.train()
    return model, optimizer


def step(model: nn.Module, optimizer: Any, number: int) -> list[Tensor]:
    """One step of the wrapped optimizer; the gradients that its base got."""
    for task in TASKS:
        with optimizer.task(task):
            separate(model, number, task).backward()
    optimizer.combine()
    grads = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    optimizer.zero_grad()
    return grads


def feed(model: nn.Module, optimizer: torch.optim.Optimizer, grads: list[Tensor]) -> None:
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = grad
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", BASES)
def test_a_base_steps_as_if_it_were_alone(name: str) -> None:
    model, base = build(BASES[name])
    alone, bare = build(BASES[name])
    optimizer = wrapped(base)
    for number in range(5):
        feed(alone, bare, step(model, optimizer, number))
    assert optimizer.conflicts.summary()["gradients"]["altered"] > 0
    assert same_bits(model, alone)


def test_what_a_base_gets_is_the_papers_update() -> None:
    model, base = build(adamw)
    optimizer, by_hand = wrapped(base), Matrices()
    for number, order in zip(range(5), orders(), strict=False):
        by_hand.load_state_dict(model.state_dict())
        write_update(by_hand, [separate(by_hand, number, task) for task in TASKS], order)
        grads = step(model, optimizer, number)
        for parameter, grad in zip(by_hand.parameters(), grads, strict=True):
            assert torch.allclose(parameter.grad, grad, atol=1e-7)


@pytest.mark.parametrize("name", BASES)
def test_a_resumed_run_is_bitwise_the_run_that_never_stopped(name: str) -> None:
    model, base = build(BASES[name])
    optimizer = wrapped(base)
    for number in range(3):
        step(model, optimizer, number)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, fresh = build(BASES[name])
    second = wrapped(fresh)
    resumed.load_state_dict(saved["model"])
    second.load_state_dict(saved["optimizer"])
    for number in range(3, 6):
        step(model, optimizer, number)
        step(resumed, second, number)
    assert same_bits(model, resumed)


@pytest.mark.parametrize("name", ["AdamW fused", "AdamW foreach", "SGD fused", "SGD foreach"])
def test_an_implementation_changes_no_more_than_rounding(name: str) -> None:
    """On the same gradients, tensor by tensor or together."""
    rule, _, _ = name.partition(" ")
    single: dict[str, Build] = {
        "AdamW": lambda p: torch.optim.AdamW(p, lr=RATE, foreach=False),
        "SGD": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9, foreach=False),
    }
    model, base = build(BASES[name])
    second, bare = build(single[rule])
    optimizer = wrapped(base)
    for number in range(5):
        feed(second, bare, step(model, optimizer, number))
    assert furthest(model, second) < 1e-6


def test_states_of_8_bits_are_8_bits() -> None:
    model, base = build(eight_bit)
    optimizer = wrapped(base)
    step(model, optimizer, 0)
    for state in optimizer.state.values():
        assert (state["state1"].dtype, state["state2"].dtype) == (torch.uint8, torch.uint8)


def test_schedule_free_modes_pass_through() -> None:
    model, base = build(schedule_free)
    optimizer = wrapped(base)
    for number in range(4):
        step(model, optimizer, number)
    training = copy.deepcopy(model)
    optimizer.eval()
    averaged = copy.deepcopy(model)
    assert furthest(training, averaged) > 1e-3
    with pytest.raises(Exception, match="train mode"):
        step(model, optimizer, 4)
    optimizer.zero_grad()
    optimizer.train()
    assert furthest(training, model) < 1e-6


def test_a_schedule_free_wrapper_goes_around() -> None:
    """It is no ``torch.optim.Optimizer``: surgery goes inside, where the gradients are."""
    package = pytest.importorskip("schedulefree")
    model, base = build(lambda p: torch.optim.SGD(p, lr=RATE))
    alone, bare = build(lambda p: torch.optim.SGD(p, lr=RATE))
    surgery = wrapped(base)
    outer, reference = (package.ScheduleFreeWrapper(o, momentum=0.9) for o in (surgery, bare))
    with pytest.raises(TypeError, match="not a ScheduleFreeWrapper"):
        wrapped(outer)
    for optimizer in (outer, reference):
        optimizer.train()
    for number in range(4):
        surgery.join([separate(model, number, task) for task in TASKS]).backward()
        grads = [p.grad.clone() for p in model.parameters()]
        outer.step()
        outer.zero_grad()
        feed(alone, reference, grads)
    assert same_bits(model, alone)


def test_lbfgs_is_the_closure_by_hand() -> None:
    """PCGrad in each evaluation; the visiting order moves on with each."""
    model, alone = Matrices(), Matrices()
    options: dict[str, Any] = {"lr": 0.1, "max_iter": 4, "history_size": 3}
    optimizer = wrapped(torch.optim.LBFGS(model.parameters(), **options))
    bare = torch.optim.LBFGS(alone.parameters(), **options)
    grads: list[list[Tensor]] = []
    losses: list[Tensor] = []

    def joined() -> Tensor:
        optimizer.zero_grad()
        loss = optimizer.join([separate(model, 0, task) for task in TASKS])
        loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
        losses.append(loss.detach())
        return loss

    def replayed() -> Tensor:
        for parameter, grad in zip(alone.parameters(), grads.pop(0), strict=True):
            parameter.grad = grad
        return losses.pop(0)

    for _ in range(2):
        assert optimizer.step(joined) == losses[0]
        bare.step(replayed)
        assert not grads  # as many evaluations
    assert same_bits(model, alone)


def test_several_optimizers_share_one_surgery() -> None:
    """Muon takes matrices only: a surgeon of all parameters, and two optimizers that step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, len(TASKS)))
    with pytest.raises(ValueError, match="2D"):
        torch.optim.Muon(model.parameters())
    alone = copy.deepcopy(model)

    def pair(net: nn.Module) -> list[torch.optim.Optimizer]:
        matrices = [p for p in net.parameters() if p.dim() == 2]
        rest = [p for p in net.parameters() if p.dim() != 2]
        return [torch.optim.Muon(matrices, lr=RATE), adamw(rest)]

    def losses(net: nn.Module, number: int) -> list[Tensor]:
        outs = [net(batch(number, task))[:, k] for k, task in enumerate(TASKS)]
        return [(o - GOALS[t]).square().mean() for o, t in zip(outs, TASKS, strict=True)]

    surgery = wrapped(torch.optim.SGD(model.parameters(), lr=0.0))
    steppers, bare = pair(model), pair(alone)
    for number, order in zip(range(4), orders(), strict=False):
        surgery.join(losses(model, number)).backward()
        grads = [p.grad.clone() for p in model.parameters()]
        for optimizer in steppers:
            optimizer.step()
        surgery.zero_grad()
        # By hand: the paper's update over all parameters at once, then the same bits to the bare.
        write_update(alone, losses(alone, number), order)
        for parameter, grad in zip(alone.parameters(), grads, strict=True):
            assert torch.allclose(parameter.grad, grad, atol=1e-6)
            parameter.grad = grad
        for optimizer in bare:
            optimizer.step()
    assert surgery.conflicts.summary()["gradients"]["altered"] > 0
    assert same_bits(model, alone)


def test_paged_states_warn_on_the_cpu_and_train() -> None:
    optim = pytest.importorskip("bitsandbytes").optim
    model, base = build(lambda p: optim.PagedAdamW8bit(p, lr=RATE, min_8bit_size=1))
    second, plain = build(eight_bit)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        step(model, wrapped(base), 0)
    step(second, wrapped(plain), 0)
    assert same_bits(model, second)
