"""The count law on simulated cosines: exponential tails give it, others a factor."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import numpy as np
import pytest
from numpy.typing import NDArray

from research.surgery.count_law import expected_alterations, replay, replays

STEPS, EPOCHS = 300, 6
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
LAPLACE: Draw = lambda rng, size: rng.laplace(0, 1, size)  # noqa: E731
NORMAL: Draw = lambda rng, size: rng.normal(0, 1, size)  # noqa: E731


def simulated(
    draw: Draw, scale: float, mean: float = 0.0, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Norms [T, 3] and cosines [T, 3, 3] of so many steps."""
    rng, steps = np.random.default_rng(seed), STEPS * EPOCHS
    cosines = np.broadcast_to(np.eye(3), (steps, 3, 3)).copy()
    i, j = np.triu_indices(3, 1)
    values = mean + scale * draw(rng, 3 * steps).reshape(steps, 3)
    cosines[:, i, j] = cosines[:, j, i] = values
    return np.ones((steps, 3)), cosines


def law(epoch: int, beta: float, start: float = 0.5) -> float:
    return expected_alterations(epoch, beta=beta, steps=STEPS, start=start)


@pytest.mark.parametrize("beta", [0.02, 0.1])
@pytest.mark.parametrize("spread", [0.002, 0.3])
def test_an_exponential_tail_gives_the_law_whatever_its_spread(beta: float, spread: float) -> None:
    """The rule alone, 4,000 pairs at once: to 2%, epoch by epoch to 8%."""
    rng, target = np.random.default_rng(0), np.zeros(4000)
    counts = []
    for _ in range(EPOCHS):
        altered = 0.0
        for _ in range(STEPS):
            cosine = rng.laplace(0, spread, len(target))
            below = cosine < target
            altered += 6 * below.mean()
            target += np.where(below, beta * (cosine - target), 0)
        counts.append(altered)
    expected = [law(epoch, beta) for epoch in range(1, EPOCHS + 1)]
    assert sum(counts) == pytest.approx(sum(expected), rel=0.02)
    assert counts == pytest.approx(expected, rel=0.08)


def test_gradvac_on_such_gradients_follows_it() -> None:
    """Four runs of six pairs, whose mean varies by a twentieth."""
    counts = [
        sum(replay(*simulated(LAPLACE, 0.01, seed=seed), beta=0.05, epochs=EPOCHS))
        for seed in range(4)
    ]
    expected = sum(law(epoch, 0.05) for epoch in range(1, EPOCHS + 1))
    assert fmean(counts) == pytest.approx(expected, rel=0.15)


def test_normal_cosines_give_up_to_1_57_times_as_many() -> None:
    counts = replay(*simulated(NORMAL, 0.02), beta=0.05, epochs=EPOCHS)
    expected = sum(law(epoch, 0.05) for epoch in range(1, EPOCHS + 1))
    assert expected < sum(counts) < 1.57 * expected


def test_the_tasks_do_not_decide_the_count() -> None:
    """Spread by ten and a mean on either side of zero: at most a fifth, from the second epoch on;
    the rate decides it."""
    totals = [
        sum(replay(*simulated(NORMAL, scale, mean), beta=0.05, epochs=EPOCHS)[1:])
        for scale, mean in ((0.003, 0.0), (0.03, 0.0), (0.03, 0.01), (0.03, -0.01))
    ]
    assert max(totals) < 1.2 * min(totals)
    quick = sum(replay(*simulated(NORMAL, 0.03), beta=0.2, epochs=EPOCHS)[1:])
    assert quick < min(totals) / 3


def test_the_papers_rule_goes_on_altering_half() -> None:
    counts = replay(*simulated(NORMAL, 0.02), beta=0.05, update="always", epochs=EPOCHS)
    assert counts[-1] == pytest.approx(6 * STEPS / 2, rel=0.1)


def test_the_law_has_its_limit_and_adds_up() -> None:
    exact = expected_alterations(3, beta=0.01, steps=10**9)
    assert exact == pytest.approx(expected_alterations(3, beta=0.01), rel=1e-6)
    halves = [expected_alterations(epoch, beta=0.1, steps=50) for epoch in (1, 2)]
    assert sum(halves) == pytest.approx(expected_alterations(1, beta=0.1, steps=100))
    # So small a rate leaves the target at its start: half of all.
    assert expected_alterations(1, beta=1e-9, steps=100) == pytest.approx(300, rel=1e-4)
    with pytest.raises(ValueError, match="begins at epoch 2"):
        expected_alterations(1, beta=0.01)


def test_replays_of_a_record_are_those_of_its_arrays() -> None:
    norms, cosines = simulated(NORMAL, 0.02)
    i, j = np.triu_indices(3, 1)
    record = {"epochs": EPOCHS, "norms": norms.tolist(), "cosines": cosines[:, i, j].tolist()}
    result = replays(record, (0.05,))
    assert result["counts"] == {"0.05": replay(norms, cosines, beta=0.05, epochs=EPOCHS)}
    assert (result["steps"], result["pairs"]) == (STEPS, 6)
    assert result["start"] == pytest.approx(0.5, abs=0.1)
