"""The averaging of gradients over a process group: asynchronous all-reduces, in buckets.

Small gradients are copied into buckets; large ones are averaged in the memory where autograd left
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from gradsurgery import kernels
from gradsurgery.distributed import partition
from gradsurgery.kernels import Columns

#: A bucket is closed once it has so many bytes (DDP's default).
BUCKET = 25 << 20

#: A gradient of so many bytes is a bucket of its own.
LARGE = 4 << 20


class PendingAverages(NamedTuple):
    """One task's gradients while they are being averaged.

    Attributes:
        averages: by the parameter's position, valid once :meth:`wait` returned.
        works: the collectives under way.
    """

    averages: dict[int, Tensor]
    works: list[Any]

    def wait(self) -> None:
        """Wait (on a GPU: have the stream wait) until all are averaged."""
        for work in self.works:
            work.wait()
        self.works.clear()


class Exchange:
    """The collectives of one process group.

    Args:
        group: the processes.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.ranks, self.rank = group, dist.get_world_size(group), dist.get_rank(group)

    def average(
        self, parameters: Sequence[Tensor], positions: Sequence[int], grads: Mapping[int, Tensor]
    ) -> PendingAverages:
        """Begin to average the gradients of the parameters at ``positions``.

        Args:
            parameters: of the optimizer.
            positions: which of them; the same on every rank.
            grads: by position; zeros are sent where there is none. Large ones are overwritten.
        """
        pending = PendingAverages({}, [])
        for bucket in buckets(parameters, positions):
            flat, views = _packed([parameters[p] for p in bucket], [*map(grads.get, bucket)])
            operation = self._averaging(flat)
            pending.works.append(dist.all_reduce(flat, operation, self.group, async_op=True))
            pending.averages.update(zip(bucket, views, strict=True))
        return pending

    def gram(self, columns: Columns, segments: Sequence[int], count: int, tasks: int) -> Tensor:
        """Return the Gram matrix of gradients that are the same on all ranks.

        Each rank measures the piece that it owns, which takes 1/ranks of the time; all see the same
        sum, to the bit.
        """
        device = next(
            (grad.device for column in columns for grad in column if grad is not None),
            torch.device("cpu"),
        )
        pieces = [
            [
                None
                if grad is None
                else partition.piece(partition.flattened(grad), self.rank, self.ranks)
                for grad in column
            ]
            for column in columns
        ]
        return self.summed(kernels.gram(nonempty(pieces), segments, count, tasks).to(device))

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum of the ranks' ``values``, in their place."""
        dist.all_reduce(values, group=self.group)
        return values

    def _averaging(self, flat: Tensor) -> Any:
        """Return the operation that averages ``flat``, which may be divided for it."""
        if flat.is_cuda and "nccl" in c10d.get_backend_config(self.group):
            return dist.ReduceOp.AVG
        # Before the sum, not after: half precision would overflow.
        flat.div_(self.ranks)
        return dist.ReduceOp.SUM


def buckets(parameters: Sequence[Tensor], positions: Sequence[int]) -> Iterator[list[int]]:
    """Yield the positions that travel together: of one dtype and device, in order.

    Depends on the parameters alone, which are the same on every rank.
    """
    open_: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    filled: dict[tuple[torch.dtype, torch.device], int] = {}
    for p in positions:
        kind = (partition.dtype(parameters[p]), parameters[p].device)
        size = parameters[p].numel() * kind[0].itemsize
        if size >= LARGE:
            yield [p]
            continue
        if open_.get(kind) and filled[kind] + size > BUCKET:
            yield open_.pop(kind)
        bucket = open_.setdefault(kind, [])
        filled[kind] = size + (filled[kind] if bucket else 0)
        bucket.append(p)
    yield from open_.values()


def _packed(
    parameters: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients behind each other, a large one as it is if it fits; and the view of
    each."""
    first, grad = parameters[0], grads[0]
    if len(parameters) == 1 and grad is not None and partition.fits(grad, first):
        return partition.flattened(grad), [grad]
    sizes = [p.numel() for p in parameters]
    flat = torch.empty(sum(sizes), dtype=partition.dtype(first), device=first.device)
    views = [*map(partition.shaped, torch.split(flat, sizes), parameters)]
    filled = [(view, g) for view, g in zip(views, grads, strict=True) if g is not None]
    if len(filled) < len(grads):
        flat.zero_()
    if filled:
        torch._foreach_copy_([view for view, _ in filled], [grad for _, grad in filled])
    return flat, views


def nonempty(columns: Columns) -> list[list[Tensor | None]]:
    """Return ``columns`` without tensors of no elements, which the kernels need not see."""
    return [
        [None if grad is None or not grad.numel() else grad for grad in column]
        for column in columns
    ]
