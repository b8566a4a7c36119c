"""PCGrad the usual way: flatten every gradient, loop over pairs of long vectors, cut up the result.

Written here after the habit of most public implementations, to have that habit in the comparison.
Many also carry a mask of the elements that each task reaches, and merge through it, at some cost;
``masks`` has it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor


def flatten_and_loop(grads: Sequence[Sequence[Tensor]], masks: bool = False) -> list[Tensor]:
    """Return the update of PCGrad, one tensor per parameter.

    Args:
        grads: ``[K][P]``.
        masks: carry masks, and merge through them.
    """
    flat = [torch.cat([grad.flatten() for grad in task]) for task in grads]
    projected = project(flat)
    if masks:
        reached = [torch.cat([torch.ones_like(g).flatten() for g in task]) for task in grads]
        merged = merge(projected, torch.stack(reached).prod(0).bool())
    else:
        merged = torch.stack(projected).sum(0)
    pieces = torch.split(merged, [grad.numel() for grad in grads[0]])
    return [piece.view_as(grad).clone() for piece, grad in zip(pieces, grads[0], strict=True)]


def project(flat: Sequence[Tensor]) -> list[Tensor]:
    """Return each gradient, projected off those it conflicts with, in random order."""
    projected = []
    for task, grad in enumerate(flat):
        current, order = grad.clone(), [j for j in range(len(flat)) if j != task]
        random.shuffle(order)
        for other in (flat[j] for j in order):
            dot = torch.dot(current, other)
            if dot < 0:
                current -= dot * other / other.norm() ** 2
        projected.append(current)
    return projected


def merge(projected: Sequence[Tensor], shared: Tensor) -> Tensor:
    """Return the sum, taken apart for what all tasks reach and what they do not."""
    merged = torch.zeros_like(projected[0])
    for mask in (shared, ~shared):
        merged[mask] = torch.stack([grad[mask] for grad in projected]).sum(0)
    return merged
