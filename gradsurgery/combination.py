"""From the tasks' gradients to the update's: what is shared is measured, decided on, and summed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from gradsurgery import kernels
from gradsurgery.sparse import align, restore

#: ``(gram[S, K, K] float64 on the CPU, whether all gradients are finite) -> weights[S, K]``.
Decide = Callable[[Tensor, bool], Tensor]


def combined(
    grads: kernels.Gradients, segments: Sequence[int], count: int, decide: Decide
) -> list[Tensor | None]:
    """Return the update's gradient for each parameter.

    Those of one task pass through as they are and do not enter the Gram matrix; where two or more
    tasks have one, the weighted sum is written into the first.

    Args:
        grads: ``[K][P]``, strided or sparse (coalesced), on one device.
        segments: the segment of each parameter.
        count: the number of segments S.
        decide: gives the weights.

    Raises:
        ValueError: when the gradients lie on several devices; nothing is changed then.
    """
    columns = [[g for g in column if g is not None] for column in zip(*grads, strict=True)]
    _refuse_mixed_devices(columns)
    shared = [p for p, present in enumerate(columns) if len(present) > 1]
    result = [present[0] if len(present) == 1 else None for present in columns]
    dense, unions = _aligned(grads, shared)
    where = [segments[p] for p in shared]
    gram = kernels.gram(dense, where, count).cpu()
    alone = [g for g in result if g is not None]
    weights = decide(gram, bool(gram.isfinite().all()) and _finite(alone))
    sums = kernels.combine_(dense, weights, where)
    for p, values, union in zip(shared, sums, unions, strict=True):
        assert values is not None
        result[p] = values if union is None else restore(values, union, columns[p][0])
    return result


def deliver(parameter: Tensor, grad: Tensor) -> None:
    """Put ``grad`` into ``parameter.grad``, adding to what is there as a backward would."""
    if parameter.grad is None:
        parameter.grad = grad
    elif parameter.grad.is_sparse and not grad.is_sparse:
        parameter.grad = grad.add_(parameter.grad)
    else:
        parameter.grad.add_(grad)


def _refuse_mixed_devices(columns: Sequence[Sequence[Tensor]]) -> None:
    devices = sorted({str(grad.device) for column in columns for grad in column})
    if len(devices) > 1:
        raise ValueError(
            f"the captured gradients lie on several devices ({', '.join(devices)}): surgery needs "
            "all of an optimizer's parameters on one"
        )


def _aligned(
    grads: kernels.Gradients, shared: Sequence[int]
) -> tuple[list[list[Tensor | None]], list[Tensor | None]]:
    """Return the ``shared`` columns of ``grads[K][P]`` dense, and sparse rows they stand for."""
    dense: list[list[Tensor | None]] = [[] for _ in grads]
    unions = []
    for p in shared:
        values, union = align([grad for task in grads if (grad := task[p]) is not None])
        remaining = iter(values)
        for row, task in zip(dense, grads, strict=True):
            row.append(None if task[p] is None else next(remaining))
        unions.append(union)
    return dense, unions


def _finite(grads: Sequence[Tensor]) -> bool:
    """Whether no element of ``grads`` is inf or NaN, read off their norms in one pass."""
    values = [grad.values() if grad.is_sparse else grad for grad in grads]
    return bool(kernels.gram([values], [0] * len(values), 1).isfinite().all())
