"""From the tasks' gradients to the update's: what is shared is measured, decided on, and summed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from gradsurgery import kernels
from gradsurgery.distributed.placement import Placement
from gradsurgery.sparse import align, restore

#: ``(gram[S, K, K] float64, whether all gradients are finite: a scalar bool) -> weights[S, K]``.
#: Both lie where the fused kernels left them, or on the CPU.
Decide = Callable[[Tensor, Tensor], Tensor]


def combined(
    grads: kernels.Gradients,
    segments: Sequence[int],
    count: int,
    decide: Decide,
    placement: Placement,
) -> list[Tensor | None]:
    """Return the update's gradient for each parameter.

    Those of one task pass through as they are and do not enter the Gram matrix that ``decide``
    sees; where two or more tasks have one, the weighted sum is written into the first.

    Args:
        grads: ``[K][P]``, strided or sparse (coalesced), on one device. The first of each
            parameter is overwritten and returned.
        segments: the segment of each parameter.
        count: the number of segments S.
        decide: gives the weights.
        placement: where the rest of the gradients lies.

    Raises:
        ValueError: when the gradients lie on several devices; nothing is changed then.
    """
    columns = list(zip(*grads, strict=True))
    present = [[grad for grad in column if grad is not None] for column in columns]
    everything = [grad for found in present for grad in found]
    _refuse_mixed_devices(everything)
    shared = [p for p, found in enumerate(present) if len(found) > 1]
    alone = [p for p, found in enumerate(present) if len(found) == 1]
    dense: list[Column] = [columns[p] for p in shared]
    unions: dict[int, Tensor] = {}
    if True in [grad.is_sparse for grad in everything]:
        dense, unions = _aligned(columns, shared)
    gram, finite = _measured(
        dense + [_values(columns[p]) for p in alone],
        # Those of one task are looked at all the same, for being finite: a segment of their own.
        [segments[p] for p in shared] + [count] * len(alone),
        shared + alone,
        count,
        placement,
    )
    weights = decide(gram, finite)
    sums = kernels.combine_(_rows(dense), weights, [segments[p] for p in shared])
    result = [found[0] if found else None for found in present]
    for p, values in zip(shared, sums, strict=True):
        assert values is not None
        result[p] = restore(values, unions[p], present[p][0]) if p in unions else values
    return result


def deliver(parameter: Tensor, grad: Tensor) -> None:
    """Put ``grad`` into ``parameter.grad``, adding to what is there as a backward would."""
    if parameter.grad is None:
        parameter.grad = grad
    elif parameter.grad.is_sparse and not grad.is_sparse:
        parameter.grad = grad.add_(parameter.grad)
    else:
        parameter.grad.add_(grad)


Column = Sequence[Tensor | None]  # one parameter's gradients by task


def _measured(
    columns: Sequence[Column],
    segments: Sequence[int],
    positions: Sequence[int],
    count: int,
    placement: Placement,
) -> tuple[Tensor, Tensor]:
    """Return the Gram matrix of the first ``count`` segments, and whether all is finite."""
    tasks = len(columns[0]) if columns else 0
    gram = placement.gram(_rows(columns), segments, positions, count + 1)
    if not kernels.fused_on(gram.device, tasks):
        gram = gram.cpu()  # the maths on K x K numbers is faster there, launch by launch
    return gram[:count], gram.isfinite().all()


def _rows(columns: Sequence[Column]) -> list[Column]:
    """Turn ``[P][K]`` into ``[K][P]``."""
    return list(zip(*columns, strict=True))


def _refuse_mixed_devices(grads: Sequence[Tensor]) -> None:
    devices = {grad.device for grad in grads}
    if len(devices) > 1:
        raise ValueError(
            "the captured gradients lie on several devices "
            f"({', '.join(sorted(map(str, devices)))}): surgery needs all of an optimizer's "
            "parameters on one"
        )


def _aligned(
    columns: Sequence[Column], shared: Sequence[int]
) -> tuple[list[Column], dict[int, Tensor]]:
    """Return the ``shared`` columns dense, and by parameter the sparse rows that they stand for."""
    dense: list[Column] = []
    unions = {}
    for p in shared:
        column = columns[p]
        if any(grad is not None and grad.is_sparse for grad in column):
            values, union = align([grad for grad in column if grad is not None])
            remaining = iter(values)
            column = [None if grad is None else next(remaining) for grad in column]
            if union is not None:
                unions[p] = union
        dense.append(column)
    return dense, unions


def _values(column: Column) -> Column:
    """Return the stored numbers of a column, which decide whether it is finite."""
    return [g if g is None or not g.is_sparse else g.values() for g in column]
