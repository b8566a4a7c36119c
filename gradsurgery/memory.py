"""Memory of the captured gradients: each stretch of it belongs to one gradient.

The combination is written in place. Where two gradients share their memory, as those that
``torch.autograd.grad`` returns for the terms of a sum do, it would be written there twice.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gradsurgery.distributed.sharded import is_sharded


class GradientMemory:
    """The addresses of all captured gradients, and the task that each belongs to.

    Example:
        >>> memory, w, v = GradientMemory(), torch.ones(1), torch.ones(1)
        >>> shared = torch.ones(1)
        >>> grads = memory.claim("a", {w: shared, v: shared})
        >>> grads[w] is shared, grads[v] is shared
        (True, False)
    """

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}

    def claim(
        self, task: str, grads: dict[Tensor, Tensor], beside: Iterable[Tensor] = ()
    ) -> dict[Tensor, Tensor]:
        """Return the gradients of ``task`` by parameter, those in memory of its own again copied.

        Args:
            task: its name.
            grads: by parameter; none of them a view of a larger tensor.
            beside: other tensors whose memory is not to be written to.

        Raises:
            RuntimeError: for a gradient in the memory of another task's, which it may have
                overwritten.
        """
        reserved = {_address(tensor) for tensor in beside}
        claimed: dict[Tensor, Tensor] = {}
        for parameter, grad in grads.items():
            address = _address(grad)
            owner = self._owners.get(address)
            if owner is not None and owner != task:
                self.release(claimed.values())
                raise RuntimeError(
                    f"task {task!r} left a gradient of shape {list(grad.shape)} in the memory that "
                    f"holds a gradient of task {owner!r}: something reuses gradient buffers "
                    "between backward passes (CUDA graphs, a bucket view), or .grad was set to one "
                    "tensor in both tasks; have it write to fresh memory, or clone()"
                )
            if address and (owner == task or address in reserved):
                grad = grad.clone()
                address = _address(grad)
            if address:
                self._owners[address] = task
            claimed[parameter] = grad
        return claimed

    def release(self, grads: Iterable[Tensor]) -> None:
        """Forget gradients that are captured no longer."""
        for grad in grads:
            self._owners.pop(_address(grad), None)

    def clear(self) -> None:
        """Forget all of them."""
        self._owners = {}


def _address(grad: Tensor) -> int:
    """Return where a gradient lies, 0 where that has no meaning (wrapper subclasses, no elements).

    A shard's is left out: it is a view of memory that its owner never uses again.
    """
    if is_sharded(grad):
        return 0
    if grad.layout == torch.sparse_coo:
        grad = grad.coalesce().values()
    return grad.data_ptr() if grad.layout == torch.strided else 0
