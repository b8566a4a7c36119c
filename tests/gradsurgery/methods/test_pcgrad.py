"""PCGrad: equality with Algorithm 1 on vectors, and what Yu et al. 2020 promise of it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradsurgery import functional as F
from tests import oracles
from tests.families import FAMILIES, Problem, problems
from tests.gradsurgery.checks import (
    check_altered,
    check_update,
    dtype_of,
    gram_of,
    precision,
    update_of,
)

EXACT = torch.float64
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _check(problem: Problem) -> None:
    answer = oracles.pcgrad(problem.matrix, problem.order.numpy(), precision(problem))
    answer.doubt = 0.0  # every visit projects on a half-space: errors never grow
    verdict = F.pcgrad(gram_of(problem), problem.order)
    check_update(problem, update_of(problem, verdict), answer)
    check_altered(problem, verdict.altered, answer)
    assert verdict.state == {}


@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
def test_is_the_paper(name: str, data: st.DataObject) -> None:
    _check(data.draw(problems([name])))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
def test_is_the_paper_in_other_dtypes(dtype: torch.dtype, data: st.DataObject) -> None:
    problem = data.draw(problems(dtype=dtype))
    assert dtype_of(problem) == dtype
    _check(problem)


@given(problems(tasks=(2, 2)))
def test_two_tasks_are_left_without_conflict(problem: Problem) -> None:
    """With K = 2, g_1' = g_1 + (w_2 - 1) g_2 and g_2' = g_2 + (w_1 - 1) g_1."""
    weights = F.pcgrad(gram_of(problem), problem.order).weights.numpy()
    first, second = problem.matrix
    smallest = -1e-12 * problem.norms.prod()
    assert (first + (weights[1] - 1) * second) @ second >= smallest
    assert (second + (weights[0] - 1) * first) @ first >= smallest


@given(problems(["aligned", "identical", "one_zero", "all_zero", "one_hot"]))
def test_without_conflict_weights_are_exactly_one(problem: Problem) -> None:
    gram = gram_of(problem)
    gram = gram.abs() if (gram < 0).any() else gram
    verdict = F.pcgrad(gram, problem.order)
    assert (verdict.weights == 1).all()
    assert not verdict.altered.any()


@given(problems())
def test_is_gradvac_with_target_zero_and_no_memory(problem: Problem) -> None:
    gram = gram_of(problem)
    zero = torch.zeros_like(gram)
    surgery = F.pcgrad(gram, problem.order)
    vaccine = F.gradvac(gram, problem.order, zero, 0.0)
    error = np.linalg.norm(update_of(problem, surgery) - update_of(problem, vaccine))
    assert error <= 1e-9 * problem.norms.sum()
    assert torch.equal(vaccine.state["target"], zero)


@given(problems())
def test_an_update_never_exceeds_the_sum_of_norms(problem: Problem) -> None:
    """Projections shorten: |g_i'| <= |g_i|."""
    update = update_of(problem, F.pcgrad(gram_of(problem), problem.order))
    assert np.linalg.norm(update) <= (1 + 1e-12) * problem.norms.sum()


def test_each_gradient_is_projected_against_originals() -> None:
    """Three tasks where projecting against modified gradients gives another answer."""
    grads = [[torch.tensor(v)] for v in ([1.0, 0.0, 0.5], [-1.0, 1.0, 0.2], [-2.0, -3.0, 1.0])]
    order = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 0, 1]])
    problem = Problem("by hand", grads, order, torch.zeros(3, 3, dtype=EXACT))
    answer = oracles.pcgrad(problem.matrix, order.numpy())
    check_update(problem, update_of(problem, F.pcgrad(gram_of(problem), order)), answer)
