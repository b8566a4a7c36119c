"""Bases that are optimizers themselves around another, and do less than ``Optimizer`` promises."""

from __future__ import annotations

import copy
import io
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from gradsurgery import (
    MGDA,
    GradientSurgery,
    PCGrad,
    Sum,
    SurgeryWarning,
    UncertaintyWeighting,
)
from tests.gradsurgery.problems import TwoHeads, losses_of, same, wrap


class Thin(Optimizer):
    """As little as trains by itself: no ``__init__`` of torch's, no state, no defaults."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    def zero_grad(self) -> None:  # type: ignore[override]
        self.optimizer.zero_grad()


class Forwarding(Thin):
    """Everything is the inner optimizer's, but the hooks."""

    @property
    def state(self) -> Any:
        return self.optimizer.state

    @property
    def defaults(self) -> Any:
        return self.optimizer.defaults

    def state_dict(self) -> Any:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        self.optimizer.load_state_dict(state_dict)


class Slow(Forwarding):
    """Weights that follow slowly, in a state and a checkpoint of its own form."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self.slow = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for parameter, slow in self.slow.items():
            parameter.copy_(slow.lerp_(parameter, 0.5))
        return loss

    def state_dict(self) -> Any:
        slow = {i: value.clone() for i, value in enumerate(self.slow.values())}
        return {"slow": slow, "base_optimizer": super().state_dict()}

    def load_state_dict(self, state_dict: Any) -> None:
        for value, saved in zip(self.slow.values(), state_dict["slow"].values(), strict=True):
            value.copy_(saved)
        super().load_state_dict(state_dict["base_optimizer"])


class Shared(Optimizer):
    """Groups shared when built, and a state of its own beside."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.state = defaultdict(dict)
        self.defaults = {"alpha": 0.5, **optimizer.defaults}

    def zero_grad(self) -> None:  # type: ignore[override]
        self.optimizer.zero_grad()

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


Kind = Callable[[Optimizer], Optimizer]
KINDS: tuple[Kind, ...] = (Thin, Forwarding, Slow, Shared)


def build(kind: Kind, tasks: tuple[str, ...] = ("a", "b")) -> tuple[TwoHeads, GradientSurgery]:
    torch.manual_seed(0)
    model = TwoHeads()
    base = torch.optim.AdamW(model.named_parameters(), lr=0.05)
    return model, GradientSurgery(kind(base), PCGrad(), tasks=tasks)


def train(model: TwoHeads, optimizer: GradientSurgery, steps: range) -> None:
    for seed in steps:
        optimizer.join(losses_of(model, seed)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
def test_it_steps_as_if_it_were_alone(kind: Kind) -> None:
    model, optimizer = build(kind)
    alone, bare = build(kind)
    lr_scheduler.ExponentialLR(optimizer, 0.9)
    for seed in range(4):
        optimizer.join(losses_of(model, seed)).backward()
        for parameter, other in zip(model.parameters(), alone.parameters(), strict=True):
            other.grad = None if parameter.grad is None else parameter.grad.clone()
        for trained in (optimizer, bare.base):
            trained.step()
            trained.zero_grad()
        assert same(model.state_dict(), alone.state_dict())
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", [Forwarding, Slow])
def test_it_resumes_bitwise(kind: Kind) -> None:
    model, optimizer = build(kind)
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again, resumed = build(kind)
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(model, optimizer, range(3, 6))
    train(again, resumed, range(3, 6))
    assert same(model.state_dict(), again.state_dict())
    assert same(optimizer.param_groups[0]["surgery"], resumed.param_groups[0]["surgery"])


@pytest.mark.parametrize("kind", [Forwarding, Slow])
def test_a_checkpoint_of_other_tasks_is_refused_wherever_its_groups_are(kind: Kind) -> None:
    state = build(kind)[1].state_dict()
    _, other = build(kind, ("b", "a"))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"of tasks \['a', 'b'\]"):
        other.load_state_dict(state)
    assert same(other.state_dict(), before)


def test_hooks_that_the_base_cannot_run_are_run() -> None:
    _, optimizer = build(Forwarding)
    fired: list[object] = []
    optimizer.register_state_dict_pre_hook(lambda o: fired.append(o))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "kept": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda o, state: {name: value for name, value in state.items() if name != "kept"}
    )
    optimizer.register_load_state_dict_post_hook(lambda o: fired.append(o))
    state = optimizer.state_dict()
    assert state.pop("kept") == 1
    optimizer.load_state_dict(state)
    assert fired == [optimizer, optimizer]


# ---------------------------------------------------------------------- what a step is given


class Curious(torch.optim.SGD):
    """A step with arguments of its own."""

    def step(self, closure: Any = None, hessian: Any = None, *, bs: int = 0) -> Any:  # type: ignore[override]
        self.told = (hessian, bs)
        return super().step(closure)


def test_other_arguments_of_a_step_reach_the_base() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], base=Curious)
    optimizer.step(hessian="h", bs=3)
    assert optimizer.told == ("h", 3)
    optimizer.step(None, "h", bs=4)
    assert optimizer.told == ("h", 4)
    assert optimizer.step(lambda: 7.0, bs=5) == 7.0
    assert optimizer.told == (None, 5)
    optimizer.step()
    assert optimizer.told == (None, 0)


def test_of_several_bases_arguments_reach_those_that_take_them() -> None:
    v, w = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    bases = [Curious([v], lr=0.1), torch.optim.SGD([w], lr=0.1)]
    optimizer = GradientSurgery(bases, PCGrad(), tasks=("a",))
    optimizer.step(bs=3)
    assert optimizer.told == (None, 3)
    optimizer.join([v.sum() + w.sum()]).backward()
    with pytest.raises(TypeError, match=r"none of Curious, SGD takes an argument 'bz'"):
        optimizer.step(bz=3)
    assert v.count_nonzero() == 0


# ---------------------------------------------------------------------- writing through


class Tunable(torch.optim.SGD):
    rho = 0.05

    @property
    def fixed(self) -> int:
        return 1


def test_what_is_read_through_is_written_through() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], base=Tunable)
    optimizer.rho = 0.2
    assert (optimizer.rho, optimizer.base.rho) == (0.2, 0.2)
    optimizer.note = "mine"  # nobody's before
    assert not hasattr(optimizer.base, "note")
    with pytest.raises(AttributeError, match="fixed"):
        optimizer.fixed = 2


@pytest.mark.parametrize("name", ["method", "tasks", "base", "conflicts", "bases"])
def test_what_was_decided_when_it_was_built_cannot_be_set(name: str) -> None:
    optimizer = wrap([nn.Parameter(torch.zeros(2))])
    value = getattr(optimizer, name)
    with pytest.raises(AttributeError, match=name):
        setattr(optimizer, name, MGDA())
    assert getattr(optimizer, name) is value or name == "bases"


def test_what_several_bases_have_is_set_on_each() -> None:
    v, w = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    tunable, plain = Tunable([v], lr=0.1), torch.optim.SGD([w], lr=0.1)
    optimizer = GradientSurgery([tunable, plain], PCGrad(), tasks=("a",))
    optimizer.rho = 0.2
    assert tunable.rho == 0.2
    both = GradientSurgery([tunable, Tunable([w], lr=0.1)], PCGrad(), tasks=("a",))
    with pytest.raises(AttributeError, match=r"Tunable, Tunable have .* on optimizer.bases\[i\]"):
        both.rho = 0.3
    assert tunable.rho == 0.2


def test_a_private_name_says_where_it_is() -> None:
    class Scheduled(torch.optim.SGD):
        def _get_lr(self) -> float:
            return 0.1

    optimizer = wrap([nn.Parameter(torch.zeros(2))], base=Scheduled)
    with pytest.raises(AttributeError, match=r"'_get_lr': it is private.*Pass optimizer.base"):
        optimizer._get_lr()


# ---------------------------------------------------------------------- wrapping


def test_of_two_wrappers_around_one_base_the_later_goes_on() -> None:
    w = nn.Parameter(torch.zeros(2))
    first = wrap([w], tasks=("a", "b"))
    joined = first.join([w.sum(), -w.sum()])
    later = GradientSurgery(first.base, Sum(), tasks=("a", "b"))
    with pytest.raises(RuntimeError, match="SGD was wrapped a second time"):
        first.join([w.sum(), -w.sum()])
    with pytest.raises(RuntimeError, match="SGD was wrapped a second time"):
        first.task("a")
    later.join([w.sum(), -w.sum()]).backward()
    assert joined.requires_grad
    later.zero_grad()
    chain = GradientSurgery([first.base, torch.optim.SGD([torch.ones(1)])], Sum(), tasks=("a",))
    with pytest.raises(RuntimeError, match="wrapped a second time"):
        later.join([w.sum(), -w.sum()])
    twin = copy.deepcopy(chain)  # has bases of its own
    for optimizer in (chain, twin):
        optimizer.join([optimizer.param_groups[0]["params"][0].sum()]).backward()
    shallow = copy.copy(chain)  # shares all, state included
    for optimizer in (chain, shallow):
        optimizer.zero_grad()
        optimizer.join([w.sum()]).backward()


def test_a_wrapped_optimizer_says_what_to_wrap() -> None:
    with pytest.raises(TypeError, match=r"GradientSurgery already.*optimizer\.base"):
        GradientSurgery(wrap([nn.Parameter(torch.zeros(2))]), PCGrad(), tasks=("a",))


def test_a_prepared_optimizer_says_the_order() -> None:
    accelerate = pytest.importorskip("accelerate")
    base = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    prepared = accelerate.Accelerator(cpu=True).prepare(base)
    with pytest.raises(TypeError, match="wrap first, then prepare"):
        GradientSurgery(prepared, PCGrad(), tasks=("a",))


# ---------------------------------------------------------------------- line searches


@pytest.mark.parametrize("method", [PCGrad(), MGDA(), UncertaintyWeighting()], ids=repr)
def test_a_line_search_along_another_direction_is_told(method: Any) -> None:
    w = nn.Parameter(torch.zeros(2))
    base = torch.optim.LBFGS([w], line_search_fn="strong_wolfe")
    with pytest.warns(SurgeryWarning, match=r"LBFGS searches a step length \(strong_wolfe\)"):
        GradientSurgery(base, method, tasks=("a", "b"))
    GradientSurgery(base, Sum(), tasks=("a", "b"))
    GradientSurgery(torch.optim.LBFGS([w]), method, tasks=("a", "b"))


def test_a_plain_sum_may_be_searched_along() -> None:
    w = nn.Parameter(torch.tensor([3.0, -2.0]))
    base = torch.optim.LBFGS([w], line_search_fn="strong_wolfe", max_iter=5)
    optimizer = GradientSurgery(base, Sum(), tasks=("a", "b"))
    evaluations = 0

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = optimizer.join([(w - 1).square().sum(), (2 * w + 1).square().sum()])
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    assert evaluations < 40
    assert w.tolist() == pytest.approx([-0.2, -0.2], rel=1e-4)
