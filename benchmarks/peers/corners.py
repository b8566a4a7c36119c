"""Corners in which torchjd's weightings and our methods differ.

``python -m benchmarks.peers.corners`` prints the table of docs/differences.md. Each line is one
Gram matrix, the condition that the paper asks for, and how far each is from it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.peers.weightings import PAIRINGS, weights

Residual = Callable[[Tensor, Tensor], float]  # weights [K], gram [K, K] -> 0 where it holds


class Corner(NamedTuple):
    """One line of the table.

    Attributes:
        method: a name of ``PAIRINGS``.
        case: the gradients, in words.
        condition: what the paper asks for, and is zero where it holds.
        gram: of the gradients.
        residual: measures the condition.
    """

    method: str
    case: str
    condition: str
    gram: Tensor
    residual: Residual


def gram_of(*rows: tuple[float, ...]) -> Tensor:
    """Return the Gram matrix of gradients that are given by rows."""
    gradients = torch.tensor(rows, dtype=torch.float64)
    return gradients @ gradients.mT


def regress(w: Tensor, gram: Tensor) -> float:
    """How far the worst task goes backwards, relative to its own step: max_k -(G w)_k / G_kk."""
    return float((-(gram @ w) / gram.diagonal()).max().clamp(min=0))


def excess_length(w: Tensor, gram: Tensor) -> float:
    """By how much an update is longer than the shortest vector of the hull, less one."""
    best = weights(PAIRINGS["MGDA"].ours(), gram)
    return float(((w @ gram @ w) / (best @ gram @ best)).sqrt()) - 1


def unfair(alpha: float) -> Residual:
    """How far G w is from w^(-1/alpha), relative, in the worst task."""
    return lambda w, gram: float((gram @ w * w.pow(1 / alpha) - 1).abs().max())


def no_update(w: Tensor, gram: Tensor) -> float:
    """1 where the update is zero, though the mean gradient is not."""
    return float((w @ gram @ w) <= 1e-12 * gram.mean())


def corners() -> Iterator[Corner]:
    """Yield the lines."""
    generator = torch.Generator().manual_seed(0)
    eight = torch.randn(8, 12, dtype=torch.float64, generator=generator)
    pair = gram_of((1.0, 0.0), (-2.0, 0.5))
    backwards = "no task goes backwards: max -(G w)_k / G_kk"
    yield Corner("UPGrad", "a conflict, trace of G 1e-5", backwards, 1e-5 * pair, regress)
    uneven = gram_of((0.01, 0.0), (-0.9, 0.5))
    yield Corner("UPGrad", "a conflict, norms 1 : 100", backwards, uneven, regress)
    yield Corner(
        "CAGrad(c=0.5)", "trace of G 1e-9", "the update is not zero", 1e-9 * pair, no_update
    )
    shortest = "the shortest vector: length over it, less 1"
    yield Corner("MGDA", "8 random gradients", shortest, eight @ eight.mT, excess_length)
    fair = "G w = w^(-1/alpha), relative"
    agreeing = gram_of((1.0, 0.2), (0.6, 1.0))
    yield Corner("FairGrad(alpha=2)", "gradients of norm 1e-4", fair, 1e-8 * agreeing, unfair(2.0))


def residual(corner: Corner, ours: bool) -> str:
    """Return how far ours or theirs is from the condition, or the error."""
    pair = PAIRINGS[corner.method]
    try:
        found = (
            weights(pair.ours(), corner.gram)
            if ours
            else pair.theirs(len(corner.gram), False)(corner.gram)
        )
    except Exception as error:  # the line says so
        return type(error).__name__
    return f"{corner.residual(found, corner.gram):.0e}"


def main() -> int:
    """Print the table."""
    warnings.simplefilter("ignore")
    print("| method | gradients | condition | ours | torchjd 0.18 |")
    print("|---|---|---|---|---|")
    for corner in corners():
        cells = (corner.method, corner.case, corner.condition)
        print(f"| {' | '.join((*cells, residual(corner, True), residual(corner, False)))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
