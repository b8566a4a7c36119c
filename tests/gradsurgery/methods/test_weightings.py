"""The methods that see losses: their papers' formulas, limits, absent tasks, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsurgery import (
    FAMO,
    DynamicWeightAverage,
    GeometricMean,
    GradNorm,
    LossWeighting,
    SmoothTchebycheff,
    UncertaintyWeighting,
)
from gradsurgery.methods import State
from tests import weightings

STEPS = 12
PREFERENCE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
IDEAL = torch.tensor([0.0, 0.1, -0.4], dtype=torch.float64)

#: Each method beside its oracle.
ORACLES: dict[str, tuple[LossWeighting, Callable[[Tensor], Tensor]]] = {
    "uncertainty": (UncertaintyWeighting(lr=0.1), lambda x: weightings.uncertainty(x, 0.1)),
    "dwa": (DynamicWeightAverage(), lambda x: weightings.dwa(x, 2.0, 1)),
    "dwa, epochs": (
        DynamicWeightAverage(temperature=0.5, period=3),
        lambda x: weightings.dwa(x, 0.5, 3),
    ),
    "geometric": (GeometricMean(), weightings.geometric),
    "tchebycheff": (
        SmoothTchebycheff(0.7, [2, 5, 3], IDEAL.tolist()),
        lambda x: weightings.tchebycheff(x, 0.7, PREFERENCE, IDEAL),
    ),
    "famo": (FAMO(lr=0.1, gamma=0.05), lambda x: weightings.famo(x, 0.1, 0.05)),
}
#: Those whose weights do not depend on the unit of all losses together.
UNITS = ["dwa", "geometric", "famo"]
#: Those whose weighted gradients don't depend on the unit of one loss.
EACH_UNIT = ["geometric"]

every_weighting = pytest.mark.parametrize("name", ORACLES)


def drawn(seed: int = 0, steps: int = STEPS, tasks: int = 3) -> Tensor:
    """Losses of different sizes, that fall."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(steps, tasks, generator=generator, dtype=torch.float64) + 0.5
    sizes = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)[:tasks]
    return noise * sizes * torch.linspace(1, 0.3, steps, dtype=torch.float64)[:, None]


def weights_of(method: LossWeighting, losses: Tensor) -> Tensor:
    """The weights of successive steps, ``[T, K]``."""
    return run(method, losses)[0]


def run(method: LossWeighting, losses: Tensor) -> tuple[Tensor, State]:
    state, weights = method.init(1, losses.shape[1]), []
    for step in losses:
        row, state = method.weigh(step, state)
        weights.append(row)
    return torch.stack(weights), state


@every_weighting
@pytest.mark.parametrize("seed", range(3))
def test_the_weights_are_the_papers(name: str, seed: int) -> None:
    method, oracle = ORACLES[name]
    losses = drawn(seed)
    torch.testing.assert_close(weights_of(method, losses), oracle(losses), rtol=1e-9, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_gradnorm_is_the_papers(alpha: float) -> None:
    method, losses = GradNorm(alpha=alpha, lr=0.05), drawn()
    norms = drawn(seed=9) * 7
    weights = gradnorm_weights(method, losses, norms)
    expected = weightings.gradnorm(losses, norms, alpha, 0.05)
    torch.testing.assert_close(weights, expected, rtol=1e-9, atol=0)


def gradnorm_weights(
    method: GradNorm, losses: Tensor, norms: Tensor, scale: float = 1.0, **options: Any
) -> Tensor:
    """The weights of successive steps; the gradients are orthogonal, in two segments."""
    tasks = losses.shape[1]
    state, weights = method.init(1, tasks), []
    for step, norm in zip(losses, norms, strict=True):
        half = torch.diag((norm * scale) ** 2 / 2)
        verdict = method(
            torch.stack([half, half]),
            losses=step,
            present=~step.isnan().expand(2, tasks),
            scale=torch.tensor(scale, dtype=torch.float64),
            state=state,
        )
        assert torch.equal(verdict.weights[0], verdict.weights[1])
        state = verdict.state
        weights.append(verdict.weights[0])
    return torch.stack(weights)


def test_a_loss_scale_that_grows_does_not_move_gradnorm() -> None:
    losses, norms = drawn(), drawn(seed=9)
    one, other = (gradnorm_weights(GradNorm(), losses, norms, scale) for scale in (1.0, 65536.0))
    assert torch.equal(one, other)


def test_gradnorm_settles_where_lengths_follow_the_rates() -> None:
    losses = torch.tensor([[1.0, 1.0]] + [[0.5, 1.0]] * 400, dtype=torch.float64)
    norms = torch.tensor([[10.0, 1.0]], dtype=torch.float64).expand_as(losses)
    w = gradnorm_weights(GradNorm(alpha=1.0, lr=0.005), losses, norms)[-1]
    first, second = (w * norms[0]).tolist()
    assert first / second == pytest.approx(0.5, rel=0.15)
    assert w.sum().item() == pytest.approx(2)


def test_gradnorms_weights_never_are_negative() -> None:
    losses = torch.ones(60, 2, dtype=torch.float64)
    norms = torch.tensor([[1e6, 1.0]], dtype=torch.float64).expand_as(losses)
    weights = gradnorm_weights(GradNorm(lr=0.1), losses, norms)
    assert (weights >= 0).all()
    assert weights.min() < 0.2
    torch.testing.assert_close(weights.sum(1), torch.full((60,), 2.0).double())


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_the_losses_common_unit_changes_no_weight(name: str, unit: float) -> None:
    method, losses = ORACLES[name][0], drawn()
    expected = weights_of(method, losses)
    torch.testing.assert_close(weights_of(method, losses * unit), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", EACH_UNIT)
def test_the_unit_of_one_loss_changes_no_direction(name: str) -> None:
    method, losses = ORACLES[name][0], drawn()
    units = torch.tensor([1e-9, 1.0, 1e9], dtype=torch.float64)
    update, other = weights_of(method, losses), weights_of(method, losses * units) * units
    factor = other / update
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor))


def test_the_weight_of_a_loss_that_stands_still_tends_to_its_inverse() -> None:
    losses = torch.tensor([[0.05, 20.0]], dtype=torch.float64).expand(500, 2)
    weights = weights_of(UncertaintyWeighting(lr=0.05), losses)
    assert weights[-1].tolist() == pytest.approx([20, 0.05], rel=0.05)


def test_without_a_rate_uncertainty_and_famo_stay_where_they_start() -> None:
    losses = drawn()
    assert (weights_of(UncertaintyWeighting(lr=0), losses) == 1).all()
    inverse = 1 / losses
    expected = inverse / inverse.sum(1, keepdim=True)
    torch.testing.assert_close(weights_of(FAMO(lr=0), losses), expected)


def test_dwa_is_equal_where_all_losses_fall_at_one_rate() -> None:
    losses = torch.tensor([[2.0, 300.0]]).double() * 0.9 ** torch.arange(6)[:, None]
    torch.testing.assert_close(weights_of(DynamicWeightAverage(), losses), torch.ones_like(losses))


def test_tchebycheff_between_its_limits() -> None:
    losses = drawn()
    least = weights_of(SmoothTchebycheff(mu=1e-6), losses)
    assert torch.equal(least.argmax(1), losses.argmax(1))
    torch.testing.assert_close(least.sum(1), torch.full((STEPS,), 1 / 3).double())
    most = weights_of(SmoothTchebycheff(mu=1e9, preference=[1, 2, 1]), losses)
    torch.testing.assert_close(most, torch.tensor([[1 / 12, 1 / 6, 1 / 12]] * STEPS).double())


def test_famo_raises_the_weight_of_the_task_that_falls_least() -> None:
    factors = torch.tensor([[0.9, 1.0, 0.9]], dtype=torch.float64)
    losses = torch.ones(3).double() * factors ** torch.arange(8)[:, None]
    logits = run(FAMO(), losses)[1]["logits"]
    assert logits[1] > 0 > logits[0] == logits[2]


@pytest.mark.parametrize("name", ["uncertainty", "geometric", "famo"])
def test_absent_tasks_change_nothing_for_the_others(name: str) -> None:
    """As if they did not exist; what the state knows of them stays."""
    method, losses = ORACLES[name][0], drawn()
    among = losses.clone()
    among[:, 1] = torch.nan
    weights, state = run(method, among)
    assert (weights[:, 1] == 1).all()
    torch.testing.assert_close(weights[:, [0, 2]], weights_of(method, losses[:, [0, 2]]))
    start = method.init(1, 3)
    for key, value in state.items():
        assert torch.equal(value[..., 1], start[key][..., 1])
        assert value.isfinite().all()


@pytest.mark.parametrize("name", ["uncertainty", "famo"])
def test_what_was_learned_of_a_task_stays_while_it_is_absent(name: str) -> None:
    method, losses = ORACLES[name][0], drawn()
    before = run(method, losses)[1]
    step = losses[0].clone()
    step[1] = torch.nan
    after = method.weigh(step, before)[1]
    for key, value in after.items():
        assert torch.equal(value[..., 1], before[key][..., 1])
        assert not torch.equal(value, before[key])


def test_absent_tasks_keep_their_share_of_dwa_and_their_history() -> None:
    losses = drawn(steps=4)
    whole = weights_of(DynamicWeightAverage(), losses)
    losses[3, 1] = torch.nan
    weights, state = run(DynamicWeightAverage(), losses)
    assert torch.equal(weights[:, [0, 2]], whole[:, [0, 2]])
    assert state["means"][:, 1].tolist() == [losses[2, 1].item()] * 2


def test_absent_tasks_leave_tchebycheffs_softmax() -> None:
    losses = torch.tensor([[1.0, torch.nan, 1.0]], dtype=torch.float64)
    weights = weights_of(SmoothTchebycheff(preference=[1, 2, 1]), losses)
    assert weights.tolist() == [[0.125, 1.0, 0.125]]


def test_absent_tasks_keep_gradnorms_weights() -> None:
    losses, norms = drawn(), drawn(seed=9)
    losses[:, 1] = torch.nan
    weights = gradnorm_weights(GradNorm(), losses, norms * ~losses.isnan())
    without = gradnorm_weights(GradNorm(), losses[:, [0, 2]], norms[:, [0, 2]])
    torch.testing.assert_close(weights[:, [0, 2]], without)


@pytest.mark.parametrize("method", [GeometricMean(), FAMO()])
def test_a_loss_of_zero_is_left_out(method: LossWeighting) -> None:
    """It cannot fall; the others are weighed without it."""
    losses = drawn(tasks=2)
    with_zero = torch.cat([losses, torch.zeros(STEPS, 1).double()], dim=1)
    weights = weights_of(method, with_zero)
    assert (weights[:, 2] == 0).all()
    torch.testing.assert_close(weights[:, :2], weights_of(method, losses))


@every_weighting
@pytest.mark.parametrize("losses", [[0.0, 0.0], [torch.nan, torch.nan], [0.0, 1e140], [1e-300, 1]])
def test_degenerate_losses_give_finite_weights(name: str, losses: list[float]) -> None:
    method = ORACLES[name][0]
    if name == "tchebycheff":
        method = SmoothTchebycheff()
    values = torch.tensor([losses] * 4, dtype=torch.float64)
    weights, state = run(method, values)
    assert weights.isfinite().all()
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("method", [GeometricMean(), FAMO()])
def test_negative_losses_are_refused(method: LossWeighting) -> None:
    losses = torch.tensor([1.0, -0.5], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"\[1.0, -0.5\].*add a constant"):
        method.weigh(losses, method.init(1, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UncertaintyWeighting(lr=-1), "lr .* not -1"),
        (lambda: DynamicWeightAverage(temperature=0), "temperature .* not 0"),
        (lambda: DynamicWeightAverage(period=0), "period .* not 0"),
        (lambda: SmoothTchebycheff(mu=0), "mu .* not 0"),
        (lambda: SmoothTchebycheff(preference=[1, 0]), r"preference .* not \[1, 0\]"),
        (lambda: SmoothTchebycheff(preference=[1, 2]).init(1, 3), "preference .* 3 tasks"),
        (lambda: SmoothTchebycheff(ideal=[1, 2]).init(1, 3), "ideal .* 3 tasks"),
        (lambda: FAMO(gamma=-1), "gamma .* -1"),
        (lambda: GradNorm(alpha=-1), "alpha .* -1"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
