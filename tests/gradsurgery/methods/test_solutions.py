"""The methods of the Gram matrix do what their papers say: conditions, oracles, laws, limits."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.peers.conditions import CONDITIONS
from gradsurgery import CAGrad, FairGrad
from gradsurgery.methods import directions
from tests.families import FAMILIES
from tests.methods import METHODS, ON_DEVICE
from tests.solutions import ORACLES, hull

Array = np.ndarray

#: The papers' conditions hold to this, beyond what rounding of the Gram matrix explains.
EXACT = 1e-6
REGULAR = ["independent", "conflicting", "aligned", "nearly_orthogonal", "unequal_norms"]
NEARLY = ["nearly_parallel", "nearly_opposite", "nearly_dependent"]
DEPENDENT = ["identical", "opposite", "parallel", "low_rank", "one_hot"]
#: Their conditions can be met by dependent gradients too.
ALWAYS = ["mgda", "cagrad", "cagrad_0.9", "upgrad", "dual_proj"]
FAIR = ["nash_mtl", "fairgrad", "fairgrad_0.5", "fairgrad_5"]


def draw_gradients(family: str, tasks: int, extra: int, seed: int, spread: float = 1e2) -> Array:
    """K gradients of a family, with norms up to ``spread ** 2`` apart where it has such."""
    rng = np.random.default_rng([seed, tasks, tasks + extra])
    size = tasks + extra
    if family not in NEARLY:
        return FAMILIES[family](rng, tasks, size, spread)
    base = {"nearly_parallel": "identical", "nearly_opposite": "opposite"}.get(family, "low_rank")
    grads = FAMILIES[base](rng, tasks, size, spread)
    grads = grads + 1e-3 * rng.standard_normal(grads.shape)
    return grads * spread ** rng.uniform(-1, 1, (tasks, 1))


@st.composite
def gradients(draw: st.DrawFn, families: list[str], most: int = 16) -> Array:
    """Gradients [K, N] at any scale that losses have."""
    grads = draw_gradients(
        draw(st.sampled_from(families)),
        draw(st.integers(2, most)),
        draw(st.integers(0, 20)),
        draw(st.integers(0, 2**16)),
    )
    return grads * 10.0 ** draw(st.integers(-12, 12))


def weights_of(name: str, grads: Array, present: list[bool] | None = None) -> Array:
    """The weights [K], from gradients [K, N]."""
    row, gram = METHODS[name], torch.from_numpy(grads @ grads.T)[None]
    facts = row.facts(gram, torch.arange(len(grads)).expand(len(grads), -1))
    if present is not None:
        facts["present"] = torch.tensor([present])
    return row.make(0)(gram, state={}, **facts).weights[0].numpy()


def condition(name: str, grads: Array) -> float:
    """By how much the paper's condition is broken."""
    weights = weights_of(name, grads)
    assert np.isfinite(weights).all()
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        return CONDITIONS[name](grads @ grads.T, weights)


def is_stationary(grads: Array, distance: float = 1e-3) -> bool:
    """Whether a convex combination of the gradients is nearly zero: no update serves all."""
    norms = np.linalg.norm(grads, axis=1)
    weights = hull(grads / norms[:, None])
    return bool(np.linalg.norm(weights @ (grads / norms[:, None])) < distance)


def smallest_eigenvalue(grads: Array) -> float:
    units = grads / np.linalg.norm(grads, axis=1, keepdims=True)
    return float(np.linalg.eigvalsh(units @ units.T)[0])


@pytest.mark.parametrize("name", CONDITIONS)
@given(grads=gradients(REGULAR + NEARLY))
def test_the_papers_condition_holds(name: str, grads: Array) -> None:
    assume(smallest_eigenvalue(grads) > 1e-9)
    if name in FAIR:
        assume(not is_stationary(grads))
    assert condition(name, grads) <= EXACT


@pytest.mark.parametrize("name", ALWAYS)
@given(grads=gradients(DEPENDENT))
def test_the_condition_holds_for_dependent_gradients(name: str, grads: Array) -> None:
    assert condition(name, grads) <= EXACT


@pytest.mark.parametrize("name", FAIR)
@given(grads=gradients(DEPENDENT))
def test_fair_weights_of_dependent_gradients(name: str, grads: Array) -> None:
    assume(not is_stationary(grads))
    assert condition(name, grads) <= EXACT


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("seed", range(8))
def test_the_update_is_that_of_an_independent_solver(name: str, seed: int) -> None:
    """Well-scaled gradients, half of them in conflict."""
    rng = np.random.default_rng(seed)
    grads = rng.standard_normal((rng.integers(2, 7), 16)) * rng.uniform(0.5, 2)
    grads -= 0.5 * (seed % 2) * grads.mean(0)
    update, oracle = weights_of(name, grads) @ grads, ORACLES[name](grads)
    assert np.linalg.norm(update - oracle) <= 1e-6 * np.linalg.norm(oracle)


@pytest.mark.parametrize("name", [name for name in ORACLES if name.startswith("aligned")])
@given(grads=gradients(REGULAR))
def test_aligned_components_have_the_common_size(name: str, grads: Array) -> None:
    """Against the singular values of the gradients themselves; K eigenvalues reach half as far."""
    values = np.linalg.svd(grads, compute_uv=False)
    assume(values[-1] > 1e-5 * values[0])
    update, oracle = weights_of(name, grads) @ grads, ORACLES[name](grads)
    assert np.linalg.norm(update - oracle) <= EXACT * np.linalg.norm(oracle)


@pytest.mark.parametrize("name", ORACLES)
@given(grads=gradients(["independent", "conflicting", "unequal_norms"]), power=st.integers(-12, 12))
def test_scaling_all_losses_scales_the_update_by_the_degree(
    name: str, grads: Array, power: int
) -> None:
    assume(smallest_eigenvalue(grads) > 1e-4)
    update = weights_of(name, grads) @ grads
    scaled = weights_of(name, 10.0**power * grads) @ (10.0**power * grads)
    expected = 10.0 ** (power * METHODS[name].make(0).degree) * update
    assert np.linalg.norm(scaled - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ORACLES)
@given(grads=gradients(["independent", "conflicting", "unequal_norms"]), seed=st.integers(0, 99))
def test_the_sequence_of_the_tasks_does_not_matter(name: str, grads: Array, seed: int) -> None:
    assume(smallest_eigenvalue(grads) > 1e-4)
    order = np.random.default_rng(seed).permutation(len(grads))
    weights, permuted = weights_of(name, grads), weights_of(name, grads[order])
    update = weights @ grads
    size = np.linalg.norm(update) + 1e-9 * np.abs(weights) @ np.linalg.norm(grads, axis=1)
    assert np.linalg.norm(permuted @ grads[order] - update) <= 1e-6 * size


@pytest.mark.parametrize("name", ORACLES)
@given(grads=gradients([*REGULAR, *NEARLY, *DEPENDENT], most=7), at=st.integers(0, 7))
def test_an_absent_task_is_no_part_of_the_problem(name: str, grads: Array, at: int) -> None:
    """Bitwise, or to rounding where the size of the matrix decides on the order of sums."""
    at = min(at, len(grads))
    among = np.insert(grads, at, 0, axis=0)
    present = [k != at for k in range(len(among))]
    weights, without = weights_of(name, among, present), weights_of(name, grads)
    assert weights[at] == 0
    size = np.abs(without) @ np.linalg.norm(grads, axis=1)
    assume(smallest_eigenvalue(grads) > 1e-4 or name in ALWAYS)
    difference = weights @ among - without @ grads
    assert np.linalg.norm(difference) <= 1e-6 * size


@pytest.mark.parametrize("name", ORACLES)
def test_segments_are_separate_problems(name: str) -> None:
    """Easy ones, hard ones, ones that take the slow way and ones without a gradient, at once."""
    kinds = [*REGULAR, *NEARLY, *DEPENDENT, "all_zero", "one_zero"]
    batch = [draw_gradients(kind, 6, 4, seed) for kind in kinds for seed in range(3)]
    row, grams = METHODS[name], torch.stack([torch.from_numpy(g @ g.T) for g in batch])
    present = torch.ones(len(batch), 6, dtype=torch.bool)
    together = row.make(0)(grams, present=present, state={}).weights.numpy()
    for grads, weights in zip(batch, together, strict=True):
        alone = weights_of(name, grads)
        size = np.abs(alone) @ np.linalg.norm(grads, axis=1)
        assert np.linalg.norm((weights - alone) @ grads) <= 1e-6 * size


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_degenerate_gradients_have_finite_weights(name: str, family: str) -> None:
    """More tasks than dimensions, norms twelve orders apart, zeros, and nobody there."""
    for tasks, seed in product([1, 2, 3, 8, 16, 32], range(3)):
        grads = draw_gradients(family, tasks, -tasks + 1 + 3 * seed, seed, spread=1e6)
        for scale in (1e-12, 1.0, 1e12):
            weights = weights_of(name, scale * grads)
            assert np.isfinite(weights).all()
            assert np.isfinite(weights_of(name, scale * grads, [False] * tasks)).all()


@pytest.mark.parametrize("name", ORACLES)
def test_weights_stay_moderate_where_gradients_oppose_each_other(name: str) -> None:
    """What cancels must not be so long that its float32 rounding is the update."""
    for angle in (0.0, 1e-15, 1e-10, 1e-7, 1e-5, 1e-3):
        for other in (1.0, 1e4):
            grads = np.array([[1.0, 0.0, 0.0], [-other, other * angle, 0.0], [0.0, 0.0, 1.0]])
            weights = weights_of(name, grads)
            update = weights @ grads
            parts = np.abs(weights) * np.linalg.norm(grads, axis=1)
            assert parts.max() <= 2e6 * max(np.linalg.norm(update), 1.0), (angle, other)


@pytest.mark.parametrize("seed", range(20))
def test_config_of_opposed_gradients_is_zero(seed: int) -> None:
    """No direction has a positive cosine with both of a pair, also where rounding points at one."""
    rng = np.random.default_rng(seed)
    for pairs in (1, 2, 3):
        first = rng.standard_normal((pairs, 8))
        grads = np.concatenate([first, -rng.uniform(0.5, 3, (pairs, 1)) * first])
        update = weights_of("config", grads) @ grads
        assert np.linalg.norm(update) <= 1e-9 * np.linalg.norm(grads)


@pytest.mark.parametrize("seed", range(5))
def test_imtl_g_of_dependent_gradients_has_the_shortest_parts(seed: int) -> None:
    """Of all weights with equal projections and sum one, those of least sum_k (w_k |g_k|)^2."""
    rng = np.random.default_rng(seed)
    for tasks, rank in [(2, 1), (3, 1), (4, 2), (6, 3)]:
        grads = draw_gradients("low_rank", tasks, 3, seed, spread=3)
        if rank == 1:
            grads = np.outer(rng.choice([-1, 1], tasks) * rng.uniform(1, 2, tasks), grads[0])
        norms = np.linalg.norm(grads, axis=1)
        units = grads / norms[:, None]
        # The unknowns: w |g| and the common projection, which costs nothing.
        equal = np.hstack([units @ units.T, -np.ones((tasks, 1))])
        _, sizes, right = np.linalg.svd(equal)
        null = right[(sizes > 1e-9).sum() :, :-1]
        free = np.linalg.svd(null)[2][: np.linalg.matrix_rank(null, 1e-9)]
        aim = free.T @ (free @ (1 / norms))
        expected = aim / (aim @ aim) / norms
        assert np.allclose(weights_of("imtl_g", grads), expected, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in ORACLES if ON_DEVICE not in METHODS[name].laws])
def test_one_copy_to_the_cpu_and_one_back_that_nobody_waits_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU these are all the transfers: one wait a step."""
    copies: list[str] = []
    to_cpu, to_device = Tensor.cpu, directions.to_device

    def counted_to_cpu(tensor: Tensor) -> Tensor:
        copies.append("to the CPU")
        return to_cpu(tensor)

    def counted_to_device(host: Tensor, device: torch.device) -> Tensor:
        copies.append("back")
        return to_device(host, device)

    monkeypatch.setattr(Tensor, "cpu", counted_to_cpu)
    monkeypatch.setattr(directions, "to_device", counted_to_device)
    grads = torch.from_numpy(draw_gradients("conflicting", 5, 3, 0))
    row, gram = METHODS[name], (grads @ grads.mT)[None]
    row.make(0)(gram, state={}, **row.facts(gram, torch.arange(5).expand(5, -1)))
    assert copies == ["to the CPU", "back"]


#: By name: the length of the update for K equal gradients of length g.
LENGTHS = {
    "sum": lambda tasks, g: tasks * g,
    "pcgrad": lambda tasks, g: tasks * g,
    "gradvac": lambda tasks, g: tasks * g,
    "mgda": lambda tasks, g: g,
    "cagrad": lambda tasks, g: 1.5 * g,
    "imtl_g": lambda tasks, g: g,
    "nash_mtl": lambda tasks, g: tasks**0.5,
    "fairgrad": lambda tasks, g: (tasks / g) ** (1 / 3),
    "aligned_mtl": lambda tasks, g: tasks * g,
    "upgrad": lambda tasks, g: g,
    "dual_proj": lambda tasks, g: g,
    "config": lambda tasks, g: tasks * g,
    "primary": lambda tasks, g: tasks * g,
    "random_weights": lambda tasks, g: g,
}


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("tasks", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [1.0, 8.0])
def test_the_length_of_the_update_of_equal_gradients(name: str, tasks: int, length: float) -> None:
    grads = np.tile([0.6 * length, 0.8 * length], (tasks, 1))
    row = METHODS[name]
    gram = torch.from_numpy(grads @ grads.T)
    weights = row.decide(gram, torch.arange(tasks).expand(tasks, -1)).weights[0].numpy()
    expected = LENGTHS[name](tasks, length)
    assert np.linalg.norm(weights @ grads) == pytest.approx(expected, rel=1e-9)


OPPOSED = np.array([[1.0, 0.0], [-1.0, 0.0]])
ZERO_AND_ONE = np.array([[0.0, 0.0], [3.0, 4.0]])
UNEQUALLY_OPPOSED = np.array([[1.0, 0.0], [-3.0, 0.0]])
LIMITS = [  # method, gradients, update
    ("mgda", OPPOSED, [0, 0]),
    ("mgda", UNEQUALLY_OPPOSED, [0, 0]),
    ("mgda", ZERO_AND_ONE, [0, 0]),
    ("cagrad", OPPOSED, [0, 0]),
    ("cagrad", UNEQUALLY_OPPOSED, [-0.5, 0]),
    ("cagrad", ZERO_AND_ONE, [1.5, 2]),
    ("imtl_g", OPPOSED, [0, 0]),
    ("imtl_g", UNEQUALLY_OPPOSED, [0, 0]),
    ("imtl_g", ZERO_AND_ONE, [0, 0]),
    ("nash_mtl", OPPOSED, [0, 0]),
    ("nash_mtl", ZERO_AND_ONE, [0.6, 0.8]),
    ("fairgrad", OPPOSED, [0, 0]),
    ("fairgrad", ZERO_AND_ONE, [0.6 * 5 ** (-1 / 3), 0.8 * 5 ** (-1 / 3)]),
    ("aligned_mtl", OPPOSED, [0, 0]),
    ("aligned_mtl", ZERO_AND_ONE, [3, 4]),
    ("upgrad", OPPOSED, [0, 0]),
    ("upgrad", UNEQUALLY_OPPOSED, [0, 0]),
    ("upgrad", ZERO_AND_ONE, [1.5, 2]),
    ("dual_proj", OPPOSED, [0, 0]),
    ("dual_proj", UNEQUALLY_OPPOSED, [0, 0]),
    ("dual_proj", ZERO_AND_ONE, [1.5, 2]),
    ("config", OPPOSED, [0, 0]),
    ("config", UNEQUALLY_OPPOSED, [0, 0]),
    ("config", ZERO_AND_ONE, [3, 4]),
]


@pytest.mark.parametrize(("name", "grads", "update"), LIMITS)
def test_limits(name: str, grads: Array, update: list[float]) -> None:
    assert weights_of(name, grads) @ grads == pytest.approx(update, abs=1e-9)


def test_nash_mtl_of_orthogonal_gradients_is_the_sum_of_unit_gradients() -> None:
    assert weights_of("nash_mtl", np.diag([4.0, 0.5, 1e-6])) == pytest.approx([0.25, 2, 1e6])


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 2.0, 5.0])
def test_fairgrad_of_orthogonal_gradients(alpha: float) -> None:
    """|g_k|^2 w = w^(-1/alpha); alpha = 1 is Nash-MTL."""
    norms = np.array([1e-2, 1.0, 3.0, 1e2])
    gram, present = torch.from_numpy(np.diag(norms**2))[None], torch.ones(1, 4, dtype=torch.bool)
    weights = FairGrad(alpha)(gram, present=present, state={}).weights[0]
    assert weights.numpy() == pytest.approx(norms ** (-2 / (1 + 1 / alpha)))


def test_cagrad_goes_from_the_mean_towards_mgda() -> None:
    grads = np.random.default_rng(0).standard_normal((3, 8))
    gram = torch.from_numpy(grads @ grads.T)[None]
    present = torch.ones(1, 3, dtype=torch.bool)
    still, far = (
        CAGrad(c)(gram, present=present, state={}).weights[0].numpy() @ grads for c in (0, 1e6)
    )
    assert still == pytest.approx(grads.mean(0))
    shortest = weights_of("mgda", grads) @ grads
    assert far / np.linalg.norm(far) == pytest.approx(shortest / np.linalg.norm(shortest), rel=1e-4)
