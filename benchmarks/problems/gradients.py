"""Gradients of K tasks with chosen cosines, and parameters that receive the update.

Parameters that only carry a ``.grad`` are one expanded scalar each, and take no memory.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from benchmarks.problems.encoders import Parameters

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}

#: Gradients are copied from windows of one random block: drawing billions would take minutes.
WINDOW = 1 << 22

Gradients = list[list[Tensor]]  # [K][P]


class FixedGradients:
    """K gradients that nobody may change, and parameters that receive the update.

    Args:
        parameters: names and shapes.
        grads: ``[K][P]``.
    """

    def __init__(self, parameters: Parameters, grads: Gradients) -> None:
        first = grads[0][0]
        self.grads, self.device = grads, first.device
        self.tasks = task_names(len(grads))
        self.named = valueless(parameters, first.device, first.dtype)
        self.parameters = [parameter for _, parameter in self.named]
        self.elements = parameters.elements

    def clear(self) -> None:
        """Empty every ``.grad``."""
        for parameter in self.parameters:
            parameter.grad = None

    def deliver(self, grads: Sequence[Tensor]) -> None:
        """Put ``grads`` into ``.grad``."""
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad

    @cached_property
    def jacobians(self) -> list[Tensor]:
        """The gradients as torchjd's backward leaves them: ``[K, *shape]`` for each parameter."""
        return [torch.stack(column) for column in zip(*self.grads, strict=True)]


def task_names(count: int) -> tuple[str, ...]:
    """Return the names of K tasks."""
    return tuple(f"task {k}" for k in range(count))


def valueless(
    parameters: Parameters, device: torch.device, dtype: torch.dtype = torch.float32
) -> list[tuple[str, nn.Parameter]]:
    """Return named parameters that can have gradients, without memory of their own."""
    scalar = torch.zeros((), device=device, dtype=dtype)
    named = zip(parameters.names, parameters.shapes, strict=True)
    return [(name, nn.Parameter(scalar.expand(shape))) for name, shape in named]


def random_gradients(
    shapes: Sequence[torch.Size],
    tasks: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    cosines: Tensor | None = None,
) -> Gradients:
    """Return random gradients of K tasks, independent or with ``[K, K]`` cosines, up to chance."""
    source = torch.Generator(device).manual_seed(0)
    block = torch.randn(2 * WINDOW, generator=source, device=device)
    starts = random.Random(0)

    def noise(shape: torch.Size) -> Tensor:
        tensor = torch.empty(shape, device=device, dtype=dtype)
        for window in torch.split(tensor.view(-1), WINDOW):
            start = starts.randrange(WINDOW)
            window.copy_(block[start : start + window.numel()])
        return tensor

    grads = [[noise(shape) for shape in shapes] for _ in range(tasks)]
    if cosines is not None:
        _correlate_(grads, cosines)
    return grads


def conflict_cosines(tasks: int, conflicts: str) -> Tensor:
    """Return ``[K, K]`` cosines in which ``"one"`` pair of tasks conflicts, or ``"all"`` do."""
    low, high = -0.3, 0.1
    cosines = torch.full((tasks, tasks), -0.6 / tasks if conflicts == "all" else high)
    if conflicts == "one":
        cosines[0, 1] = cosines[1, 0] = low
    return cosines.fill_diagonal_(1.0)


def _correlate_(grads: Gradients, cosines: Tensor) -> None:
    """Give independent gradients these cosines: gradient i becomes sum_j L_ij g_j, j <= i."""
    factor = torch.linalg.cholesky(cosines.double()).tolist()
    for column in zip(*grads, strict=True):
        for i in reversed(range(len(column))):  # downwards: row i needs the g_j before it untouched
            column[i].mul_(factor[i][i])
            for j in range(i):
                column[i].add_(column[j], alpha=factor[i][j])
