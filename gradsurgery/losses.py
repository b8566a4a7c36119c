"""The tasks' losses: what can be one, and those of the step under way."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, ValuesView
from typing import cast

import torch
from torch import Tensor

from gradsurgery.transfer import float64, float64_device

Losses = Mapping[str, Tensor] | Sequence[Tensor]


def named_losses(losses: Losses, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Return ``losses`` by task name, after checking that each can be a task's loss.

    Raises:
        TypeError: for a loss that is not a tensor, or losses that are neither mapping nor sequence.
        ValueError: for an unknown task, a sequence of the wrong length, no loss at all, a loss with
            more than one element, or one without a graph (unless gradients are switched off).
    """
    if hasattr(losses, "keys"):  # a Mapping, or what behaves as one (TensorDict)
        mapping = cast(Mapping[str, Tensor], losses)
        losses = {name: mapping[name] for name in mapping.keys()}  # noqa: SIM118
    else:
        _check_sequence(losses, tasks)
        if len(losses) != len(tasks):
            raise ValueError(
                f"got {len(losses)} losses for {len(tasks)} tasks ({', '.join(tasks)}): pass one "
                "loss per task in that order, or a mapping from task names"
            )
        losses = dict(zip(tasks, losses, strict=True))
    if not losses:
        raise ValueError(f"no loss given: pass the loss of at least one of {', '.join(tasks)}")
    for name, loss in losses.items():
        _check(name, loss, tasks)
    return dict(losses)


def _check_sequence(losses: object, tasks: Sequence[str]) -> None:
    if isinstance(losses, Sequence) and not isinstance(losses, str):
        return
    if isinstance(losses, Tensor) and losses.dim() == 1:
        return
    if isinstance(losses, Tensor):
        what = f"a tensor of shape {list(losses.shape)}"
        way = "the tasks' losses as they are before you sum them"
    elif dataclasses.is_dataclass(losses):
        what, way = f"a {type(losses).__name__}", "vars(losses), if its fields are tasks"
    elif isinstance(losses, ValuesView):
        what, way = f"a {type(losses).__name__}", "the dict itself, which says whose loss is whose"
    elif isinstance(losses, Iterator):
        what, way = f"a {type(losses).__name__}", "list(losses)"
    else:
        what, way = f"a {type(losses).__name__}", "{task: loss}"
    raise TypeError(
        "losses is a mapping from task names to losses, or a sequence of one loss per task in the "
        f"order of {', '.join(tasks)}, not {what}: pass {way}"
    )


def _check(name: str, loss: Tensor, tasks: Sequence[str]) -> None:
    _check_name(name, tasks)
    if not isinstance(loss, Tensor):
        raise TypeError(f"the loss of task {name!r} is a {type(loss).__name__}, not a tensor")
    _check_scalar(name, loss)
    if loss.is_complex():
        raise ValueError(
            f"the loss of task {name!r} is complex ({loss.dtype}), and only a real number can be "
            "minimized: take its real part or its abs()"
        )
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ValueError(
            f"the loss of task {name!r} does not require grad: it was detached, computed under "
            "no_grad, or depends on frozen parameters only; leave the task out of this step"
        )


def _check_name(name: str, tasks: Sequence[str]) -> None:
    if name not in tasks:
        raise ValueError(f"unknown task {name!r}: the tasks are {', '.join(tasks)}")


def _check_scalar(name: str, loss: Tensor) -> None:
    if loss.numel() != 1:
        raise ValueError(
            f"the loss of task {name!r} has shape {list(loss.shape)}: reduce it to a scalar, "
            "with .mean() or .sum()"
        )


class StepLosses:
    """The losses of the step under way, for methods that need them.

    Args:
        tasks: the tasks' names, in order.

    Example:
        >>> losses = StepLosses(("a", "b"))
        >>> losses.add("a", torch.tensor(1.0))
        >>> losses.add("a", torch.tensor(0.5))
        >>> losses.vector(torch.device("cpu")).tolist()
        [1.5, nan]
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self._tasks = tuple(tasks)
        self._totals: dict[str, Tensor] = {}

    def add(self, task: str, loss: Tensor | float) -> None:
        """Add the loss of one backward pass of ``task``: micro-batches add up, as gradients do."""
        value = self._scalar(task, loss)
        self._totals[task] = self._totals[task] + value if task in self._totals else value

    def replace(self, losses: Mapping[str, Tensor | float], ran: Collection[str]) -> None:
        """Take ``losses`` for whole losses of the step, whatever was added before.

        Raises:
            ValueError: for the loss of a task that is not among those that ``ran``.
        """
        values = {task: self._scalar(task, loss) for task, loss in losses.items()}
        for task in values:
            if task not in ran:
                raise ValueError(
                    f"losses has task {task!r}, which captured no gradients in this step: leave it "
                    "out, since an absent task's loss must not count"
                )
        self._totals |= values

    def drop(self, task: str) -> None:
        """Forget the loss of ``task``."""
        self._totals.pop(task, None)

    def clear(self) -> None:
        """Forget all losses."""
        self._totals = {}

    def known(self) -> list[bool]:
        """Return for each task whether its loss is known."""
        return [task in self._totals for task in self._tasks]

    def missing(self, tasks: Iterable[str]) -> list[str]:
        """Return those of ``tasks`` whose loss is unknown."""
        return [task for task in tasks if task not in self._totals]

    def vector(self, device: torch.device) -> Tensor:
        """Return ``[K]`` float64 on ``device``, NaN for a task without a loss.

        On the CPU where the device has no float64.
        """
        device = float64_device(device)
        unknown = torch.tensor(math.nan, dtype=torch.float64, device=device)
        return torch.stack([self._totals.get(task, unknown).to(device) for task in self._tasks])

    def _scalar(self, task: str, loss: Tensor | float) -> Tensor:
        _check_name(task, self._tasks)
        value = float64(loss)
        _check_scalar(task, value)
        return value.reshape(())
