"""The gradients of a batch, as numbers: what the losses are built from, and the reference told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tests.gradsurgery.programs.program import TASKS, Batch, Weight

Array = np.ndarray


@dataclass(frozen=True)
class Piece:
    """One use of a parameter: the loss has ``(parameter * coefficients).sum()``, or of some rows.

    Attributes:
        coefficients: of the parameter's shape, or [n, columns].
        rows: the n rows that an embedding looks up; None for a dense use.
    """

    coefficients: Array
    rows: Array | None = None

    def dense(self, shape: tuple[int, ...]) -> Array:
        """The gradient."""
        if self.rows is None:
            return self.coefficients
        gradient = np.zeros(shape)
        np.add.at(gradient, self.rows, self.coefficients)
        return gradient


def inputs_of(weight: Weight) -> Array:
    """The factors between a trunk's parameter and the features, powers of two."""
    rng = np.random.default_rng(len(weight.name))
    return rng.choice([0.5, 1.0, 2.0, -1.0], weight.shape)


def uses(batch: Batch, weights: list[Weight]) -> dict[int, list[Piece]]:
    """How a batch's loss uses the parameters, by position; of a trunk's, the features."""
    pieces: dict[int, list[Piece]] = {}
    for position, weight in enumerate(weights):
        left_out = batch.skips and position % 3 == batch.task % 3 and position > 0
        if batch.task in weight.users and not left_out:
            pieces[position] = _pieces(batch, weight, position)
    if batch.poison:
        used = sorted(pieces)
        first = pieces[used[batch.seed % len(used)]][0]
        first.coefficients.flat[0] = float(batch.poison)
    return pieces


def _pieces(batch: Batch, weight: Weight, position: int) -> list[Piece]:
    shared = batch.relation in ("same", "opposite")
    rng = np.random.default_rng([batch.seed, position, len(TASKS) if shared else batch.task])

    def eighths(*shape: int) -> Array:
        drawn = rng.integers(-16, 17, shape) / 8.0
        sign = -1.0 if batch.relation == "opposite" and batch.task % 2 else 1.0
        return np.asarray(0.0 if batch.relation == "zero" else sign) * np.asarray(drawn)

    embeds = weight.kind == "sparse" or (
        weight.kind == "half sparse" and batch.task != weight.users[-1]
    )
    if embeds:
        rows = rng.integers(0, weight.shape[0], 3)
        return [Piece(eighths(3, weight.shape[1]), rows)]
    return [Piece(eighths(*weight.shape)) for _ in range(2 if weight.kind == "tied" else 1)]


class _Poisoned(torch.autograd.Function):
    """Zero, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, parameter: Tensor, coefficients: Tensor) -> Tensor:
        ctx.save_for_backward(coefficients)
        return parameter.new_zeros(())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (coefficients,) = ctx.saved_tensors
        return grad * coefficients, None


def loss_of(
    batch: Batch, weights: list[Weight], parameters: list[nn.Parameter], features: dict[int, Tensor]
) -> Tensor:
    """The loss: its value is the batch's, its gradients what :func:`uses` says.

    ``features``, by the position of their parameter, are what a trunk returned.
    """
    terms = []
    for position, pieces in uses(batch, weights).items():
        used = features.get(position, parameters[position])
        for piece in pieces:
            coefficients = torch.from_numpy(np.array(piece.coefficients)).to(used.dtype)
            if piece.rows is not None:
                rows = torch.from_numpy(piece.rows)
                used = nn.functional.embedding(rows, parameters[position], sparse=True)
            if coefficients.isfinite().all():
                terms.append((used * coefficients).sum().double())
            else:
                terms.append(_Poisoned.apply(used, coefficients).double())
    total = torch.stack(terms).sum()
    return total - total.detach() + batch.value
