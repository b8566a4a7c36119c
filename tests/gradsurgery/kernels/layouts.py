"""Tensors as autograd leaves them: every memory layout, by name, for the kernel tests."""

from collections.abc import Callable

import torch
from torch import Tensor

# From a contiguous [6, 4, 5, 2] tensor to one with the same shape, another walk through memory.
DENSE: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(),
    "channels_last": lambda x: x.clone(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "permuted": lambda x: x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
}
GAPPY: dict[str, Callable[[Tensor], Tensor]] = {
    "every_second": lambda x: _into(x, x.new_full((6, 4, 5, 4), 7.0)[..., ::2]),
    "inner_block": lambda x: _into(x, x.new_full((8, 6, 7, 4), 7.0)[1:7, 1:5, 1:6, 1:3]),
    "offset": lambda x: _into(x, x.new_full((241,), 7.0)[1:].view(6, 4, 5, 2)),
    "gappy_transposed": lambda x: _into(x, x.new_full((2, 5, 4, 12), 7.0).permute(3, 2, 1, 0)[::2]),
}
SHAPE = (6, 4, 5, 2)
LAYOUTS = DENSE | GAPPY


def _into(values: Tensor, memory: Tensor) -> Tensor:
    return memory.copy_(values)


def surroundings(tensor: Tensor) -> Tensor:
    """Everything in the tensor's storage that is not the tensor, as a copy."""
    storage = torch.as_strided(
        tensor, (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0
    )
    mask = torch.ones(len(storage), dtype=torch.bool, device=tensor.device)
    where = torch.arange(len(storage), device=tensor.device).as_strided(
        tensor.shape, tensor.stride(), tensor.storage_offset()
    )
    mask[where.reshape(-1)] = False
    return storage[mask].clone()
