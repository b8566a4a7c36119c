"""Our methods and torchjd's solve the same problems: where both are exact, they agree."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from benchmarks.peers.peer import INSTALL
from benchmarks.peers.weightings import PAIRINGS, difference, jacobian, weights

pytest.importorskip("torchjd", reason=INSTALL["torchjd"])
for package in ("quadprog", "cvxpy", "ecos", "clarabel"):
    pytest.importorskip(package, reason="torchjd's own extras")

pytestmark = pytest.mark.filterwarnings("ignore")


def random_gram(tasks: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * tasks + seed)
    gradients = torch.randn(tasks, 4 * tasks, dtype=torch.float64, generator=generator)
    return gradients @ gradients.mT


@pytest.mark.parametrize("tasks", [2, 3, 8])
@pytest.mark.parametrize("name", PAIRINGS)
def test_updates_agree_on_well_scaled_gradients(name: str, tasks: int) -> None:
    pair = PAIRINGS[name]
    for seed in range(4):
        gram = random_gram(tasks, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = pair.theirs(tasks, True)(gram)
        gap = difference(weights(pair.ours(), gram), theirs, gram, pair.factor(tasks))
        assert gap < pair.tolerance


def test_where_torchjd_stops_early_ours_is_the_better_solution() -> None:
    """MGDA's update is the shortest vector of the hull."""
    pair = PAIRINGS["MGDA"]
    for seed in range(4):
        gram = random_gram(8, seed)
        ours, theirs = weights(pair.ours(), gram), pair.theirs(8, False)(gram)
        assert ours @ gram @ ours <= (theirs @ gram @ theirs) * (1 + 1e-12)


def test_gradients_of_a_gram_matrix() -> None:
    gram = random_gram(5, 0)
    root = jacobian(gram)
    torch.testing.assert_close(root @ root.mT, gram)
