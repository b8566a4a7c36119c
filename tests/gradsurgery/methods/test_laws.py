"""The laws of methods: form and purity of all, and those that each row of the table obeys."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradsurgery import Verdict
from gradsurgery import functional as F
from tests import oracles
from tests.families import FAMILIES, Problem, draw, problems
from tests.gradsurgery.checks import gram_of, precision, update_of
from tests.gradsurgery.problems import same
from tests.methods import (
    ALONE,
    METHODS,
    SCALE,
    SEGMENTS,
    SYMMETRY,
    ZERO_IS_ABSENT,
    every_method,
    obeying,
)


def _decide(
    name: str, gram: Tensor, order: Tensor, state: dict[str, Tensor] | None = None
) -> Verdict:
    return METHODS[name].decide(gram, order, state)


def _doubt(name: str, problem: Problem) -> float:
    """What rounding of the Gram matrix alone can do to the update."""
    target = METHODS[name].target
    return oracles.gradvac(
        problem.matrix,
        problem.order.numpy(),
        np.full((problem.tasks, problem.tasks), target),
        0.3,
        precision=precision(problem),
    ).doubt


def _same_update(name: str, problem: Problem, one: np.ndarray, other: np.ndarray) -> None:
    allowed = 1e-9 * problem.norms.sum() + 2 * _doubt(name, problem)
    assert np.linalg.norm(one - other) <= allowed


def _equal(one: Verdict, other: Verdict) -> bool:
    """Bitwise the same verdict."""
    return (
        torch.equal(one.weights, other.weights)
        and same(one.altered, other.altered)
        and one.state.keys() == other.state.keys()
        and all(torch.equal(one.state[key], other.state[key]) for key in one.state)
    )


@every_method
@given(problem=problems())
def test_answers_are_finite_and_of_the_right_form(name: str, problem: Problem) -> None:
    verdict = _decide(name, gram_of(problem), problem.order)
    tasks = problem.tasks
    assert verdict.weights.shape == (1, tasks)
    assert verdict.weights.dtype == torch.float64
    assert verdict.weights.isfinite().all()
    if verdict.altered is not None:
        assert verdict.altered.shape == (1, tasks, tasks)
        assert verdict.altered.dtype == torch.bool
        assert not verdict.altered.diagonal(dim1=1, dim2=2).any()
    assert all(value.isfinite().all() for value in verdict.state.values())


@every_method
@given(problem=problems())
def test_methods_are_pure(name: str, problem: Problem) -> None:
    """Same arguments, same answer; the arguments are left alone."""
    gram, order = gram_of(problem)[None], problem.order
    state = METHODS[name].make(0).init(1, problem.tasks)
    copies = gram.clone(), order.clone(), {key: value.clone() for key, value in state.items()}
    assert _equal(_decide(name, gram, order, state), _decide(name, gram, order, state))
    assert torch.equal(gram, copies[0])
    assert torch.equal(order, copies[1])
    assert all(torch.equal(state[key], copies[2][key]) for key in state)


@obeying(SCALE)
@given(problem=problems(), power=st.integers(-60, 60))
def test_scaling_all_losses_by_a_power_of_two_changes_nothing(
    name: str, problem: Problem, power: int
) -> None:
    """Bitwise: weights, decisions and targets, at once and one step later."""
    gram = gram_of(problem)
    scaled = gram * 4.0**power
    first, second = (_decide(name, g, problem.order) for g in (gram, scaled))
    assert _equal(first, second)
    assert _equal(
        _decide(name, gram, problem.order, first.state),
        _decide(name, gram, problem.order, second.state),
    )


@obeying(SCALE)
@given(problem=problems(), scale=st.sampled_from([3.0, 1e-3, 65535.0, 0.7]))
def test_scaling_all_losses_scales_the_update(name: str, problem: Problem, scale: float) -> None:
    gram = gram_of(problem)
    plain = update_of(problem, _decide(name, gram, problem.order))
    scaled = update_of(problem, _decide(name, gram * scale**2, problem.order))
    _same_update(name, problem, plain, scaled)


@obeying(SYMMETRY)
@given(problem=problems(tasks=(2, 8)), seed=st.integers(0, 99))
def test_renaming_the_tasks_permutes_the_weights(name: str, problem: Problem, seed: int) -> None:
    """Tasks in another sequence, each with the same visits: the same update."""
    old_of = torch.randperm(problem.tasks, generator=torch.Generator().manual_seed(seed))
    new_of = old_of.argsort()
    gram = gram_of(problem)
    straight = _decide(name, gram, problem.order)
    renamed = _decide(name, gram[old_of][:, old_of], new_of[problem.order[old_of]])
    back = Verdict(renamed.weights[:, new_of], renamed.altered, renamed.state)
    _same_update(name, problem, update_of(problem, straight), update_of(problem, back))


@obeying(ZERO_IS_ABSENT)
@given(problem=problems(tasks=(1, 7)), at=st.integers(0, 7))
def test_an_absent_task_changes_nothing(name: str, problem: Problem, at: int) -> None:
    """A zero row and column, wherever it is inserted: as if the task did not exist."""
    tasks = problem.tasks
    at = min(at, tasks)
    others = [k for k in range(tasks + 1) if k != at]
    gram = torch.zeros(tasks + 1, tasks + 1, dtype=torch.float64)
    gram[np.ix_(others, others)] = gram_of(problem)
    order = torch.full((tasks + 1, tasks + 1), at)
    order[at] = torch.arange(tasks + 1)
    places = torch.arange(tasks + 1) != 1 + at % tasks  # the absent one is visited in between
    for row, i in enumerate(others):
        order[i, places] = torch.tensor(others)[problem.order[row]]
    without = _decide(name, gram_of(problem), problem.order)
    among = _decide(name, gram, order)
    kept = Verdict(among.weights[:, others], among.altered, among.state)
    _same_update(name, problem, update_of(problem, without), update_of(problem, kept))
    assert not among.altered[:, at].any()
    assert not among.altered[:, :, at].any()
    assert among.weights[0, at] == 1
    start = METHODS[name].make(0).init(1, tasks + 1)
    for key, value in among.state.items():
        assert torch.equal(value[:, at], start[key][:, at])
        assert torch.equal(value[:, :, at], start[key][:, :, at])


@obeying(ALONE)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_task_is_left_alone(name: str, family: str) -> None:
    for seed in range(5):
        problem = draw(family, 1, [(4,), (2, 2)], seed)
        verdict = _decide(name, gram_of(problem), problem.order)
        assert verdict.weights.tolist() == [[1.0]]
        assert not verdict.altered.any()


@obeying(ALONE)
@given(problem=problems(["all_zero"]))
def test_nothing_but_zeros_is_left_alone(name: str, problem: Problem) -> None:
    verdict = _decide(name, gram_of(problem), problem.order)
    assert (verdict.weights == 1).all()
    assert not verdict.altered.any()


@obeying(SEGMENTS)
@given(first=problems(tasks=(4, 4)), second=problems(tasks=(4, 4)))
def test_segments_are_separate_problems(name: str, first: Problem, second: Problem) -> None:
    both = _decide(name, torch.stack([gram_of(first), gram_of(second)]), first.order)
    for segment, problem in enumerate((first, second)):
        problem.order = first.order
        alone = _decide(name, gram_of(problem), problem.order)
        part = Verdict(both.weights[segment], None, {})
        _same_update(name, problem, update_of(problem, alone), update_of(problem, part))


@given(problem=problems())
def test_sum_never_changes_anything(problem: Problem) -> None:
    verdict = _decide("sum", gram_of(problem), problem.order)
    assert (verdict.weights == 1).all()
    assert not verdict.altered.any()


@given(problem=problems(["parallel", "opposite", "identical"], tasks=(2, 8)))
def test_a_cancelled_gradient_moves_no_target(problem: Problem) -> None:
    """One direction only: after its first conflict g_i' is zero, and what it meets is not asked."""
    gram, order = gram_of(problem), problem.order
    start = torch.zeros(problem.tasks, problem.tasks, dtype=torch.float64)
    verdict = F.gradvac(gram, order, start, 0.5)
    for i, row in enumerate(order.tolist()):
        partners = [j for j in row if j != i]
        first = next((n for n, j in enumerate(partners) if gram[i, j] < 0), len(partners))
        after = partners[first + 1 :]
        assert (verdict.state["target"][i, after] == 0).all()
        assert not verdict.altered[i, after].any()
