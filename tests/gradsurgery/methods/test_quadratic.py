"""Quadratic programs over non-negative variables: optimal, also where the search has to be slow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradsurgery.methods import quadratic
from gradsurgery.methods.quadratic import nonnegative


def cosines(tasks: int, rank: int, seed: int, centred: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    grads = torch.randn(tasks, rank, generator=generator, dtype=torch.float64)
    grads = grads - centred * grads.mean(0)
    units = grads / grads.norm(dim=1, keepdim=True)
    return units @ units.T


def check_optimal(matrix: Tensor, linear: Tensor, x: Tensor) -> None:
    """Nothing below zero, no slope that pulls up, no slope where something is above zero."""
    slope = (matrix @ x.unsqueeze(-1)).squeeze(-1) - linear
    size = 1 + x.abs().amax()
    assert (x >= 0).all()
    assert (slope >= -1e-8 * size).all()
    assert ((x * slope).abs() <= 1e-8 * size**2).all()


@pytest.mark.parametrize("rounds", [1, 2, 10])
@pytest.mark.parametrize(
    ("tasks", "rank"), [(1, 1), (2, 1), (3, 5), (8, 8), (8, 4), (16, 20), (32, 16), (32, 40)]
)
def test_the_answer_is_optimal(
    tasks: int, rank: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the fast search finds it, or hands over after one round or two."""
    monkeypatch.setattr(quadratic, "ROUNDS", rounds)
    for seed in range(6):
        matrix = cosines(tasks, rank, seed, centred=0.9 * (seed % 2))
        linear = -matrix  # K cone projections at a time
        x = nonnegative(matrix[None].expand(tasks, -1, -1), linear)
        check_optimal(matrix, linear, x)


def test_a_guess_does_not_change_the_answer() -> None:
    matrix = cosines(8, 8, 0, centred=0.9)
    linear = -matrix
    problems = matrix.expand(8, -1, -1)
    for free in (linear > 1, linear < 1):
        assert torch.allclose(nonnegative(problems, linear, free), nonnegative(problems, linear))


def test_problems_are_solved_apart() -> None:
    matrices = torch.stack([cosines(6, 4, seed, centred=0.9) for seed in range(20)])
    linear = -matrices[:, 0]
    together = nonnegative(matrices, linear)
    apart = [nonnegative(m[None], b[None])[0] for m, b in zip(matrices, linear, strict=True)]
    assert torch.allclose(together, torch.stack(apart), atol=1e-9)
