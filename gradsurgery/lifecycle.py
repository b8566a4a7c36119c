"""The lifecycle of a step's gradients, from capture to the base's step: what was skipped, dropped
or left over, as ``.grad`` tells.

While gradients wait to be combined, the smallest parameter that they reached bears a zero gradient
if it had none. Whoever clears the gradients of a batch that is skipped (``model.zero_grad()``,
``p.grad = None``, ``base.zero_grad()``) clears that one as well, without knowing of surgery, and
then what waits belongs to that batch. After a step, the same parameter tells whether gradients were
cleared before the next ones are added to them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, full_like

from gradsurgery._warnings import warn
from gradsurgery.distributed.sharded import is_sharded, shard_of


class _Seen(NamedTuple):
    """A parameter's gradient as it was left."""

    parameter: Tensor
    grad: Tensor
    version: int

    @staticmethod
    def of(parameter: Tensor) -> _Seen | None:
        grad = parameter.grad
        return None if grad is None else _Seen(parameter, grad, grad._version)

    def is_there(self) -> bool:
        return self.parameter.grad is self.grad

    def untouched(self) -> bool:
        return self.is_there() and self.grad._version == self.version

    def cleared(self) -> bool:
        """Whether it was taken away, or set to zero."""
        if not self.is_there() or self.untouched():
            return not self.is_there()
        if self.grad.is_sparse or is_sharded(self.grad):  # the ranks are to agree
            return False
        # A device waits, in the step after a write only. zero_() leaves no sign, a factor does.
        return not (self.grad.any() or self.grad.signbit().any())


class Lifecycle:
    """What became of captured and delivered gradients.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> lifecycle = Lifecycle()
        >>> lifecycle.captured("a", {w: torch.ones(2)})
        >>> lifecycle.skipped()
        False
        >>> w.grad = None  # what zero_grad() of the model or the base does
        >>> lifecycle.skipped()
        True
    """

    def __init__(self) -> None:
        self._smallest: Tensor | None = None
        self._waiting: _Seen | None = None  # since the first capture
        self._marker: _Seen | None = None  # if that is a zero gradient of ours
        self._stepped: _Seen | None = None  # since the last step
        self._dropped: dict[str, str] = {}  # tasks, and why
        self._torn = False  # a delivery that was not finished
        self._fresh = False  # combined since the last step
        self._joined = False  # a joined loss has not run since the last step
        self._told: set[str] = set()

    # ------------------------------------------------------------------ while gradients wait

    def captured(self, task: str, reached: Mapping[Tensor, Tensor]) -> None:
        """Take note of a capture of ``task``: the parameters that it ``reached``, and gradients."""
        self._dropped.pop(task, None)
        if self._waiting is not None or not reached:
            return
        smallest = self._smallest
        if smallest is None or smallest not in reached:
            # A sparse gradient that is added to a dense one would not be sparse any longer.
            dense = [parameter for parameter, grad in reached.items() if not grad.is_sparse]
            smallest = self._smallest = min(dense, key=lambda p: p.numel(), default=None)
        if smallest is None:
            return
        if smallest.grad is None:
            # Of negative zeros: they add nothing, and stay negative when they are scaled.
            smallest.grad = full_like(smallest, -0.0, requires_grad=False)
            self._marker = _Seen.of(smallest)
        self._waiting = _Seen.of(smallest)

    def skipped(self) -> bool:
        """Whether gradients were cleared since the first capture: its batch was skipped."""
        return self._waiting is not None and self._waiting.cleared()

    def dropped(self, tasks: Iterable[str], why: str) -> None:
        """Take note that the captures of ``tasks`` were dropped."""
        self._dropped |= dict.fromkeys(tasks, why)

    def settle(self) -> None:
        """Stop watching for a clearing: nothing waits any longer."""
        if self._marker is not None and self._marker.untouched():
            self._marker.parameter.grad = None
        self._waiting = self._marker = None

    def forgive(self) -> None:
        """Forget what was dropped: that was meant."""
        self._dropped = {}

    # ------------------------------------------------------------------ combine

    def begin_combine(self, ran: Sequence[str], parameters: Iterable[Tensor]) -> None:
        """Tell what was dropped and not captured again, and what is left of the last step.

        Raises:
            RuntimeError: when ``.grad`` holds part of a delivery that was cut.
        """
        if self._torn and any(parameter.grad is not None for parameter in parameters):
            raise RuntimeError(_TORN)
        dropped, self._dropped = self._dropped, {}
        lost = {task: why for task, why in dropped.items() if task not in ran}
        if lost and ran:
            warn(
                f"combine() has the gradients of {', '.join(ran)}, and not those "
                f"captured before of {'; '.join(f'{task} ({why})' for task, why in lost.items())}. "
                "Clear gradients before a step's first task or after step(), not between tasks; to "
                "drop a step on purpose, call optimizer.discard()"
            )
        stepped, self._stepped = self._stepped, None
        if stepped is not None and stepped.untouched() and "stale" not in self._told:
            self._told.add("stale")
            warn(
                ".grad still holds what the last step used, and combine() adds to it: call "
                "optimizer.zero_grad() after each step()"
            )
        self.settle()

    def reason(self) -> str:
        """Why nothing is captured, for a message; empty where nothing was dropped."""
        return "; ".join(f"{task}: {why}" for task, why in self._dropped.items())

    def begin_delivery(self) -> None:
        """Take note that ``.grad`` is being written."""
        self._torn = True

    def delivered(self) -> None:
        """Take note that ``.grad`` holds the whole update."""
        self._torn, self._fresh = False, True
        self._told.add("plain")

    def compared(self, shared: Collection[int], active: int) -> None:
        """Tell once that no parameter was used by two of the ``active`` tasks."""
        if shared:
            self._told.add("apart")
        elif active > 1 and "apart" not in self._told:
            self._told.add("apart")
            warn(
                "no parameter has gradients of two tasks, so there is nothing for surgery to do: "
                "the tasks' models are apart, or the trunk is detached, frozen, or not among the "
                "optimizer's parameters"
            )

    # ------------------------------------------------------------------ step and zero_grad

    def joined(self) -> None:
        """Take note of a joined loss."""
        self._joined = True

    def ran(self) -> None:
        """Take note that a joined loss ran its backward."""
        self._joined = False

    def begin_step(self, parameters: Callable[[], Iterable[Tensor]]) -> None:
        """Tell of a step on gradients that are not those of surgery.

        Raises:
            RuntimeError: when ``.grad`` holds part of a delivery that was cut.
        """
        if self._torn:
            raise RuntimeError(_TORN)
        if self._joined and not self._fresh:
            self._joined = False
            warn(
                "step() after a joined loss whose backward did not run: call "
                "optimizer.join(losses).backward(). With inputs=..., call it on the joined loss "
                "itself, not on what was computed from it"
            )
        elif "plain" not in self._told and _any_gradient(parameters()):
            self._told.add("plain")
            warn(
                "step() on gradients that no combine() delivered, so this is plain training: in "
                "the place of sum(losses).backward() write optimizer.join(losses).backward()"
            )

    def stepped(self) -> None:
        """Take note of a step of the base."""
        if self._fresh and self._smallest is not None:
            self._stepped = _Seen.of(self._smallest)
        self._fresh = False

    def zeroed(self) -> None:
        """Take note that gradients are cleared by the optimizer itself."""
        self._torn = self._fresh = self._joined = False
        self._stepped = None


def _any_gradient(parameters: Iterable[Tensor]) -> bool:
    """Whether the first gradient there is has a value: torch's checkpoints step on zeros."""
    grad = next((p.grad for p in parameters if p.grad is not None), None)
    if grad is None or grad.is_sparse:
        return grad is not None
    shard = shard_of(grad)
    return shard is not None and bool(shard.any())


_TORN = (
    "combine() was interrupted while it wrote .grad, which holds a part of the update: call "
    "optimizer.zero_grad() and run the step again"
)
