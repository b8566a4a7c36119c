"""Numbers of the host as tensors, and copies to a device, for which the host does not wait."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to ``device`` without waiting for the copy.

    The pinned memory in between belongs to torch's caching allocator, which hands it out again only
    when the copy is done.

    Example:
        >>> to_device(torch.ones(2), torch.device("cpu")).tolist()
        [1.0, 1.0]
    """
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


@functools.cache
def float64_device(device: torch.device) -> torch.device:
    """Return where the float64 numbers of a device live: there, or on the CPU if it has none.

    Example:
        >>> float64_device(torch.device("cpu"))
        device(type='cpu')
    """
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, RuntimeError):  # Apple's MPS, and some accelerators
        return torch.device("cpu")
    return device


def float64(value: Tensor | float) -> Tensor:
    """Return a number or a tensor as float64 without a graph, on its device or the CPU.

    Example:
        >>> float64(2), float64(torch.tensor([0.5]))
        (tensor(2., dtype=torch.float64), tensor([0.5000], dtype=torch.float64))
    """
    if not isinstance(value, Tensor):
        # Not as_tensor() alone: under torch.set_default_device() it would move a tensor there.
        return torch.as_tensor(value, dtype=torch.float64, device="cpu")
    value = value.detach()
    return value.to(float64_device(value.device)).to(torch.float64)
