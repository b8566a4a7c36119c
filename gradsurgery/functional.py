"""Surgery without the optimizer: the same functions, on gradients you hold yourself.

Example:
    >>> import torch
    >>> from gradsurgery import functional as F
    >>> grads = [[torch.tensor([1.0, 0.0])], [torch.tensor([-1.0, 1.0])]]
    >>> order = torch.tensor([[0, 1], [0, 1]])
    >>> F.combine(grads, F.pcgrad(F.gram(grads), order).weights)
    [tensor([0.5000, 1.5000])]

A parameter that a task does not use has None there, not zeros, with which it would count as shared.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gradsurgery import kernels
from gradsurgery.methods.gradvac import gradvac
from gradsurgery.methods.pcgrad import pcgrad

__all__ = ["combine", "gradvac", "gram", "pcgrad"]

#: ``grads[k][p]``: the gradient of task k for parameter p, None where there is none.
Gradients = Sequence[Sequence[Tensor | None]]


def gram(grads: Gradients, segments: Sequence[int] | None = None) -> Tensor:
    """Return the dot products of K tasks' gradients.

    Args:
        grads: ``[K][P]``: per task, per parameter, a dense tensor or None; those of one parameter
            have one shape, dtype and device.
        segments: the segment of each parameter, integers from 0; None for one segment.

    Returns:
        ``[S, K, K]`` float64.

    Raises:
        ValueError: when the tasks list different numbers of parameters, or ``segments`` does, or
            their gradients for a parameter differ in shape, dtype or device.
    """
    parameters = _parameters(grads, segments)
    segments = segments if segments is not None else [0] * parameters
    return kernels.gram(_columns(grads), segments, max(segments, default=0) + 1, len(grads))


def combine(
    grads: Gradients, weights: Tensor, segments: Sequence[int] | None = None
) -> list[Tensor | None]:
    """Return the weighted sum of K tasks' gradients, as new tensors.

    Args:
        grads: as in :func:`gram`.
        weights: ``[K]`` or ``[S, K]``, such as ``Verdict.weights``.
        segments: as in :func:`gram`.

    Returns:
        P tensors, of the gradients' dtype; None where no task has a gradient.

    Raises:
        ValueError: as :func:`gram`.
    """
    parameters = _parameters(grads, segments)
    segments = segments if segments is not None else [0] * parameters
    weights = weights if weights.dim() == 2 else weights[None]
    return kernels.combine_(_first_copied(_columns(grads)), weights, segments)


def _parameters(grads: Gradients, segments: Sequence[int] | None) -> int:
    """Return P, the same for all tasks."""
    counts = [len(task) for task in grads] + ([] if segments is None else [len(segments)])
    if not grads or len(set(counts)) != 1:
        raise ValueError(
            "grads lists each task's gradients for the same P parameters (None where there is "
            f"none), and segments has P entries; found lengths {counts}"
        )
    return counts[0]


def _columns(grads: Gradients) -> list[list[Tensor | None]]:
    """Turn ``[K][P]`` into ``[P][K]``; kernels read memory by the first gradient's shape.

    Raises:
        ValueError: when gradients of one parameter differ in shape, dtype or device.
    """
    columns = [list(column) for column in zip(*grads, strict=True)]
    for p, column in enumerate(columns):
        kinds = {(tuple(g.shape), g.dtype, g.device) for g in column if g is not None}
        if len(kinds) > 1:
            listed = "; ".join(sorted(f"{list(s)} {d} on {at}" for s, d, at in kinds))
            raise ValueError(
                f"the tasks' gradients for parameter {p} differ ({listed}): they need one shape, "
                "dtype and device"
            )
    return columns


def _first_copied(columns: list[list[Tensor | None]]) -> list[list[Tensor | None]]:
    """Copy the gradient that ``combine_`` overwrites, the first present of each parameter."""
    for column in columns:
        for k, grad in enumerate(column):
            if grad is not None:
                column[k] = grad.clone()
                break
    return columns
