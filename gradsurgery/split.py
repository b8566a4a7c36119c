"""split: one batch that mixes the examples of several tasks, as a loss for each task.

The other way to feed several tasks: where each example belongs to one of them, one forward serves
all, and the tasks' losses are the means (or sums) over their own examples.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradsurgery.transfer import to_device

REDUCTIONS = ("mean", "sum")


def split(
    losses: Tensor,
    task_ids: Tensor | Sequence[int] | Sequence[str],
    tasks: Sequence[str],
    reduction: str = "mean",
) -> dict[str, Tensor]:
    """Return the loss of each task that is present in a mixed batch, for ``optimizer.join``.

    Where ``task_ids`` lies on a GPU the host waits for it, to know which tasks are there; collators
    make it on the CPU, where it costs nothing.

    Args:
        losses: ``[B]``, floating point: the loss of each example (``reduction="none"``).
        task_ids: ``[B]``, the task of each example: integers, places in ``tasks``, as a tensor or a
            list; or a list of names.
        tasks: the tasks' names in order, ``optimizer.tasks``.
        reduction: ``"mean"`` over a task's own examples, so that a task's loss does not depend on
            how many of them the batch has; or ``"sum"``, where the sum of what is returned, divided
            by B, is the batch's mean.

    Returns:
        Scalars by task name, in the order of ``tasks``. A task without an example in the batch is
        not there.

    Raises:
        TypeError: for losses that are no tensor, or task ids that are neither integers nor names.
        ValueError: for losses or task ids of another shape, losses that are not floating point, a
            task id that is no task's, names in ``tasks`` twice, or an unknown reduction.

    Example:
        >>> losses = torch.tensor([1.0, 2.0, 3.0, 6.0])
        >>> split(losses, [0, 2, 0, 2], ("a", "b", "c"))
        {'a': tensor(2.), 'c': tensor(4.)}
        >>> split(losses, ["a", "c", "a", "c"], ("a", "b", "c"), reduction="sum")
        {'a': tensor(4.), 'c': tensor(8.)}
    """
    _check_losses(losses)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is one of {', '.join(REDUCTIONS)}, not {reduction!r}")
    if isinstance(tasks, str) or len(set(tasks)) != len(tasks):
        raise ValueError(f"tasks is a sequence of different names, not {tasks!r}")
    places = _places(task_ids, len(losses), tasks)
    where = to_device(torch.tensor(places, dtype=torch.int64, device="cpu"), losses.device)
    by_task = {}
    for place in sorted(set(places)):
        # Not losses[where == place]: on a GPU its shape would have to be waited for.
        total = torch.where(where == place, losses, 0.0).sum()
        by_task[tasks[place]] = total / places.count(place) if reduction == "mean" else total
    return by_task


def _check_losses(losses: Tensor) -> None:
    if not isinstance(losses, Tensor):
        raise TypeError(
            f"losses is a tensor of one loss per example, not a {type(losses).__name__}"
        )
    if losses.dim() != 1:
        raise ValueError(
            f"losses has shape {list(losses.shape)} and needs one number per example, [B]: compute "
            "them with reduction='none', and reduce what is left of an example (its tokens, say)"
        )
    if not losses.is_floating_point():
        raise ValueError(f"losses has dtype {losses.dtype}: losses are floating point numbers")


def _places(task_ids: Iterable[Any], batch: int, tasks: Sequence[str]) -> list[int]:
    """Return each example's task as its place in ``tasks``."""
    if isinstance(task_ids, Tensor):
        integers = not (task_ids.is_floating_point() or task_ids.is_complex())
        if task_ids.shape != (batch,) or not integers or task_ids.dtype == torch.bool:
            raise ValueError(
                f"task_ids has shape {list(task_ids.shape)} and dtype {task_ids.dtype}, and losses "
                f"has {batch} examples: pass one integer for each, [B]"
                + (
                    " (a mask of the second task's is mask.long())"
                    if task_ids.dtype == torch.bool
                    else ""
                )
            )
        task_ids = task_ids.tolist()
    elif isinstance(task_ids, str):
        raise TypeError(f"task_ids is one name or integer per example, not the name {task_ids!r}")
    ids = list(task_ids)
    if len(ids) != batch:
        raise ValueError(f"got {len(ids)} task_ids for {batch} examples: pass one for each")
    return [_place(task, position, tasks) for position, task in enumerate(ids)]


def _place(task: Any, position: int, tasks: Sequence[str]) -> int:
    if isinstance(task, str):
        if task not in tasks:
            raise ValueError(
                f"unknown task {task!r} at position {position} of task_ids: the tasks are "
                f"{', '.join(tasks)}"
            )
        return tasks.index(task)
    try:
        place = operator.index(task)
    except TypeError:
        raise TypeError(
            f"task_ids holds integers or task names, and {task!r} at position {position}"
        ) from None
    if isinstance(task, bool) or not 0 <= place < len(tasks):
        raise ValueError(
            f"task id {task!r} at position {position} of task_ids: the {len(tasks)} tasks "
            f"({', '.join(tasks)}) are numbered from 0"
        )
    return place
