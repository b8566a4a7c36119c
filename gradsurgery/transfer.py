"""Numbers of the host as tensors, and copies to a device, for which the host does not wait."""

from __future__ import annotations

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


def float64(value: Tensor | float) -> Tensor:
    """Return a number or a tensor as float64 without a graph, on its device or the CPU.

    Example:
        >>> float64(2), float64(torch.tensor([0.5]))
        (tensor(2., dtype=torch.float64), tensor([0.5000], dtype=torch.float64))
    """
    # Not as_tensor() alone: under torch.set_default_device() it would move a tensor there.
    device = value.device if isinstance(value, Tensor) else "cpu"
    return torch.as_tensor(value, dtype=torch.float64, device=device).detach()
