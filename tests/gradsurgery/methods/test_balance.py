"""C z = f z^-p: solved where there is a solution, finite and moderate where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradsurgery.methods.balance import LONG, balance
from tests.gradsurgery.methods.test_solutions import condition, draw_gradients

ONES = torch.ones(1, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("tasks", "seed"), [(5, 338), (9, 426), (3, 462), (7, 1278), (16, 1539), (10, 2107)]
)
def test_entries_many_orders_of_magnitude_apart(tasks: int, seed: int) -> None:
    """Large and small z in one equation, where an unscaled Newton step has no digits left."""
    grads = draw_gradients("nearly_dependent", tasks, 0, seed)
    assert condition("fairgrad_5", grads) <= 1e-6


@pytest.mark.parametrize("power", [0.2, 0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("cosine", [-0.999, -0.5, 0.0, 0.9, 1.0])
def test_two_tasks_have_a_closed_form(power: float, cosine: float) -> None:
    """z_1 = z_2 = z, (1 + c) z = z^-p."""
    matrix = torch.tensor([[[1, cosine], [cosine, 1]]], dtype=torch.float64)
    expected = (1 + cosine) ** (-1 / (1 + power))
    assert balance(matrix, ONES, power)[0].numpy() == pytest.approx([expected] * 2, rel=1e-9)


@pytest.mark.parametrize("power", [0.2, 0.5, 1.0, 2.0, 10.0])
def test_opposed_tasks_are_kept_moderate(power: float) -> None:
    matrix = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]], dtype=torch.float64)
    z = balance(matrix, ONES, power)[0]
    assert torch.allclose(z[0], z[1])
    assert 1 < z[0] <= 1.0001 * LONG


def test_factors_of_any_size() -> None:
    factors = torch.tensor([[1.0, 1e4, 1e-4]], dtype=torch.float64)
    z = balance(torch.eye(3, dtype=torch.float64)[None], factors, 0.5)[0]
    assert z.numpy() == pytest.approx(np.array([1.0, 1e4, 1e-4]) ** (1 / 1.5))
