"""Sharded parameters (FSDP2, tensor parallel): measure the local shards, sum over the mesh.

A ``DTensor`` knows how it lies on its mesh. Gradients arrive sharded as the parameters are, so the
combination is local; only the Gram matrix has to be summed, a few hundred bytes. What a mesh
dimension replicates is counted on its first coordinate alone. Parameters on different meshes (the
norms beside tensor-parallel layers) are measured apart, each summed over its own mesh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradsurgery import kernels
from gradsurgery.distributed import consistency
from gradsurgery.distributed.collectives import nonempty


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor."""
    return hasattr(tensor, "device_mesh")


def meshes_of(parameters: Sequence[Tensor]) -> list[Any]:
    """Return the distinct meshes that parameters lie on, in order of appearance."""
    found: list[Any] = []
    for parameter in parameters:
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is not None and mesh not in found:
            found.append(mesh)
    return found


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


def local(grad: Tensor | None) -> Tensor | None:
    """Return the shard of ``grad`` that lies here, a view; a plain tensor is its own."""
    if grad is None or not is_sharded(grad):
        return grad
    shard: Tensor = grad.to_local()  # type: ignore[attr-defined]
    # The result of a collective that is still under way has to be waited for by hand.
    return shard.wait() if hasattr(shard, "wait") else shard


class Meshed:
    """Where each parameter's gradients lie, and how their Gram matrix is summed.

    Args:
        parameters: sharded ones, or some sharded and some plain (the same on all ranks).
        check: see whether gradients of plain ones are the same on all ranks.
    """

    def __init__(self, parameters: Sequence[Tensor], check: bool = False) -> None:
        self._check = check
        self._meshes = meshes_of(parameters)
        self._class = [_index(self._meshes, p) for p in parameters]
        self._counted = [_first_of_its_replicas(p) for p in parameters]

    def gram(
        self, rows: kernels.Gradients, segments: Sequence[int], positions: Sequence[int], count: int
    ) -> Tensor:
        """Return the Gram matrix of the whole gradients from the shards here.

        Args:
            rows: ``[K][P']``, local shards.
            segments: of the P' parameters.
            positions: of the P' among all parameters.
            count: the number of segments.
        """
        apart = [self._class[p] * count + s for p, s in zip(positions, segments, strict=True)]
        counted = [
            [grad if self._counted[p] else None for p, grad in zip(positions, row, strict=True)]
            for row in rows
        ]
        classes = len(self._meshes) + 1  # the last: plain parameters
        gram = kernels.gram(nonempty(counted), apart, classes * count)
        lies = gram.device
        # Shards may be kept on the CPU, beside a mesh of GPUs.
        whole = gram.to(self._meshes[0].device_type).view(classes, count, *gram.shape[1:])
        widest = max(self._meshes, key=lambda mesh: int(mesh.size()))
        own = whole[-1].clone()
        if any(widest.get_coordinate()):
            whole[-1].zero_()  # all have the same: they shall have the same bits
        for each, mesh in zip(whole, (*self._meshes, widest), strict=True):
            for group in mesh.get_all_groups():
                dist.all_reduce(each, group=group)
        if self._check:
            _refuse_unlike(own, whole[-1], widest)
        return whole.sum(0).to(lies)

    def restored(
        self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Return the gradients: they lie where they belong."""
        return list(grads)


def _refuse_unlike(own: Tensor, first: Tensor, mesh: Any) -> None:
    """Raise on all ranks where ``own`` differs on any from ``first``, that of one of them."""
    differ = torch.tensor(int(not consistency.alike(first, own)), device=own.device)
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
