"""Primary: what opposes the primary task is removed, and its own gradient never touched."""

from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradsurgery import (
    IMTLG,
    ConFIG,
    Constant,
    GradVac,
    Method,
    NashMTL,
    PCGrad,
    Primary,
    Sum,
    UPGrad,
    Verdict,
)
from tests.families import Problem, problems
from tests.gradsurgery.checks import gram_of, update_of
from tests.gradsurgery.problems import linear_losses, vectors, wrap
from tests.methods import Row

METHODS = {
    "alone": lambda task: Primary(task),
    "sum": lambda task: Primary(task, Sum()),
    "pcgrad": lambda task: Primary(task, PCGrad()),
    "upgrad": lambda task: Primary(task, UPGrad()),
    "imtl_g": lambda task: Primary(task, IMTLG()),  # its weights may be negative
}


def decide(method: Method, problem: Problem) -> Verdict:
    return Row(lambda seed: method, frozenset()).decide(gram_of(problem), problem.order)


@pytest.mark.parametrize("name", METHODS)
@given(problem=problems(tasks=(1, 8)), at=st.integers(0, 7))
def test_the_primary_task_progresses_as_if_alone_or_better(
    name: str, problem: Problem, at: int
) -> None:
    at %= problem.tasks
    verdict = decide(METHODS[name](at), problem)
    update, primary = update_of(problem, verdict), problem.matrix[at]
    rounding = 1e-9 * verdict.weights[0].abs().numpy() @ problem.norms * problem.norms[at]
    assert update @ primary >= primary @ primary - rounding
    assert not verdict.altered[0, at].any()


@given(problem=problems(tasks=(2, 8)))
def test_each_auxiliary_gradient_loses_what_opposes_the_primary_one(problem: Problem) -> None:
    """From the gradients themselves, one at a time."""
    grads = problem.matrix / max(problem.norms.max(), 1e-300)
    primary, expected, altered = grads[0], grads[0].copy(), []
    for grad in grads[1:]:
        dot = min(grad @ primary, 0.0)
        expected += grad - (dot / (primary @ primary) * primary if dot else 0)
        altered.append(dot < 0)
    verdict = decide(Primary(0), problem)
    update = update_of(problem, verdict) / max(problem.norms.max(), 1e-300)
    condition = np.abs(verdict.weights[0].numpy()) @ np.linalg.norm(grads, axis=1)
    assert np.linalg.norm(update - expected) <= 1e-9 * condition
    certain = np.abs(grads[1:] @ primary) > 1e-12 * np.linalg.norm(primary)
    assert (verdict.altered[0, 1:, 0].numpy() == altered)[certain].all()


@given(problem=problems(tasks=(1, 8)))
def test_a_sum_is_what_it_does_without_a_method(problem: Problem) -> None:
    alone, summed = (decide(method, problem).weights for method in (Primary(0), Primary(0, Sum())))
    assert torch.equal(alone, summed)


def test_the_primary_task_is_named_or_counted() -> None:
    grads = vectors((1, 0), (-1, 1), (0, 5))
    for task in ("b", 1):
        w = nn.Parameter(torch.zeros(2))
        wrap([w], Primary(task)).join(linear_losses([w], grads)).backward()
        assert w.grad.tolist() == [-0.5, 6.5]


def test_an_absent_primary_task_leaves_the_sum() -> None:
    w = nn.Parameter(torch.zeros(2))
    losses = dict(zip("abc", linear_losses([w], vectors((1, 0), (-1, 1), (0, 5))), strict=True))
    del losses["a"]
    wrap([w], Primary("a")).join(losses).backward()
    assert w.grad.tolist() == [-1, 6]


def test_negative_weights_cannot_turn_the_others_against_the_primary_task() -> None:
    w = nn.Parameter(torch.zeros(2))
    method = Primary("a", Constant([0, -2, 1]))
    wrap([w], method).join(linear_losses([w], vectors((1, 0), (3, 0), (0, 5)))).backward()
    assert w.grad.tolist() == [1, 5]


@pytest.mark.parametrize("method", [NashMTL(), UPGrad(), ConFIG(), Sum()], ids=repr)
@given(scale=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_what_rounding_leaves_of_an_opposed_gradient_has_no_direction(
    method: Method, scale: float, seed: int
) -> None:
    primary = np.random.default_rng(seed).standard_normal(7)
    grads = np.stack([primary, -scale * primary, -3 * scale * primary])
    gram = torch.from_numpy(grads @ grads.T)[None]
    present = torch.ones(1, 3, dtype=torch.bool)
    weights = Primary(0, method)(gram, present=present, state={}).weights[0].numpy()
    assert weights @ grads == pytest.approx(primary)
    assert np.abs(weights).max() < 100


def test_an_unknown_primary_task_is_refused() -> None:
    w = [nn.Parameter(torch.zeros(2))]
    with pytest.raises(ValueError, match=r"primary task 'd' is none of \['a', 'b', 'c'\]"):
        wrap(w, Primary("d"))
    with pytest.raises(ValueError, match="primary task 3 is none of 0 to 2"):
        wrap(w, Primary(3))
    with pytest.raises(ValueError, match="which task 'a' is: wrap it in GradientSurgery"):
        Primary("a")(torch.zeros(1, 2, 2), state={})
    with pytest.raises(TypeError, match=r"method is an object such as PCGrad\(\)"):
        Primary("a", PCGrad)  # type: ignore[arg-type]


def test_it_is_copied_and_pickled() -> None:
    method = Primary("b", GradVac(beta=0.5)).bind(("a", "b"))
    for twin in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert repr(twin) == repr(method) == "Primary('b', GradVac(beta=0.5, update='always'))"
        assert twin.init(1, 2).keys() == {"target"}


class Losses(Method):
    """Keeps the losses that it was given."""

    needs: ClassVar[frozenset[str]] = frozenset({"losses", "present"})
    degree = 0.5

    def __call__(
        self, gram: Tensor, *, losses: Tensor, present: Tensor, state: dict[str, Tensor]
    ) -> Verdict:
        self.seen = losses, present
        return Verdict(torch.ones(gram.shape[:-1], dtype=gram.dtype), None, state)


def test_to_the_other_method_the_primary_task_is_absent() -> None:
    method, w = Losses(), nn.Parameter(torch.zeros(2))
    primary = Primary("b", method)
    assert primary.needs == {"losses", "present"}
    assert primary.degree == 0.5
    wrap([w], primary).join(linear_losses([w], vectors((1, 0), (-1, 1), (0, 5)))).backward()
    losses, present = method.seen
    assert losses.isnan().tolist() == [False, True, False]
    assert present.tolist() == [[True, False, True]]
