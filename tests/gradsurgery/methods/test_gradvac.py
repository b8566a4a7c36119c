"""GradVac: equality with Algorithm 1 on vectors, its targets, and its cap."""

import random
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gradsurgery import functional as F
from tests import oracles
from tests.families import FAMILIES, Problem, problems
from tests.gradsurgery.checks import (
    check_altered,
    check_target,
    check_update,
    gram_of,
    precision,
    update_of,
)

UPDATES = ["always", "on_alter"]
BETAS = st.sampled_from([0.0, 1e-2, 0.5, 1.0])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Rows = list[list[int]]


def _check(problem: Problem, beta: float, update: str, steps: int = 2) -> None:
    target = problem.target
    gram = gram_of(problem)
    for _ in range(steps):
        answer = oracles.gradvac(
            problem.matrix, problem.order.numpy(), target.numpy(), beta, update, precision(problem)
        )
        verdict = F.gradvac(gram, problem.order, target, beta, update)
        check_update(problem, update_of(problem, verdict), answer)
        check_altered(problem, verdict.altered, answer)
        target = verdict.state["target"]
        check_target(problem, target, answer)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data(), beta=BETAS)
def test_is_the_paper(name: str, update: str, data: st.DataObject, beta: float) -> None:
    _check(data.draw(problems([name])), beta, update)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data(), beta=BETAS)
def test_is_the_paper_in_other_dtypes(dtype: torch.dtype, data: st.DataObject, beta: float) -> None:
    _check(data.draw(problems(dtype=dtype)), beta, "always", steps=1)


@pytest.mark.parametrize("t", [0.05, 0.3, 0.9, -0.2])
@given(problems(["independent", "conflicting", "nearly_orthogonal"], tasks=(2, 2)))
def test_one_visit_reaches_the_target(t: float, problem: Problem) -> None:
    """With K = 2, g_1' = g_1 + (w_2 - 1) g_2 has cosine t with g_2 (Equation 2)."""
    target = torch.full((2, 2), t, dtype=torch.float64)
    verdict = F.gradvac(gram_of(problem), problem.order, target, 0.1)
    first, second = problem.matrix / problem.norms.max()
    moved = first + (float(verdict.weights[1]) - 1) * second
    if not verdict.altered[0, 1]:
        assert (moved == first).all()
        return
    bound = oracles.CAP * np.linalg.norm(first + second) / 2
    length = np.linalg.norm(oracles.visit(first, second, t))
    assume(1e-3 < length < bound)  # one number has no direction to keep; above: the cap
    assert abs(moved @ second / np.linalg.norm(moved) / np.linalg.norm(second) - t) <= 1e-9


@given(problems(tasks=(2, 2)), BETAS)
def test_the_ema_follows_the_cosine_before_the_visit(problem: Problem, beta: float) -> None:
    """Equation 3: with K = 2 both cosines are those of the originals."""
    assume(problem.norms.min() > 0)
    first, second = problem.matrix / problem.norms[:, None]
    new = F.gradvac(gram_of(problem), problem.order, problem.target, beta).state["target"]
    for i, j in ((0, 1), (1, 0)):
        wanted = (1 - beta) * float(problem.target[i, j]) + beta * float(first @ second)
        assert abs(float(new[i, j]) - wanted) <= 1e-12
    assert torch.equal(new.diagonal(), problem.target.diagonal())


@given(problems(), st.sampled_from(UPDATES), st.sampled_from([1e-2, 0.7, 1.0]))
def test_targets_stay_cosines(problem: Problem, update: str, beta: float) -> None:
    gram, target = gram_of(problem), problem.target
    for _ in range(20):
        target = F.gradvac(gram, problem.order, target, beta, update).state["target"]
        assert (target.abs() <= 1).all()


@given(problems(tasks=(3, 3)), problems(tasks=(3, 3)))
def test_on_alter_targets_only_sink_from_zero(first: Problem, second: Problem) -> None:
    """What the much-copied rule cannot do: learn a positive cosine."""
    target = torch.zeros_like(first.target)
    for problem in (first, second, first):
        verdict = F.gradvac(gram_of(problem), problem.order, target, 0.1, "on_alter")
        new = verdict.state["target"]
        assert (new <= target).all()
        assert torch.equal(new[~verdict.altered], target[~verdict.altered])
        target = new


def test_always_targets_rise_where_on_alter_stays_at_zero() -> None:
    gram = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    order, zero = torch.tensor([[0, 1], [0, 1]]), torch.zeros(2, 2, dtype=torch.float64)
    always = F.gradvac(gram, order, zero, 0.5).state["target"]
    assert always.tolist() == [[0.0, 0.4], [0.4, 0.0]]
    assert torch.equal(F.gradvac(gram, order, zero, 0.5, "on_alter").state["target"], zero)


@given(problems(["aligned", "identical", "one_zero", "all_zero"]))
def test_above_their_targets_weights_are_exactly_one(problem: Problem) -> None:
    gram = gram_of(problem).clamp(min=0)
    for t in (0.0, -0.5, -1.0):
        verdict = F.gradvac(gram, problem.order, torch.full_like(gram, t), 0.1)
        assert (verdict.weights == 1).all()
        assert not verdict.altered.any()


@given(problems(), st.sampled_from([0.9, 0.999999, 1 - 1e-12, 1.0]))
def test_no_gradient_grows_beyond_the_documented_bound(problem: Problem, t: float) -> None:
    """|g_i'| <= max(|g_i|, 100 |s| / K), so the update is at most the sum of these."""
    target = torch.full_like(problem.target, t)
    update = update_of(problem, F.gradvac(gram_of(problem), problem.order, target, 0.1))
    norms = problem.norms
    plain = np.linalg.norm(problem.matrix.sum(0))
    plain += 1e-7 * norms.sum()  # what a Gram matrix knows of a sum that cancels
    bound = oracles.CAP * plain / max((norms > 0).sum(), 1)
    assert np.linalg.norm(update) <= (1 + 1e-9) * np.maximum(norms, bound).sum()


@pytest.mark.parametrize("ratio", [1.0, 1e-3, 1e-5, 1e-7, 1e-10])
@pytest.mark.parametrize("t", [0.999, 1 - 1e-9, 1 - 1e-13, 1.0])
def test_a_visit_never_grows_a_gradient_beyond_the_bound(ratio: float, t: float) -> None:
    """Orthogonal gradients of norm ratio and 1: |g_1'| <= 100 |s| / 2, to the last digits."""
    gram = torch.diag(torch.tensor([ratio**2, 1.0], dtype=torch.float64))
    target = torch.tensor([[0.0, t], [0.0, 0.0]], dtype=torch.float64)
    weights = F.gradvac(gram, torch.tensor([[0, 1], [0, 1]]), target, 0.1).weights
    grown = np.hypot(ratio, float(weights[1]) - 1)
    bound = oracles.CAP * np.hypot(ratio, 1.0) / 2
    assert grown <= bound * (1 + 1e-9)
    kept = min(t, oracles.LARGEST_TARGET)  # g_1' keeps its part across: |g_1'| = ratio / sine
    assert grown == pytest.approx(min(ratio / np.sqrt((1 - kept) * (1 + kept)), bound), rel=1e-6)


def test_thousands_of_steps_towards_target_one_stay_bounded() -> None:
    """Copies of one task: the paper's coefficient has no bound there, the update here has.

    The copies differ by nothing, by rounding, and by a little; targets come to one but for it.
    """
    generator = torch.Generator().manual_seed(0)
    copy, other = torch.randn(2, 1, 2, 40, dtype=torch.float64, generator=generator)
    copy = copy[:, :1].expand(3, 2, 40)
    grads = copy + torch.tensor([0.0, 1e-8, 1e-4], dtype=torch.float64).reshape(3, 1, 1) * other
    exact = grads @ grads.transpose(1, 2)
    bound = oracles.CAP * grads.sum(1).norm(dim=1) * (1 + 1e-9)
    order = torch.tensor([[0, 1], [1, 0]])
    target = torch.zeros(3, 2, 2, dtype=torch.float64)
    for step in range(5000):
        gram = exact
        if step % 3 == 0:  # a Gram matrix as another order of summation would round it
            noise = 1e-15 * torch.randn(3, 2, 2, dtype=torch.float64, generator=generator)
            gram = exact * (1 + noise + noise.transpose(1, 2))
        verdict = F.gradvac(gram, order, target, 1e-2)
        target = verdict.state["target"]
        update = torch.einsum("sk,skn->sn", verdict.weights, grads)
        assert (update.norm(dim=1) <= bound).all()
    assert (target.abs() <= 1).all()
    assert (target[:, [0, 1], [1, 0]] > 1 - 1e-6).all()


def _exactly_altered(
    rows: list[list[int]], order: list[list[int]], target: str
) -> list[list[bool]]:
    """GradVac's decisions on integer gradients, to 60 digits: what rounding has no part in."""
    with localcontext() as context:
        context.prec = 60

        def dot(x: list[Decimal], y: list[Decimal]) -> Decimal:
            return sum((a * b for a, b in zip(x, y, strict=True)), Decimal(0))

        grads = [[Decimal(x) for x in row] for row in rows]
        plain = [sum(column, Decimal(0)) for column in zip(*grads, strict=True)]
        bound = Decimal(oracles.CAP) * dot(plain, plain).sqrt() / len(grads)
        t = min(Decimal(target), Decimal(oracles.LARGEST_TARGET))
        altered = [[False] * len(grads) for _ in grads]
        for i, part in enumerate(map(list, grads)):
            for j in order[i]:
                other = grads[j]
                if i == j:
                    continue
                size = dot(other, other).sqrt()
                along = dot(part, other) / size
                across = max(dot(part, part) - along**2, Decimal(0)).sqrt()
                free = across * t / (1 - t * t).sqrt()
                capped = max(bound**2 - across**2, Decimal(0)).sqrt()
                wanted = min(free, capped)
                if wanted - along > Decimal("1e-20") * bound:
                    altered[i][j] = True
                    step = (wanted - along) / size
                    part = [x + step * y for x, y in zip(part, other, strict=True)]
        return altered


@pytest.mark.parametrize("target", ["1", "0.999999", "0.9"])
@pytest.mark.parametrize("tasks", [3, 4, 8])
def test_at_the_cap_no_rounding_decides(tasks: int, target: str) -> None:
    """Orthogonal gradients are the hardest: what a second visit could add is exactly zero."""
    draw = random.Random(tasks)
    for trial in range(40):
        if trial % 2:
            rows = [[draw.randint(1, 9) if i == k else 0 for i in range(8)] for k in range(tasks)]
        else:
            rows = [[draw.randint(-1, 9) for _ in range(12)] for _ in range(tasks)]
        order = [draw.sample(range(tasks), tasks) for _ in range(tasks)]
        grads = draw.choice([1.0, 0.1, 1 / 3]) * torch.tensor(rows, dtype=torch.float64)
        start = torch.full((tasks, tasks), float(target), dtype=torch.float64)
        verdict = F.gradvac(grads @ grads.T, torch.tensor(order), start, 0.5, "on_alter")
        assert verdict.altered.tolist() == _exactly_altered(rows, order, target)
        new = verdict.state["target"]
        assert torch.equal(new[~verdict.altered], start[~verdict.altered])
        assert (new < start)[verdict.altered].all()
