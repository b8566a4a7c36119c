"""Hooks on parameters, which each task's backward runs on that task's gradient alone.

Surgery comes after the backward passes of all tasks. A hook that steps inside the backward, or
hands the gradient on to an optimizer, acts on what no surgery has seen; one that only reads sees a
task's gradient, not what the base optimizer gets. Hooks of torch's own (DDP, FSDP) average each
task's gradient as they should.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradsurgery._warnings import warn

_WAY = (
    "the backward of each task runs it on that task's gradient alone, before surgery. Let the "
    "base optimizer step in optimizer.step(), on what combine() leaves in .grad"
)


class ParameterHooks:
    """The post-accumulate-grad hooks on the parameters of one optimizer."""

    def __init__(self) -> None:
        self._checked, self._hooked = -1, list[Tensor]()

    @contextmanager
    def watched(self, task: str, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Refuse hooks that step, or take the gradient away, in the backward passes inside.

        Raises:
            RuntimeError: for a hook that an optimizer defines, before anything runs, and for one
                that changed its parameter or took its gradient, after.
        """
        if len(parameters) != self._checked:  # once, and when groups have come or gone
            self._hooked, self._checked = _hooked(parameters), len(parameters)
        if not self._hooked:
            yield
            return
        versions = [(p, p._version) for p in self._hooked]
        reached: list[Tensor] = []
        handles = [
            p.register_post_accumulate_grad_hook(reached.append)  # type: ignore[no-untyped-call]
            for p in self._hooked
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        changed = [p for p, version in versions if p._version != version]
        taken = [p for p in reached if p.grad is None]
        for parameter in changed + taken:
            what = "changed the parameter" if changed else "took the gradient away"
            raise RuntimeError(
                f"{_name(*_hooks_of(parameter))}, a hook on a parameter of shape "
                f"{list(parameter.shape)}, {what} in the backward of task {task!r}: {_WAY}"
            )


def warn_of_samples(parameters: Iterable[Tensor]) -> None:
    """Tell of gradients for each example, by which Opacus replaces what surgery has delivered."""
    trained = next((p for p in parameters if p.grad is not None), None)
    if getattr(trained, "grad_sample", None) is not None:
        warn(
            "the parameters carry a gradient for each example (grad_sample): a DPOptimizer, around "
            "this optimizer or in it, steps on the clipped sum of these over all tasks, not on "
            "what surgery left in .grad. Conflicts are counted and nothing is done about them: "
            "under differential privacy train without surgery"
        )


def _hooked(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the parameters with hooks that are not torch's own, and tell of them.

    Raises:
        RuntimeError: for a hook that an optimizer defines.
    """
    hooked = []
    for position, parameter in enumerate(parameters):
        where = f"parameter {position} (of shape {list(parameter.shape)})"
        for optimizer in getattr(parameter, "_in_backward_optimizers", ()):
            raise RuntimeError(
                f"{type(optimizer).__name__} steps in the backward of {where}: {_WAY}"
            )
        for hook in [*_hooks_of(parameter), *(parameter._backward_hooks or {}).values()]:
            optimizer = _definer(hook)
            if optimizer is not None:
                raise RuntimeError(
                    f"{type(optimizer).__name__} has a hook on {where}, by which it steps on, or "
                    f"copies, the gradient inside the backward: {_WAY}, or take an optimizer "
                    "without such hooks"
                )
        if _hooks_of(parameter):
            hooked.append(parameter)
    if hooked:
        warn(
            f"{len(hooked)} of the parameters have post-accumulate-grad hooks "
            f"({_name(*_hooks_of(hooked[0]))}): the backward of each task runs them on that task's "
            "gradient alone, before surgery. That is fine for one that only reads a task's "
            "gradient; what the base optimizer gets is in .grad after combine()"
        )
    return hooked


def _hooks_of(parameter: Tensor) -> list[Callable[..., Any]]:
    hooks = parameter._post_accumulate_grad_hooks or {}
    return [hook for hook in hooks.values() if not _of_torch(hook)]


def _of_torch(hook: Callable[..., Any]) -> bool:
    module = getattr(_function(hook), "__module__", None) or ""
    return module.partition(".")[0] == "torch"


def _function(hook: Any) -> Any:
    while isinstance(hook, partial):
        hook = hook.func
    return hook


def _definer(hook: Callable[..., Any]) -> Optimizer | None:
    """Return the optimizer whose method the hook is, or in whose method it was made."""
    function = _function(hook)
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    cells = dict(zip(names, getattr(function, "__closure__", None) or (), strict=False))
    outer = getattr(cells.get("self"), "cell_contents", None)
    holders = (getattr(function, "__self__", None), outer)
    return next((holder for holder in holders if isinstance(holder, Optimizer)), None)


def _name(*hooks: Callable[..., Any]) -> str:
    return getattr(_function(hooks[0]), "__qualname__", repr(hooks[0])) if hooks else "a hook"
