"""The contract of a method: it gets what it needs, and two methods to come work as they are."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import GradientSurgery, Method, PCGrad, Sum, Verdict
from gradsurgery.methods.base import NEEDS
from tests.gradsurgery.problems import linear_losses, same, state_of, vectors, wrap
from tests.methods import METHODS, every_method
from tests.throwaway import DWA, MGDA, State


class Listening(Method):
    """Keeps what it was given."""

    def __init__(self, *needs: str) -> None:
        self.needs = frozenset(needs)  # type: ignore[misc]
        self.calls: list[dict[str, Any]] = []

    def __call__(self, gram: Tensor, *, state: State, **facts: Any) -> Verdict:
        self.calls.append(facts)
        return Verdict(torch.ones(gram.shape[:-1], dtype=gram.dtype), None, state)


@pytest.mark.parametrize("needs", [(), ("order",), ("present", "scale"), NEEDS])
def test_a_method_gets_exactly_what_it_needs(needs: tuple[str, ...]) -> None:
    method, w = Listening(*needs), nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], method, tasks=("a", "b", "c"))
    first, _, third = linear_losses([w], vectors((1, 2), (3, 4), (5, 6)))
    optimizer.join({"a": first + 7, "c": third}).backward()
    (facts,) = method.calls
    assert facts.keys() == set(needs)
    if "present" in needs:
        assert facts["present"].tolist() == [[True, False, True]]
        assert facts["scale"].item() == 1
    if "order" in needs:
        assert facts["order"].sort(dim=1).values.tolist() == 3 * [[0, 1, 2]]
    if "losses" in needs:
        assert same(facts["losses"].nan_to_num(-1).tolist(), [7, -1, 0])


def test_no_random_number_is_drawn_for_a_method_without_an_order() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], MGDA(), tasks=("a", "b"))
    before = state_of(optimizer)["rng"].clone()
    optimizer.join(linear_losses([w], vectors((1, 0), (0, 1)))).backward()
    assert torch.equal(state_of(optimizer)["rng"], before)


class WithoutNeeds(Method):
    def __call__(self, gram: Tensor, order: Tensor, state: State) -> Verdict:
        raise NotImplementedError


class Unknown(Method):
    needs: ClassVar[frozenset[str]] = frozenset({"hessian"})

    def __call__(self, gram: Tensor, *, state: State, hessian: Tensor) -> Verdict:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (WithoutNeeds(), r"WithoutNeeds.__call__ cannot be called as .*'order'.*List in .*needs"),
        (Unknown(), r"Unknown.needs lists \['hessian'\]: a method may need order, present"),
    ],
)
def test_a_method_that_cannot_be_called_is_refused_when_it_is_wrapped(
    method: Method, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        wrap([nn.Parameter(torch.zeros(1))], method)


@pytest.mark.parametrize("absent", ["a", "b", "c", None])
def test_mgda_goes_on_without_an_absent_task(absent: str | None) -> None:
    """With a zero gradient in its place the shortest point is zero, and training stops."""
    rows = {"a": (2.0, 0.0), "b": (0.0, 1.0), "c": (3.0, 3.0)}
    shortest = {"a": (0.0, 1.0), "b": (2.0, 0.0), "c": (0.4, 0.8), None: (0.4, 0.8)}
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], MGDA(), tasks=("a", "b", "c"))
    losses = dict(zip(rows, linear_losses([w], vectors(*rows.values())), strict=True))
    optimizer.join({task: loss for task, loss in losses.items() if task != absent}).backward()
    assert w.grad.tolist() == pytest.approx(shortest[absent])


def test_mgda_stops_where_a_present_gradient_is_zero() -> None:
    w = nn.Parameter(torch.zeros(2))
    wrap([w], MGDA(), tasks=("a", "b")).join(linear_losses([w], vectors((1, 0), (0, 0)))).backward()
    assert w.grad.tolist() == [0, 0]


def dwa_weights(history: list[list[float]], temperature: float = 2.0) -> Tensor:
    """Liu et al. 2019, equation 7, to the letter."""
    last, before = history[-1], history[-2]
    ratios = torch.tensor([b / a for a, b in zip(before, last, strict=True)], dtype=torch.float64)
    exponents = (ratios / temperature).exp()
    return len(ratios) * exponents / exponents.sum()


@pytest.mark.parametrize("way", ["join", "task", "combine", "micro-batches"])
def test_dwa_is_told_the_losses_in_every_way(way: str) -> None:
    rows = vectors((1.0, 0.0), (0.0, 1.0))
    values = [[8.0, 1.0], [4.0, 0.9], [1.0, 0.8], [0.9, 0.2]]
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], DWA(), tasks=("a", "b"), lr=0.0)
    for step, step_values in enumerate(values):
        losses = [
            loss + value for loss, value in zip(linear_losses([w], rows), step_values, strict=True)
        ]
        backward(way, optimizer, losses)
        expected = [1.0, 1.0] if step < 2 else dwa_weights(values[:step]).tolist()
        assert w.grad.tolist() == pytest.approx(expected)
        optimizer.zero_grad()


def backward(way: str, optimizer: GradientSurgery, losses: list[Tensor]) -> None:
    if way == "join":
        optimizer.join(losses).backward()
    elif way == "micro-batches":
        for last in (False, True):
            halves = [loss.detach() / 2 for loss in losses]
            w = optimizer.param_groups[0]["params"][0]
            halves = [w[k] / 2 + half for k, half in enumerate(halves)]
            optimizer.join(halves, combine=last).backward()
    else:
        for task, loss in zip("ab", losses, strict=True):
            with optimizer.task(task, loss=loss if way == "task" else None):
                loss.backward()
        known = dict(zip("ab", losses, strict=True)) if way == "combine" else None
        optimizer.combine(losses=known)


def test_a_loss_that_nobody_told_is_an_error_that_names_the_ways() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], DWA(), tasks=("a", "b"))
    for task, loss in zip("ab", linear_losses([w], vectors((1, 0), (0, 1))), strict=True):
        with optimizer.task(task, loss=loss if task == "a" else None):
            loss.backward()
    with pytest.raises(RuntimeError, match=r"that of b is unknown.*join.*task\(name.*combine\("):
        optimizer.combine()
    optimizer.combine(losses={"b": 1.0})
    assert w.grad.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("losses", "message"),
    [({"c": 1.0}, "unknown task 'c'"), ({"a": torch.ones(2)}, r"shape \[2\]")],
)
def test_losses_that_cannot_be_are_refused(losses: dict[str, Any], message: str) -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = wrap([w], DWA(), tasks=("a", "b"))
    with optimizer.task("a"):
        w.sum().backward()
    with pytest.raises(ValueError, match=message):
        optimizer.combine(losses=losses)


@every_method
def test_a_run_resumed_halfway_is_bitwise_the_run_that_never_stopped(name: str) -> None:
    def run(steps: range, optimizer: GradientSurgery, w: nn.Parameter) -> None:
        for step in steps:
            rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
            optimizer.join([(w - row).square().sum() for row in rows]).backward()
            optimizer.step()
            optimizer.zero_grad()

    (w, whole), (v, first), (u, second) = (
        (p, wrap([p], METHODS[name].make(1), tasks=("a", "b", "c"), lr=0.01))
        for p in (nn.Parameter(torch.zeros(4)) for _ in range(3))
    )
    run(range(6), whole, w)
    run(range(3), first, v)
    u.data.copy_(v)
    second.load_state_dict(first.state_dict())
    run(range(3, 6), second, u)
    assert torch.equal(w, u)
    summary = whole.conflicts.summary()
    measured = summary["window"] - summary.get("unmeasured", 0)
    assert (summary["window"], summary["gradients"]["possible"]) == (6, 3 * measured)


def test_a_method_is_called_by_keyword() -> None:
    """The facts' sequence in a signature is the method's own affair."""
    assert PCGrad.needs == {"order"}
    assert Sum.needs == set()
