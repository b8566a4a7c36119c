"""Chance: visiting orders and normal draws, from a generator of the optimizer's state alone.

PCGrad and GradVac visit the other tasks in a fresh random order at each step, and random weights
are drawn afresh. The generator's state is a tensor that travels with the checkpoint; no global
generator is read or moved, and every rank that starts from the same seed draws the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def initial_rng(seed: int) -> Tensor:
    """Return the generator state (uint8) that ``seed`` starts from."""
    return torch.Generator(device="cpu").manual_seed(seed).get_state()


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
    generator = _restored(rng)
    draws = torch.rand(tasks, tasks, dtype=torch.float64, device="cpu", generator=generator)
    return draws.argsort(dim=1), generator.get_state()


def normal_draws(rng: Tensor, tasks: int) -> tuple[Tensor, Tensor]:
    """Draw a standard normal number for each task.

    Returns:
        ``[K]`` float64, and the state to draw from next.

    Example:
        >>> draws, rng = normal_draws(initial_rng(0), 4)
        >>> draws.shape, torch.equal(draws, normal_draws(rng, 4)[0])
        (torch.Size([4]), False)
    """
    generator = _restored(rng)
    draws = torch.randn(tasks, dtype=torch.float64, device="cpu", generator=generator)
    return draws, generator.get_state()


def check_rng(rng: Tensor) -> None:
    """Check a generator's state.

    Raises:
        RuntimeError, TypeError: when it is none.

    Example:
        >>> check_rng(initial_rng(0))
    """
    _restored(rng)


def _restored(rng: Tensor) -> torch.Generator:
    generator = torch.Generator(device="cpu")
    generator.set_state(rng.cpu())
    return generator
