"""The visiting order: random, from a generator that belongs to the optimizer's state alone.

PCGrad and GradVac visit the other tasks in a fresh random order at each step. The generator's state
is a tensor that travels with the checkpoint; no global generator is read or moved, and every rank
that starts from the same seed draws the same orders.
"""

from __future__ import annotations

import torch
from torch import Tensor


def initial_rng(seed: int) -> Tensor:
    """Return the generator state (uint8) that ``seed`` starts from."""
    return torch.Generator().manual_seed(seed).get_state()


def visiting_order(rng: Tensor, tasks: int) -> tuple[Tensor, Tensor]:
    """Draw one order of visits for each task.

    Args:
        rng: generator state, uint8, on any device.
        tasks: K.

    Returns:
        ``[K, K]`` int64, each row a random permutation of the tasks, and the state to draw from
        next.

    Example:
        >>> order, rng = visiting_order(initial_rng(0), 4)
        >>> order.sort(dim=1).values.tolist() == 4 * [[0, 1, 2, 3]]
        True
    """
    generator = torch.Generator()
    generator.set_state(rng.cpu())
    draws = torch.rand(tasks, tasks, dtype=torch.float64, generator=generator)
    return draws.argsort(dim=1), generator.get_state()
