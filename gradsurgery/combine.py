"""Combination of the tasks' gradients: the Gram matrix that a method decides on, and the sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradsurgery import kernels
from gradsurgery.distributed.local import LocalGradients
from gradsurgery.distributed.placement import Placement
from gradsurgery.kernels import Column, Columns
from gradsurgery.magnitude import WIDE, gram_in_range
from gradsurgery.methods import State, Verdict
from gradsurgery.sparse import align, restore


class Measured(NamedTuple):
    """A step's gradients and what was measured on them.

    Attributes:
        gram: ``[S, K, K]`` float64 of the shared parameters' gradients.
        finite: scalar bool beside it, whether all gradients are, also those of one task.
        resident: whether both lie where the fused kernels left them; otherwise on the CPU.
        grads: by parameter, the gradients that are there.
        shared: the parameters that two or more tasks have a gradient for.
        dense: ``[P'][K]``, the shared parameters' gradients, dense.
        unions: of those that were sparse, the rows that ``dense`` stands for.
        segments: the segment of each shared parameter.
        alone: ``[P''][K]``, the gradients of the parameters that one task has one for.
        alone_segments: the segment of each of these.
        factor: a power of two that the gradients carry in ``gram``, 1 unless their squares would
            leave float64, see :mod:`gradsurgery.magnitude`.
    """

    gram: Tensor
    finite: Tensor
    resident: bool
    grads: list[list[Tensor]]
    shared: list[int]
    dense: list[Column]
    unions: dict[int, Tensor]
    segments: list[int]
    alone: list[Column]
    alone_segments: list[int]
    factor: float = 1.0

    def present(self) -> Tensor:
        """Return ``[S, K]`` bool on the CPU: whether task k has a shared gradient in segment s."""
        count, tasks = self.gram.shape[:2]
        rows = [[False] * tasks for _ in range(count)]
        for segment, column in zip(self.segments, self.dense, strict=True):
            rows[segment] = [
                known or grad is not None for known, grad in zip(rows[segment], column, strict=True)
            ]
        return torch.tensor(rows, dtype=torch.bool, device="cpu")

    def if_finite(self, verdict: Verdict, before: State) -> Verdict:
        """Return the verdict, or where gradients are not finite the plain sum and the state before.

        Only where nobody waits to see which it is: on the CPU the caller knows that all is finite.
        """
        if not self.resident:
            return verdict
        state = verdict.state.items()
        return Verdict(
            torch.where(self.finite, verdict.weights, 1.0),
            None if verdict.altered is None else verdict.altered & self.finite,
            {name: torch.where(self.finite, value, before[name]) for name, value in state},
        )


def measure(
    columns: Columns, segments: Sequence[int], count: int, tasks: int, placement: Placement
) -> Measured:
    """Measure the gradients that two or more tasks have.

    Those of one task do not enter the Gram matrix; they are only checked for being finite.

    Args:
        columns: ``[P][K]``, strided or sparse (coalesced), on one device.
        segments: the segment of each parameter.
        count: the number of segments S.
        tasks: the number of tasks K.
        placement: how the gradients lie on the processes.

    Raises:
        ValueError: when the gradients lie on several devices, or those of one parameter have
            several dtypes.
    """
    grads = [[grad for grad in column if grad is not None] for column in columns]
    every = [grad for column in grads for grad in column]
    _refuse_mixed_devices(every)
    _refuse_mixed_dtypes(grads, every)
    shared = [p for p, column in enumerate(grads) if len(column) > 1]
    alone = [p for p, column in enumerate(grads) if len(column) == 1]
    dense, single = [columns[p] for p in shared], [columns[p] for p in alone]
    unions: dict[int, Tensor] = {}
    if True in [grad.is_sparse for grad in every]:
        dense, unions = _aligned(dense, shared)
        single = [_values(column) for column in single]
    homes, alone_homes = ([segments[p] for p in part] for part in (shared, alone))
    all_homes = homes + [count] * len(alone)  # one more segment for those of one task
    local = LocalGradients(dense + single, all_homes, shared + alone, count + 1, tasks)
    gram, factor = placement.gram(local), 1.0
    resident = kernels.fused_on(gram.device, tasks)
    if not resident:
        gram = gram.cpu()  # launch by launch, arithmetic on K x K numbers is faster there
        if not WIDE.isdisjoint([column[0].dtype for column in grads if column]):
            gram, factor = gram_in_range(gram, local, placement)
    finite = gram.isfinite().all()
    gram = gram[:count]
    return Measured(
        gram, finite, resident, grads, shared, dense, unions, homes, single, alone_homes, factor
    )


def apply_(measured: Measured, weights: Tensor, alone: Tensor | None = None) -> list[Tensor | None]:
    """Return each parameter's update, written into the first of its gradients.

    Args:
        measured: the gradients.
        weights: ``[S, K]`` float64, finite, of any size, also beyond the range of the gradients'
            dtype, see :func:`gradsurgery.kernels.eager.combine_`.
        alone: ``[S, K]`` float64, the weights of gradients of an only task; None leaves them as
            they are.

    Returns:
        P gradients: the weighted sum where two or more tasks have one, that of the only task, or
        None.
    """
    columns, segments = measured.dense, measured.segments
    if alone is not None:
        columns = columns + measured.alone
        segments = segments + [len(weights) + segment for segment in measured.alone_segments]
        weights = torch.cat([weights, alone])
    sums = kernels.combine_(columns, weights, segments)[: len(measured.shared)]
    update = [column[0] if column else None for column in measured.grads]
    for p, values in zip(measured.shared, sums, strict=True):
        assert values is not None
        update[p] = values
        if p in measured.unions:
            update[p] = restore(values, measured.unions[p], measured.grads[p][0])
    return update


def deliver(parameter: Tensor, grad: Tensor) -> None:
    """Put ``grad`` into ``parameter.grad``, adding to what is there as a backward would."""
    if parameter.grad is None:
        parameter.grad = grad
    elif parameter.grad.is_sparse and not grad.is_sparse:
        parameter.grad = grad.add_(parameter.grad)
    else:
        parameter.grad.add_(grad)


def _refuse_mixed_devices(grads: Sequence[Tensor]) -> None:
    devices = {grad.device for grad in grads}
    if len(devices) > 1:
        raise ValueError(
            "the captured gradients lie on several devices "
            f"({', '.join(sorted(map(str, devices)))}): surgery needs all of an optimizer's "
            "parameters on one"
        )


def _refuse_mixed_dtypes(grads: Sequence[Sequence[Tensor]], every: Sequence[Tensor]) -> None:
    """Refuse gradients of one parameter that differ in dtype; kernels read all as the first."""
    if len({grad.dtype for grad in every}) > 1:
        for column in grads:
            dtypes = {grad.dtype for grad in column}
            if len(dtypes) > 1:
                raise ValueError(
                    f"the tasks' gradients of a parameter of shape {list(column[0].shape)} have "
                    f"several dtypes ({', '.join(sorted(map(str, dtypes)))}): cast parameters "
                    "between steps, not between the tasks of one"
                )


def _aligned(columns: Columns, shared: Sequence[int]) -> tuple[list[Column], dict[int, Tensor]]:
    """Return the columns of the ``shared`` parameters dense, and the sparse rows they stand for."""
    dense: list[Column] = []
    unions = {}
    for p, column in zip(shared, columns, strict=True):
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
