"""What K backward passes multiply, as far as the losses' graphs show it.

Anything that a backward pass adds by itself is added once a pass, and a gradient of zero is a
gradient: both are right with one backward of the sum, and not with one for each task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor

from gradsurgery._warnings import warn
from gradsurgery.autograd_graph import edge_of, edges_below

#: Nodes that add terms, or scale what they add.
_SUMS = {"AddBackward0", "SubBackward0", "DivBackward0", "SumBackward0", "StackBackward0"}


def warn_of_multiplied(losses: Collection[Tensor]) -> None:
    """Tell of losses that a shared node adds in its backward, and of terms that are zero.

    Example:
        >>> import torch, warnings
        >>> w, head = (torch.ones(2, requires_grad=True) for _ in range(2))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_multiplied([w.sum() + 0 * head.sum(), (w * head).sum()])
        >>> str(caught[0].message)[:30]
        'a term of a loss is multiplied'
    """
    if len(losses) < 2:
        return
    passes = Counter(node for loss in losses for node, _ in edges_below([edge_of(loss)]))
    for node, count in passes.items():
        name = node.name()
        if count > 1 and "aux" in name.lower() and "loss" in name.lower():
            warn(
                f"{name} adds a loss of its own in the backward, and the passes of {count} tasks "
                f"go through it: it counts {count} times. Have the layer return its loss instead, "
                "and make it a task, or add it to one task's"
            )
    if any(_multiplies_by_zero(node) for loss in losses for node in _terms(loss)):
        warn(
            "a term of a loss is multiplied by the number 0. If it is there for DDP to find all "
            "parameters in use (0 * p.sum()), leave it out: its gradients of zero make heads count "
            "as shared, in cosines and weights. DDP(find_unused_parameters=True) and "
            "process_group= need no such term"
        )


def _terms(loss: Tensor) -> Iterator[Any]:
    """The nodes of the terms that a loss is the sum of.

    No others: looking at what a node saved computes a checkpointed block once more.
    """
    nodes = [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node.name() in _SUMS:
            nodes += [below for below, _ in node.next_functions]
        elif node is not None:
            yield node


def _multiplies_by_zero(node: Any) -> bool:
    if node.name() != "MulBackward0":
        return False
    factors = (node._saved_self, node._saved_other)
    numbers = (f for f in factors if f is not None and f.dim() == 0 and f.device.type == "cpu")
    return any(not f.requires_grad and f.item() == 0 for f in numbers)
