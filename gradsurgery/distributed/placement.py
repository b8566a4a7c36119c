"""Where an optimizer's gradients come from: this process, a process group, or a mesh of shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gradsurgery import kernels
from gradsurgery.distributed import consistency
from gradsurgery.distributed.averaging import Averaging, Captured
from gradsurgery.distributed.collectives import CARRIERS
from gradsurgery.distributed.ddp_guard import refuse_one_forward
from gradsurgery.distributed.sharded import Meshed, is_sharded, local, meshes_of

Grads = Sequence[Tensor | None]  # one per parameter


class Placement(Protocol):
    """How gradients lie on the processes."""

    def gram(
        self, rows: kernels.Gradients, segments: Sequence[int], positions: Sequence[int], count: int
    ) -> Tensor:
        """Return the Gram matrix of the whole gradients, ``[count, K, K]``.

        Args:
            rows: ``[K][P']``, what lies here.
            segments: of the P' parameters.
            positions: of the P' among all parameters.
            count: the number of segments.
        """


class Here:
    """This process has all there is."""

    def gram(
        self, rows: kernels.Gradients, segments: Sequence[int], positions: Sequence[int], count: int
    ) -> Tensor:
        """See :class:`Placement`."""
        return kernels.gram(rows, segments, count)


class Found(NamedTuple):
    """The gradients of a step.

    Attributes:
        rows: ``[K][P]``, what lies here of each; the first of a parameter may be overwritten.
        active: for each task, whether it ran, on any rank.
        placement: where the rest lies.
        restored: turns the combined gradients into what ``.grad`` is to be.
    """

    rows: list[list[Tensor | None]]
    active: list[bool]
    placement: Placement
    restored: Callable[[Grads], Grads]


class Processes:
    """The processes that take part in one optimizer's surgery.

    Args:
        group: that the gradients are averaged over, or None.
        tasks: the tasks' names, in order.
        exchange: "all_reduce" or "reduce_scatter".

    Raises:
        TypeError: when ``group`` is no process group.
        ValueError: for an unknown exchange.
    """

    def __init__(
        self, group: dist.ProcessGroup | None, tasks: Sequence[str], exchange: str
    ) -> None:
        _check(group, exchange)
        self._tasks = tuple(tasks)
        self._group = group
        # A group of one is a way to say that ranks are meant to differ: nothing to do or compare.
        several = group is not None and dist.get_world_size(group) > 1
        self._averaging = Averaging(group, tasks, exchange) if group and several else None
        self._roll: consistency.RollCall | None = None
        self._compared = False
        self._shapes: list[Any] = []
        self._device = torch.device("cpu")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._group is not None:
            raise TypeError(
                "an optimizer with a process_group cannot be pickled or copied, since the group "
                "belongs to this process: save its state_dict() instead"
            )
        return Processes, (None, self._tasks, "all_reduce")

    @property
    def count(self) -> int:
        """How many processes train together."""
        if self._group is not None:
            return dist.get_world_size(self._group)
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    def drop(self, parameters: Sequence[Tensor]) -> None:
        """Forget the step under way."""
        if self._averaging is not None:
            self._averaging.drop(parameters)
        if self._roll is not None:
            self._roll.clear()

    def begin(self, task: str, parameters: Sequence[Tensor]) -> None:
        """Take note that ``task`` begins."""
        if self._averaging is not None:
            self._averaging.begin()
        if any(map(is_sharded, parameters)):
            if self._roll is None:
                self._roll = consistency.RollCall(meshes_of(parameters))
            self._roll.call(f"task {task!r}")

    def failed(self, task: str) -> None:
        """Take note that ``task`` raised."""
        if self._averaging is not None:
            self._averaging.failed(task)

    def captured(
        self, task: str, capture: Captured, parameters: Sequence[Tensor], sync: bool
    ) -> None:
        """Take note that ``task`` has captured, and begin to average."""
        if self._averaging is not None:
            self._averaging.captured(task, capture, parameters, sync)

    def everything(
        self,
        capture: Captured,
        parameters: Sequence[Tensor],
        common: Callable[[], tuple[object, ...]],
    ) -> Found:
        """Return the gradients of the step.

        Args:
            capture: what was captured.
            parameters: of the optimizer.
            common: tells what all ranks must have in common.

        Raises:
            RuntimeError: where the ranks disagree.
        """
        if self.count > 1:
            self._shapes = [(tuple(p.shape), p.dtype) for p in parameters]
            self._device = parameters[0].device
        if self._averaging is not None:
            return self._averaged(self._averaging, capture, parameters, common())
        captured = capture.grads
        rows = [[captured.get(task, {}).get(p) for p in parameters] for task in self._tasks]
        active = [task in captured for task in self._tasks]
        if self._roll is None:
            return Found(rows, active, Here(), lambda grads: grads)
        self._roll.call("combine()", self._shapes, *common())
        self._roll.check()
        shards = [[local(grad) for grad in row] for row in rows]
        placement = Meshed(parameters, check=not self._compared)
        return Found(shards, active, placement, lambda grads: _whole(rows, grads))

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
            order, weights: None where there are none, as gradients were not finite.

        Raises:
            RuntimeError: where they do not.
        """
        if self.count == 1:
            return
        if consistency.debugging():
            none = torch.zeros(0)
            parts = {
                "the Gram matrices": gram,
                "the visiting orders": none if order is None else order,
                "the weights": none if weights is None else weights,
            }
            for group in self._roll.groups if self._roll is not None else [self._group]:
                consistency.compare(parts, group, self._device)
        elif self._roll is None and self._averaging is None and not self._compared:
            code = consistency.fingerprint(self._tasks, self._shapes)
            consistency.compare_with_neighbours(code, active, gram)
        self._compared = True

    def check_losses(self, losses: Iterable[Tensor]) -> None:
        """Refuse losses that DDP would average wrongly.

        Raises:
            RuntimeError: for losses of one forward through a DDP that averages.
        """
        if self._group is None and self.count > 1:
            refuse_one_forward(losses)

    def _averaged(
        self,
        averaging: Averaging,
        capture: Captured,
        parameters: Sequence[Tensor],
        common: tuple[object, ...],
    ) -> Found:
        code = consistency.fingerprint(self._shapes, *common)
        rows, active = averaging.finish(capture, parameters, code)
        alone = [sum(g is not None for g in column) == 1 for column in zip(*rows, strict=True)]

        def restored(grads: Grads) -> Grads:
            whole = averaging.carrier.restored(parameters, grads)
            # A head's gradient would keep the bucket alive that all of its task came in.
            return [
                g.clone() if g is not None and one and _is_part(g) else g
                for g, one in zip(whole, alone, strict=True)
            ]

        return Found(rows, active, averaging.carrier, restored)


def _is_part(grad: Tensor) -> bool:
    """Whether ``grad`` is a view of more than itself."""
    return grad.untyped_storage().nbytes() > 2 * grad.numel() * grad.element_size()


def _whole(rows: Sequence[Grads], grads: Grads) -> list[Tensor | None]:
    """Return the sharded gradients whose shards are ``grads``, each the first of its column."""
    first = [next((g for g in column if g is not None), None) for column in zip(*rows, strict=True)]
    return [
        whole if whole is not None and is_sharded(whole) else grad
        for whole, grad in zip(first, grads, strict=True)
    ]


def _check(group: dist.ProcessGroup | None, exchange: str) -> None:
    if exchange not in CARRIERS:
        known = " or ".join(map(repr, CARRIERS))
        raise ValueError(f"exchange is {known}, not {exchange!r}")
    if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(
            "process_group is a torch.distributed process group such as dist.group.WORLD (after "
            f"init_process_group), not a {type(group).__name__}"
        )
