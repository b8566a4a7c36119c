"""Refusal of one forward through a DDP that averages: its reducer serves one backward, not K.

With ``find_unused_parameters`` it says so; with ``static_graph`` it averages the first task's
gradients and leaves each rank its own of the others, in silence. In both cases the module's output
comes out of a node of DDP's in the autograd graph, by which it is recognised here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from gradsurgery.autograd_graph import edges_below

#: The node that DDP's forward ends with in these cases.
SINK = "_DDPSinkBackward"


def refuse_one_forward(losses: Iterable[Tensor]) -> None:
    """Refuse losses that come from one forward through a DDP that averages.

    Raises:
        RuntimeError: when two losses do.
    """
    met: set[Any] = set()
    for loss in losses:
        sinks = {
            node
            for node, _ in edges_below([(loss.grad_fn, 0)], names=(SINK,))
            if node.name() == SINK and node.ddp_weakref().require_backward_grad_sync
        }
        if met & sinks:
            raise RuntimeError(
                "these losses share one forward through DistributedDataParallel, which averages "
                "the gradients of one backward pass for each forward, not of one per task. Pass "
                "process_group=dist.group.WORLD to GradientSurgery and run forward and backward "
                "inside ddp.no_sync(), or give each task a forward of its own"
            )
        met |= sinks
