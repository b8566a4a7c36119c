"""Sharded parameters (FSDP2, tensor parallel): measure the local shards, sum over the mesh.

A ``DTensor`` knows how it lies on its mesh. Gradients arrive sharded as the parameters are, so the
combination is local; only the Gram matrix has to be summed, a few hundred bytes. What a mesh
dimension replicates is counted on its first coordinate alone. Parameters on different meshes (the
norms beside tensor-parallel layers) are measured apart, each summed over its own mesh.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradsurgery import kernels
from gradsurgery.distributed import consistency
from gradsurgery.distributed.collectives import nonempty
from gradsurgery.distributed.local import LocalGradients
from gradsurgery.kernels import Columns


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor."""
    return hasattr(tensor, "device_mesh")


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether any of ``tensors`` is a DTensor."""
    return True in [hasattr(tensor, "device_mesh") for tensor in tensors]


def meshes_of(parameters: Sequence[Tensor]) -> list[Any]:
    """Return the distinct meshes that parameters lie on, in order of appearance."""
    meshes: list[Any] = []
    for parameter in parameters:
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is not None and mesh not in meshes:
            meshes.append(mesh)
    return meshes


def settled(grad: Tensor, parameter: Tensor) -> Tensor:
    """Return a sharded gradient laid out as its parameter is: itself, unless it is a pending sum
    (``Partial``) or laid out otherwise."""
    if is_sharded(parameter) and getattr(grad, "placements", None) != getattr(
        parameter, "placements", None
    ):
        grad = grad.redistribute(  # type: ignore[attr-defined]
            parameter.device_mesh,  # type: ignore[attr-defined]
            parameter.placements,  # type: ignore[attr-defined]
        )
    return grad


def shard_of(grad: Tensor | None) -> Tensor | None:
    """Return the shard of ``grad`` that lies here, a view; a plain tensor is its own."""
    if grad is None or not is_sharded(grad):
        return grad
    shard: Tensor = grad.to_local()  # type: ignore[attr-defined]
    # The result of a collective that is still under way has to be waited for by hand.
    return shard.wait() if hasattr(shard, "wait") else shard


class Sharded:
    """A step's gradients of sharded parameters, and how their Gram matrix is summed: a placement.

    Args:
        parameters: sharded ones, or some sharded and some plain (the same on all ranks).
        columns: ``[P][K]``, their gradients.
        check: whether to compare the gradients of plain parameters over the ranks.
    """

    def __init__(self, parameters: Sequence[Tensor], columns: Columns, check: bool = False) -> None:
        self._check, self._columns = check, columns
        self._meshes = meshes_of(parameters)
        self._class = [_index(self._meshes, p) for p in parameters]
        self._counted = [_first_of_its_replicas(p) for p in parameters]

    def gram(self, local: LocalGradients) -> Tensor:
        """See :class:`~gradsurgery.distributed.placement.Placement`; these are shards."""
        count, tasks = local.segment_count, local.tasks
        apart = [
            self._class[p] * count + s for p, s in zip(local.positions, local.segments, strict=True)
        ]
        counted = [
            column if self._counted[p] else [None] * tasks
            for p, column in zip(local.positions, local.columns, strict=True)
        ]
        classes = len(self._meshes) + 1  # the last: plain parameters
        gram = kernels.gram(nonempty(counted), apart, classes * count, tasks)
        device = gram.device
        # Shards may be kept on the CPU, beside a mesh of GPUs.
        totals = gram.to(self._meshes[0].device_type).view(classes, count, tasks, tasks)
        widest = max(self._meshes, key=lambda mesh: int(mesh.size()))
        plain = totals[-1].clone()
        if any(widest.get_coordinate()):
            totals[-1].zero_()  # all have the same: they shall have the same bits
        for total, mesh in zip(totals, (*self._meshes, widest), strict=True):
            for group in mesh.get_all_groups():
                dist.all_reduce(total, group=group)
        if self._check:
            _refuse_unlike(plain, totals[-1], widest)
        return totals.sum(0).to(device)

    def largest(self, value: Tensor) -> Tensor:
        """See :class:`~gradsurgery.distributed.placement.Placement`."""
        highest = value.to(self._meshes[0].device_type)
        for mesh in self._meshes:
            for group in mesh.get_all_groups():
                dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
        return highest

    def restored(self, update: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the sharded gradients whose shards are ``update``, the first of each column."""
        first = [next((g for g in column if g is not None), None) for column in self._columns]
        return [
            sharded if sharded is not None and is_sharded(sharded) else grad
            for sharded, grad in zip(first, update, strict=True)
        ]


def _refuse_unlike(gram: Tensor, first: Tensor, mesh: Any) -> None:
    """Raise on all ranks where ``gram`` differs on any from ``first``, that of one of them."""
    differ = torch.tensor(not consistency.alike(first, gram), dtype=torch.int64, device=gram.device)
    for group in mesh.get_all_groups():
        dist.all_reduce(differ, dist.ReduceOp.MAX, group=group)
    if differ.item():
        raise RuntimeError(consistency.NOT_SHARDED)


def _index(meshes: Sequence[Any], parameter: Tensor) -> int:
    mesh = getattr(parameter, "device_mesh", None)
    return len(meshes) if mesh is None else meshes.index(mesh)


def _first_of_its_replicas(parameter: Tensor) -> bool:
    """Whether the shard here is to be counted."""
    if not is_sharded(parameter):
        return True
    coordinate = parameter.device_mesh.get_coordinate()  # type: ignore[attr-defined]
    return all(
        at == 0 or not placement.is_replicate()
        for at, placement in zip(coordinate, parameter.placements, strict=True)  # type: ignore[attr-defined]
    )
