"""Where an optimizer's gradients come from: this process, a process group, or a mesh of shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gradsurgery import kernels
from gradsurgery.distributed import agreement
from gradsurgery.distributed.averaging import Averaging, Captured
from gradsurgery.distributed.carriers import CARRIERS
from gradsurgery.distributed.meshes import Meshed, is_sharded, local, meshes_of

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
        active: ``[K]`` bool, the tasks that ran, on any rank.
        placement: where the rest lies.
        restored: turns the combined gradients into what ``.grad`` is to be.
    """

    rows: list[list[Tensor | None]]
    active: Tensor
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
        self._roll: agreement.RollCall | None = None
        self._compared = False

    def __reduce__(self) -> tuple[Any, ...]:
        if self._group is not None:
            raise TypeError(
                "an optimizer with a process_group cannot be pickled or copied, since the group "
                "belongs to this process: save its state_dict() instead"
            )
        return Processes, (None, self._tasks, "all_reduce")

    def clear(self) -> None:
        """Forget the step under way."""
        if self._averaging is not None:
            self._averaging.clear()
        if self._roll is not None:
            self._roll.clear()

    def begin(self, task: str, parameters: Sequence[Tensor]) -> None:
        """Take note that ``task`` begins."""
        if any(map(is_sharded, parameters)):
            if self._roll is None:
                self._roll = agreement.RollCall(meshes_of(parameters))
            self._roll.call(f"task {task!r}")

    def captured(
        self, task: str, capture: Captured, parameters: Sequence[Tensor], sync: bool
    ) -> None:
        """Take note that ``task`` has captured, and begin to average."""
        if self._averaging is not None:
            self._averaging.captured(task, capture, parameters, sync)

    def everything(
        self, capture: Captured, parameters: Sequence[Tensor], common: tuple[object, ...]
    ) -> Found:
        """Return the gradients of the step.

        Args:
            capture: what was captured.
            parameters: of the optimizer.
            common: what all ranks must have in common.

        Raises:
            RuntimeError: where the ranks disagree.
        """
        if self._averaging is not None:
            return self._averaged(self._averaging, capture, parameters, common)
        captured = capture.grads
        rows = [[captured.get(task, {}).get(p) for p in parameters] for task in self._tasks]
        active = torch.tensor([task in captured for task in self._tasks])
        if self._roll is None:
            return Found(rows, active, Here(), lambda grads: grads)
        self._roll.call("combine()", *common)
        self._roll.check()
        shards = [[local(grad) for grad in row] for row in rows]
        return Found(shards, active, Meshed(parameters), lambda grads: _whole(rows, grads))

    def compare(self, gram: Tensor, order: Tensor, weights: Tensor, active: Tensor) -> None:
        """See that all ranks decided on the same grounds, where they can be asked for free: at the
        first step, or when debugging.

        Raises:
            RuntimeError: where they did not.
        """
        if self._roll is not None or not agreement.several_processes():
            return
        if self._group is not None and self._averaging is None:
            return
        if agreement.debugging():
            parts = {"the Gram matrices": gram, "the visiting orders": order, "weights": weights}
            agreement.compare(parts, self._group, gram.device)
        elif self._averaging is None and not self._compared:
            agreement.compare_with_neighbours(gram, active)
        self._compared = True

    def _averaged(
        self,
        averaging: Averaging,
        capture: Captured,
        parameters: Sequence[Tensor],
        common: tuple[object, ...],
    ) -> Found:
        code = agreement.fingerprint(len(parameters), *common)
        rows, active = averaging.finish(capture, parameters, code)
        carrier = averaging.carrier
        return Found(rows, active, carrier, lambda grads: carrier.restored(parameters, grads))


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
