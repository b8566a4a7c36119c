"""Carriers: what one task's gradients travel in, and the form in which their averages arrive.

    AllReduce       each rank gets all averages           2 K N elements on the wire for K tasks
    ReduceScatter   each rank gets its own pieces only    (K + 1) N, and 1/ranks of the memory;
                    the combined gradient is gathered at the end

Both send asynchronously. Small gradients are copied into buckets; with :class:`AllReduce` large
ones travel in the memory where autograd left them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from gradsurgery import kernels
from gradsurgery.distributed import partition

#: A bucket is closed once it has so many bytes (DDP's default).
BUCKET = 25 << 20

#: A gradient of so many bytes is a bucket of its own.
LARGE = 4 << 20

# torch 2.13 renamed them, and older ones have the old names only.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Shipment(NamedTuple):
    """One task's gradients under way.

    Attributes:
        found: by the parameter's position, the averages, valid once :meth:`wait` returned.
        works: what has to be waited for.
        sources: memory that is being read until then.
    """

    found: dict[int, Tensor]
    works: list[Any]
    sources: list[Tensor]

    def wait(self) -> None:
        """Wait (on a GPU: have the stream wait) until all has arrived."""
        for work in self.works:
            work.wait()
        self.works.clear()
        self.sources.clear()


class Carrier(Protocol):
    """How gradients are averaged over the ranks."""

    def send(
        self, parameters: Sequence[Tensor], positions: Sequence[int], grads: Mapping[int, Tensor]
    ) -> Shipment:
        """Send the gradients of the parameters at ``positions``, zeros where there is none."""

    def gram(
        self, rows: kernels.Gradients, segments: Sequence[int], positions: Sequence[int], count: int
    ) -> Tensor:
        """Return the Gram matrix of the whole gradients, from what arrived here."""

    def restored(
        self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Return whole gradients for what arrived here and was combined."""


class _Group:
    """The processes."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.ranks, self.rank = group, dist.get_world_size(group), dist.get_rank(group)

    def averaging(self, flat: Tensor) -> Any:
        """Return the operation that averages ``flat``, which may be divided for it."""
        if flat.is_cuda and "nccl" in c10d.get_backend_config(self.group):
            return dist.ReduceOp.AVG
        # Before the sum, not after: half precision would overflow.
        flat.div_(self.ranks)
        return dist.ReduceOp.SUM

    def total(self, gram: Tensor, device: torch.device) -> Tensor:
        """Return the sum of the ranks' ``gram``, the same bits on each."""
        gram = gram.to(device)
        dist.all_reduce(gram, group=self.group)
        return gram

    def pieces_of(self, rows: kernels.Gradients) -> list[list[Tensor | None]]:
        """Return the views of whole gradients that this rank owns."""
        return [
            [
                None
                if grad is None
                else partition.own(partition.flattened(grad), self.rank, self.ranks)
                for grad in row
            ]
            for row in rows
        ]


class AllReduce(_Group):
    """Everybody gets everything, and measures a part of it.

    Args:
        group: the processes.
    """

    def send(
        self, parameters: Sequence[Tensor], positions: Sequence[int], grads: Mapping[int, Tensor]
    ) -> Shipment:
        """See :class:`Carrier`. Large gradients are averaged where they lie."""
        shipment = Shipment({}, [], [])
        for bucket in buckets(parameters, positions):
            flat, places = self._packed([parameters[p] for p in bucket], [*map(grads.get, bucket)])
            operation = self.averaging(flat)
            shipment.works.append(dist.all_reduce(flat, operation, self.group, async_op=True))
            shipment.found.update(zip(bucket, places, strict=True))
        return shipment

    def gram(
        self, rows: kernels.Gradients, segments: Sequence[int], positions: Sequence[int], count: int
    ) -> Tensor:
        """See :class:`Carrier`: each rank measures what it owns, which takes 1/ranks of the time,
        and all see the same sum."""
        device = _device(rows)
        gram = kernels.gram(nonempty(self.pieces_of(rows)), segments, count)
        return self.total(gram, device)

    def restored(
        self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """See :class:`Carrier`: they are whole."""
        return list(grads)

    def _packed(
        self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the gradients behind each other, a large one as it is if it fits; and the view of
        each."""
        first, grad = parameters[0], grads[0]
        if len(parameters) == 1 and grad is not None and partition.fits(grad, first):
            return partition.flattened(grad), [grad]
        sizes = [p.numel() for p in parameters]
        flat = torch.empty(sum(sizes), dtype=partition.dtype(first), device=first.device)
        places = [*map(partition.shaped, torch.split(flat, sizes), parameters)]
        there = [(place, g) for place, g in zip(places, grads, strict=True) if g is not None]
        if len(there) < len(grads):
            flat.zero_()
        if there:
            torch._foreach_copy_([place for place, _ in there], [grad for _, grad in there])
        return flat, places


class ReduceScatter(_Group):
    """Everybody gets, measures and combines the pieces it owns.

    Args:
        group: the processes.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group)
        self._before: Shipment | None = None

    def send(
        self, parameters: Sequence[Tensor], positions: Sequence[int], grads: Mapping[int, Tensor]
    ) -> Shipment:
        """See :class:`Carrier`. What was sent before has then arrived, so that the memory of one
        task's gradients at a time is taken."""
        if self._before is not None:
            self._before.wait()
        shipment = Shipment({}, [], [])
        for bucket in buckets(parameters, positions):
            chosen = [parameters[p] for p in bucket]
            sizes = [partition.length(p.numel(), self.ranks) for p in chosen]
            table = self._packed(chosen, [grads.get(p) for p in bucket], sizes)
            operation = self.averaging(table)
            mine = table.new_empty(table.shape[1])
            work = _reduce_scatter(
                _reals(mine), _reals(table), operation, self.group, async_op=True
            )
            shipment.works.append(work)
            shipment.sources.append(table)
            for p, part in zip(bucket, torch.split(mine, sizes), strict=True):
                shipment.found[p] = part[: self._length(parameters[p])]
        self._before = shipment
        return shipment

    def gram(
        self, rows: kernels.Gradients, segments: Sequence[int], positions: Sequence[int], count: int
    ) -> Tensor:
        """See :class:`Carrier`."""
        device = _device(rows)
        return self.total(kernels.gram(nonempty(rows), segments, count), device)

    def restored(
        self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """See :class:`Carrier`: gathers them, bucket by bucket."""
        self._before = None
        whole: list[Tensor | None] = [None] * len(grads)
        there = [p for p, grad in enumerate(grads) if grad is not None]
        for bucket in buckets(parameters, there):
            chosen = [parameters[p] for p in bucket]
            sizes = [partition.length(p.numel(), self.ranks) for p in chosen]
            mine = torch.zeros(
                sum(sizes), dtype=partition.dtype(chosen[0]), device=chosen[0].device
            )
            for p, part in zip(bucket, torch.split(mine, sizes), strict=True):
                piece = grads[p]
                assert piece is not None
                part[: len(piece)].copy_(piece)
            table = mine.new_empty(self.ranks, len(mine))
            _all_gather(_reals(table), _reals(mine), self.group)
            for p, part in zip(bucket, torch.split(table, sizes, dim=1), strict=True):
                flat = part.reshape(-1)[: parameters[p].numel()]
                whole[p] = partition.shaped(flat, parameters[p])
        return whole

    def _length(self, parameter: Tensor) -> int:
        """The elements of this rank's piece."""
        size = partition.length(parameter.numel(), self.ranks)
        return max(0, min(size, parameter.numel() - self.rank * size))

    def _packed(
        self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None], sizes: Sequence[int]
    ) -> Tensor:
        """Return ``[ranks, M]``: row r holds what rank r owns of each. A large gradient that can be
        cut evenly is taken as it is."""
        first, alone = parameters[0], grads[0] if len(grads) == 1 else None
        even = alone is not None and alone.numel() == self.ranks * sizes[0] > 0
        if even and alone is not None and partition.fits(alone, first):
            return partition.flattened(alone).view(self.ranks, -1)
        table = torch.zeros(
            self.ranks, sum(sizes), dtype=partition.dtype(first), device=first.device
        )
        for part, parameter, grad, size in zip(
            torch.split(table, list(sizes), dim=1), parameters, grads, sizes, strict=True
        ):
            if grad is None or not grad.numel():
                continue
            if grad.stride() != partition.strides(parameter):
                grad = torch.empty_strided(
                    grad.shape, partition.strides(parameter), dtype=grad.dtype, device=grad.device
                ).copy_(grad)
            flat = partition.flattened(grad)
            rows, rest = divmod(len(flat), size)
            part[:rows].copy_(flat[: rows * size].view(rows, size))
            if rest:
                part[rows, :rest].copy_(flat[rows * size :])
        return table


#: What ``exchange`` may be.
CARRIERS: dict[str, type[AllReduce] | type[ReduceScatter]] = {
    "all_reduce": AllReduce,
    "reduce_scatter": ReduceScatter,
}


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


def _reals(tensor: Tensor) -> Tensor:
    """Return the elements of a contiguous tensor flat, complex ones as pairs."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).view(-1)


def nonempty(rows: kernels.Gradients) -> list[list[Tensor | None]]:
    """Return ``rows`` without tensors of no elements, which the kernels need not see."""
    return [[None if grad is None or not grad.numel() else grad for grad in row] for row in rows]


def _device(rows: kernels.Gradients) -> torch.device:
    """Where the gradients lie; the CPU if there is none."""
    found = (grad.device for row in rows for grad in row if grad is not None)
    return next(found, torch.device("cpu"))
