"""The placement of an optimizer's gradients: one process, a process group, or a mesh of shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gradsurgery import kernels
from gradsurgery._warnings import warn
from gradsurgery.distributed import consistency, groups
from gradsurgery.distributed.averaging import (
    Averaged,
    Averaging,
    Grads,
    HandedOver,
    StepLossMeans,
    mean_losses,
)
from gradsurgery.distributed.ddp_guard import refuse_one_forward
from gradsurgery.distributed.local import LocalGradients
from gradsurgery.distributed.sharded import Sharded, any_sharded, meshes_of, shard_of
from gradsurgery.kernels import Columns


class Placement(Protocol):
    """How a step's gradients lie on the processes."""

    def gram(self, local: LocalGradients) -> Tensor:
        """Return the Gram matrix of the whole gradients, ``[S, K, K]``, the same on all ranks."""

    def largest(self, value: Tensor) -> Tensor:
        """Return the largest of the ranks' values, each of what lies there of the gradients."""

    def restored(self, update: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Return what ``.grad`` is to be, from the update of what lies here (P tensors)."""


class SingleProcess:
    """All gradients lie in this process."""

    def gram(self, local: LocalGradients) -> Tensor:
        """See :class:`Placement`."""
        return kernels.gram(local.columns, local.segments, local.segment_count, local.tasks)

    def largest(self, value: Tensor) -> Tensor:
        """See :class:`Placement`."""
        return value

    def restored(self, update: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """See :class:`Placement`."""
        return update


def _row(grads: Grads, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Return a task's gradient of each parameter; to hash parameters would take longer."""
    if len(grads) == len(parameters) and all(map(is_, grads, parameters)):
        return list(grads.values())
    return [grads.get(parameter) for parameter in parameters]


class StepGradients(NamedTuple):
    """The gradients of a step.

    Attributes:
        columns: ``[P][K]``, what lies here of each; the first of a parameter may be overwritten.
        active: for each task, whether it ran, on any rank.
        placement: how the whole gradients lie on the processes.
        averaged: whether what was captured has been averaged in its own memory.
    """

    columns: Columns
    active: list[bool]
    placement: Placement
    averaged: bool


class Processes:
    """The processes that take part in one optimizer's surgery.

    Args:
        group: that the gradients are averaged over, or None.
        tasks: the tasks' names, in order.
        facts: what the optimizers of all ranks must have in common when they are built.

    Raises:
        TypeError: when ``group`` is no process group.
        ValueError: on a rank that is not in ``group``.
        RuntimeError: where the ranks build different optimizers.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        tasks: Sequence[str],
        facts: Mapping[str, object] | None = None,
    ) -> None:
        groups.check(group)
        self._tasks = tuple(tasks)
        self._group = group
        # A group of one is a way to say that ranks are meant to differ: nothing to do or compare.
        several = group is not None and dist.get_world_size(group) > 1
        self._averaging = Averaging(group, tasks, facts or {}) if group and several else None
        self._roll: consistency.RollCall | None = None
        self._compared = False
        self._parameters = ParameterFacts()
        self._same_start = False
        self._device = torch.device("cpu")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._group is not None:
            raise TypeError(
                "an optimizer with a process_group cannot be pickled or copied, since the group "
                "belongs to this process: save its state_dict() instead"
            )
        return Processes, (None, self._tasks)

    @property
    def count(self) -> int:
        """The number of processes that train together."""
        if self._group is not None:
            return dist.get_world_size(self._group)
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    @property
    def starts(self) -> bool:
        """Whether weights and state have to be compared: at the first step, and after a load."""
        return self._averaging is not None and not self._same_start

    def loaded(self) -> None:
        """Take note that a checkpoint was loaded, on this rank at least."""
        self._same_start = False

    @property
    def averages(self) -> bool:
        """Whether gradients are averaged here, a part of them while tasks still run."""
        return self._averaging is not None

    @property
    def agrees(self) -> bool:
        """Whether the ranks can tell each other here what they do, see :meth:`mean_losses`."""
        return self.count == 1 or self._averaging is not None or self._roll is not None

    def drop(self, parameters: Sequence[Tensor], begin: bool = False) -> None:
        """Forget the step under way; over a process group, on all ranks.

        Args:
            parameters: of the optimizer.
            begin: over a process group, drop a step that this rank has not begun, too.
        """
        if self._averaging is not None:
            self._averaging.drop(parameters, begin)
        if self._roll is not None:
            self._roll.clear()

    def begin(self, task: str, parameters: Sequence[Tensor]) -> None:
        """Take note that ``task`` begins."""
        if self._averaging is not None:
            self._averaging.begin()
        if any_sharded(parameters):
            if self._roll is None:
                self._roll = consistency.RollCall(meshes_of(parameters))
            self._roll.call(f"task {task!r}")

    def failed(self, task: str) -> None:
        """Take note that ``task`` raised."""
        if self._averaging is not None:
            self._averaging.failed(task)

    def captured(
        self, task: str, captures: Mapping[str, Grads], parameters: Sequence[Tensor], sync: bool
    ) -> list[HandedOver]:
        """Take note that ``task`` has captured; begin to average, and return what went out."""
        if self._averaging is None:
            return []
        return self._averaging.captured(task, captures, parameters, sync)

    def flush(
        self, captures: Mapping[str, Grads], parameters: Sequence[Tensor]
    ) -> list[HandedOver]:
        """Begin to average what has not gone out yet, and return it."""
        return [] if self._averaging is None else self._averaging.flush(captures, parameters)

    def gather(
        self,
        captures: Mapping[str, Grads],
        parameters: Sequence[Tensor],
        common: Mapping[str, object],
    ) -> StepGradients:
        """Return the gradients of the step, after :meth:`flush`.

        Args:
            captures: what was captured and not sent.
            parameters: of the optimizer.
            common: what all ranks must have in common, by what it is called.

        Raises:
            RuntimeError: where the ranks disagree.
        """
        if self.count > 1:
            common = {**common, "parameters": self._parameters.told(parameters)}
            if self.starts:
                common["weights"] = f"fingerprint {consistency.checksum(parameters):05x}"
            self._device = parameters[0].device
        if self._averaging is not None:
            averages, active = self._averaging.finish(captures, parameters, common)
            self._same_start = True
            placement = Averaged(self._averaging.exchange, averages)
            return StepGradients(averages, active, placement, averaged=True)
        by_task = [captures.get(task, {}) for task in self._tasks]
        columns = list(zip(*(_row(grads, parameters) for grads in by_task), strict=True))
        active = [task in captures for task in self._tasks]
        if self._roll is None:
            return StepGradients(columns, active, SingleProcess(), averaged=False)
        self._roll.call("combine()", *common.values())
        self._roll.check()
        shards = [[shard_of(grad) for grad in column] for column in columns]
        sharded = Sharded(parameters, columns, check=not self._compared)
        return StepGradients(shards, active, sharded, averaged=False)

    def mean_losses(self, losses: Tensor, ran: Sequence[bool], apart: bool = True) -> StepLossMeans:
        """Return the mean of each task's loss over the ranks that ran it.

        Args:
            losses: ``[K]`` float64, NaN for a task that did not run here.
            ran: for each task, whether it ran here.
            apart: whether the tasks' gradients are captured apart here.

        Raises:
            RuntimeError: where DDP averages the gradients, and nobody the losses.
        """
        if self.count == 1:
            return StepLossMeans(losses, list(ran), torch.ones_like(losses), apart)
        if self._averaging is not None:
            return mean_losses(losses, ran, apart, [self._averaging.group])
        if self._roll is not None:
            # FSDP2 and tensor parallel average over all ranks, and each runs every task.
            means = mean_losses(losses, ran, apart, self._roll.groups)
            return means._replace(factors=torch.ones_like(means.factors))
        raise RuntimeError(
            "this method decides by the tasks' losses, which DistributedDataParallel does not "
            "average over the processes as it does the gradients: pass "
            "process_group=dist.group.WORLD to GradientSurgery and run forward and backward inside "
            "ddp.no_sync()"
        )

    def mean_factors(self, factors: Tensor) -> Tensor:
        """Return the mean of each task's factor over the ranks that ran it, as of its gradients.

        Args:
            factors: ``[K]`` float64, NaN for a task that did not run here. Without a
                ``process_group`` all ranks run the same, and have the same.
        """
        if self._averaging is None:
            return factors
        ran = (~factors.isnan()).tolist()
        return mean_losses(factors.to(self._device), ran, False, [self._averaging.group]).losses

    def compare(
        self,
        active: Tensor,
        gram: Tensor,
        order: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """See that all ranks decide on the same grounds: at the first step, where that is for free,
        and at every step when debugging.

        Args:
            active: ``[K]`` bool, the tasks that ran.
            gram: ``[S, K, K]``.
            order: None for a method that visits in no order.
            weights: None where nothing was decided, as gradients were not finite.

        Raises:
            RuntimeError: where they do not.
        """
        if self.count == 1:
            return
        if consistency.debugging():
            none = torch.zeros(0, dtype=torch.float64, device="cpu")
            parts = {
                "the Gram matrices": gram,
                "the visiting orders": none if order is None else order,
                "the weights": none if weights is None else weights,
            }
            for group in self._roll.groups if self._roll is not None else [self._group]:
                consistency.compare(parts, group, self._device)
        elif self._averaging is None and not self._compared:
            code = consistency.fingerprint(self._tasks, self._parameters.last)
            here = {dist.get_rank()} if self._roll is None else self._roll.ranks
            different = consistency.compare_with_neighbours(code, active, gram, here)
            if different is not None and self._roll is None:
                raise RuntimeError(consistency.NOT_AVERAGED.format(what="the gradients"))
            if different is not None:
                warn(
                    f"the gradients here and on rank {different}, which is not in this one's mesh, "
                    "differ, and nobody averages them: for data parallelism beside tensor "
                    "parallelism apply fully_shard(model, mesh=mesh['dp']) after "
                    "parallelize_module (stages of a pipeline are meant to differ)"
                )
        self._compared = True

    def check_losses(self, losses: Iterable[Tensor]) -> None:
        """Refuse losses that DDP would average wrongly.

        Raises:
            RuntimeError: for losses of one forward through a DDP that averages.
        """
        if self._group is None and self.count > 1:
            refuse_one_forward(losses)


class ParameterFacts:
    """What all ranks must have in common of the parameters, worked out again when they change.

    Attributes:
        last: what :meth:`told` returned last.
    """

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self.last = ""

    def told(self, parameters: Sequence[Tensor]) -> str:
        """Return their number, and a fingerprint of shapes, dtypes, and of which are frozen."""
        key = (*map(id, parameters), *[p.requires_grad for p in parameters])
        if key != self._key:
            facts = [(tuple(p.shape), p.dtype, p.requires_grad) for p in parameters]
            code = consistency.fingerprint(facts)
            self._key, self.last = key, f"{len(facts)} of fingerprint {code:05x}"
        return self.last
