"""The judge is judged first: closed forms of the papers, and that comparing with it is sharp."""

import numpy as np
import pytest
from hypothesis import assume, given

from tests import oracles
from tests.families import FAMILIES, LAYOUTS, Problem, draw, problems

TWO = np.array([[0, 1], [0, 1]])


def test_pcgrad_by_hand() -> None:
    """(1, 0) and (-1, 1): the first loses its half along the second, the second its whole -1."""
    answer = oracles.pcgrad(np.array([[1.0, 0.0], [-1.0, 1.0]]), TWO)
    np.testing.assert_allclose(answer.parts, [[0.5, 0.5], [0.0, 1.0]], atol=1e-15)
    np.testing.assert_array_equal(answer.altered, [[False, True], [True, False]])


def test_order_matters_and_projects_against_originals() -> None:
    grads = np.array([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [-1.0, -3.0, 0.0]])
    forward = oracles.pcgrad(grads, np.array([[0, 1, 2]] * 3))
    backward = oracles.pcgrad(grads, np.array([[0, 2, 1], [1, 2, 0], [2, 1, 0]]))
    # After (1, 0) was made orthogonal to (-1, 1) it is (.5, .5); against (-1, -3): dot -2.
    np.testing.assert_allclose(forward.parts[0], [0.5 - 0.2, 0.5 - 0.6, 0.0], atol=1e-15)
    assert np.abs(forward.update - backward.update).max() > 0.1


@given(problems(tasks=(2, 2)))
def test_the_visit_is_equation_2(problem: Problem) -> None:
    """Along and across is Equation 2 of the paper, wherever the cap does not act."""
    grads = problem.matrix
    assume(problem.norms.min() > 0)
    first, second = grads / problem.norms[:, None]
    assume(abs(first @ second) < 1 - 1e-6)  # where sqrt(1 - c^2) is exact enough
    t = 0.3
    answer = oracles.gradvac(grads, TWO, np.full((2, 2), t), 0.1)
    literal = oracles.visit(grads[0], grads[1], t)
    assume(np.linalg.norm(literal) < 50 * np.linalg.norm(grads.sum(0)))
    np.testing.assert_allclose(answer.parts[0], literal, atol=1e-9 * problem.norms.sum())


def test_the_cap_by_hand() -> None:
    """Orthogonal unit vectors, target one: the visit stops at 100 |s| / K = 50 sqrt(2)."""
    answer = oracles.gradvac(np.eye(2), TWO, np.ones((2, 2)), 0.1)
    lengths = np.linalg.norm(answer.parts, axis=1)
    np.testing.assert_allclose(lengths, 50 * np.sqrt(2), rtol=1e-12)


@given(problems())
def test_target_zero_and_no_memory_is_pcgrad(problem: Problem) -> None:
    zero = np.zeros((problem.tasks, problem.tasks))
    order = problem.order.numpy()
    vaccine = oracles.gradvac(problem.matrix, order, zero, 0.0)
    surgery = oracles.pcgrad(problem.matrix, order)
    np.testing.assert_allclose(
        vaccine.update, surgery.update, rtol=0, atol=1e-12 * problem.norms.sum()
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_comparing_is_sharp(name: str) -> None:
    """In each family the oracle doubts few answers, so comparing with it is not vacuous."""
    sharp, certain, total = 0, 0, 0
    for seed in range(40):
        problem = draw(name, 1 + seed % 8, LAYOUTS[seed * 5 % len(LAYOUTS)], seed)
        answer = oracles.gradvac(
            problem.matrix, problem.order.numpy(), problem.target.numpy(), 0.01
        )
        sharp += answer.doubt <= 1e-6 * problem.norms.sum()
        certain += int(answer.certain.sum())
        total += answer.certain.size
    assert sharp >= 24
    assert certain >= 0.75 * total
