"""DDP's reducer serves one backward pass for each forward pass, and surgery has K for one.

With ``find_unused_parameters`` it says so; with ``static_graph`` it averages the first task's
gradients and leaves each rank its own of the others, in silence. In both cases the module's output
comes out of a node of DDP's in the autograd graph, by which it is recognised here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

#: The node that DDP's forward ends with in these cases.
SINK = "_DDPSinkBackward"


def refuse_one_forward(losses: Iterable[Tensor]) -> None:
    """Refuse losses that come from one forward through a DDP that averages.

    Raises:
        RuntimeError: when two losses do.
    """
    met: set[Any] = set()
    for loss in losses:
        found = {node for node in _sinks(loss) if node.ddp_weakref().require_backward_grad_sync}
        if met & found:
            raise RuntimeError(
                "these losses share one forward through DistributedDataParallel, which averages "
                "the gradients of one backward pass for each forward, not of one per task. Pass "
                "process_group=dist.group.WORLD to GradientSurgery and run forward and backward "
                "inside ddp.no_sync(), or give each task a forward of its own"
            )
        met |= found


def _sinks(loss: Tensor) -> Iterable[Any]:
    """The outputs of DDP that ``loss`` depends on; what lies below them need not be visited."""
    seen: set[Any] = set()
    stack: list[Any] = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == SINK:
            yield node
        else:
            stack += [child for child, _ in node.next_functions]
