"""Capture: the gradients that autograd made for one task, taken without a copy.

While a task is open the parameters' ``.grad`` is empty (or holds what the same task captured
before, so that autograd itself accumulates micro-batches in place). When it closes, the tensors
found there are the capture, and ``.grad`` is again what it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from gradsurgery.distributed.sharded import is_sharded, settled
from gradsurgery.hooks import ParameterHooks
from gradsurgery.memory import GradientMemory

#: ``{task: {parameter: gradient}}``; a task that ran is there, also when it reached no parameter.
Captures = dict[str, dict[Tensor, Tensor]]

#: The captures of all optimizers whose tasks are open, with their parameters.
_OPEN: dict[Capture, Sequence[Tensor]] = {}


class Capture:
    """The gradients captured since the last ``combine``, by task.

    Args:
        tasks: the known task names.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self._tasks = tuple(tasks)
        self._open: str | None = None
        self._memory = GradientMemory()
        self._hooks = ParameterHooks()
        self.grads: Captures = {}
        self.sent: Captures = {}

    def clear(self) -> None:
        """Forget everything captured."""
        self.grads, self.sent = {}, {}
        self._memory.clear()

    @property
    def waiting(self) -> list[str]:
        """The tasks with captured gradients."""
        return [task for task in self._tasks if task in self.grads or task in self.sent]

    def hand_over(self, task: str, left: dict[Tensor, Tensor], sent: dict[Tensor, Tensor]) -> None:
        """Part with the gradients of ``task``, all but those ``left``: they are being averaged, in
        the memory of ``sent``.

        Entering the task again starts a capture of its own.
        """
        for gone in (self.grads.pop(task), self.sent.get(task, {})):
            self._memory.release(gone.values())
        self._memory.claim(task, {**left, **sent})
        self.sent[task] = sent
        if left:
            self.grads[task] = left

    @contextmanager
    def record(self, task: str, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Capture what backward passes leave in ``parameters`` while the context is open.

        An exception drops what this task has captured so far (part of it may have gone into
        gradients captured before), restores ``.grad``, and leaves the other tasks' captures alone.

        Raises:
            RuntimeError: for no gradient at all, a gradient with a graph, or one that shares its
                memory with another task's.
        """
        before = [p.grad for p in parameters]
        earlier = self.grads.pop(task, {})
        self._memory.release(earlier.values())
        _put(parameters, [earlier.get(p) for p in parameters])
        self._open = task
        _OPEN[self] = parameters
        try:
            with self._hooks.watched(task, parameters):
                yield
            self.grads[task] = self._taken(task, parameters, before)
        finally:
            self._open = None
            del _OPEN[self]
            _put(parameters, before)

    def refuse_open(self, call: str, parameters: Callable[[], Iterable[Tensor]]) -> None:
        """Refuse a call while a task is open, here or in another optimizer of these parameters.

        Raises:
            RuntimeError: when one is.
        """
        if not _OPEN:
            return
        ids = set(map(id, parameters()))
        for capture, held in _OPEN.items():
            if capture is self or not ids.isdisjoint(map(id, held)):
                whose = "" if capture is self else " of another optimizer of the same parameters"
                raise RuntimeError(
                    f"{call} was called inside task({capture._open!r}){whose}: leave the with "
                    "block first (one indentation less; a generator that yields inside it, run on)"
                )

    def check_open(self, task: str) -> None:
        """Check that ``task`` may be opened.

        Raises:
            ValueError: for an unknown task.
            RuntimeError: inside another task.
        """
        if task not in self._tasks:
            raise ValueError(f"unknown task {task!r}: the tasks are {', '.join(self._tasks)}")
        if self._open is not None:
            raise RuntimeError(
                f"task({task!r}) was entered inside task({self._open!r}): leave one task before "
                "the next, so that each gradient belongs to one"
            )

    def _taken(
        self, task: str, parameters: Sequence[Tensor], before: Sequence[Tensor | None]
    ) -> dict[Tensor, Tensor]:
        """Return the gradients now in ``parameters``, fit to be kept and overwritten."""
        taken = {p: _owned(task, p, p.grad) for p in parameters if p.grad is not None}
        if not taken:
            hint = ""
            if any(map(is_sharded, parameters)):
                hint = " (FSDP2 keeps them back after set_requires_gradient_sync(False))"
            raise RuntimeError(
                f"no gradient reached the optimizer's parameters during task({task!r}): either its "
                "loss depends on none of them (detached, or of other parameters; leave the task "
                "out of this step then), or backward() ran outside of the with block of "
                f"optimizer.task(){hint}"
            )
        return self._memory.claim(task, taken, [grad for grad in before if grad is not None])


def _put(parameters: Iterable[Tensor], grads: Iterable[Tensor | None]) -> None:
    for parameter, grad in zip(parameters, grads, strict=True):
        if parameter.grad is not grad:
            parameter.grad = grad


def _owned(task: str, parameter: Tensor, grad: Tensor) -> Tensor:
    """Return ``grad`` as a tensor that nothing else will write to: itself, nearly always."""
    if grad.requires_grad:
        raise RuntimeError(
            f"the gradients of task {task!r} carry a graph: surgery cannot be differentiated, so "
            "call backward() without create_graph=True"
        )
    if is_sharded(grad):
        # FSDP2's shard is a view as well, of a buffer that is this gradient's for good.
        return settled(grad, parameter)
    if grad.is_sparse:
        return grad.coalesce()
    # A view belongs to somebody else, who may write there in the next backward: DDP's buckets
    # (gradient_as_bucket_view=True) do so without a word.
    if grad.untyped_storage().nbytes() != grad.numel() * grad.element_size():
        return grad.clone()
    return grad
