"""Given gradients: K tasks' gradients that nobody may change, and parameters for the update."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.workloads import Gradients, Workload, bearers


class Given:
    """K gradients, and parameters that receive the update.

    Args:
        work: names and shapes.
        grads: ``[K][P]``; nobody may change them.
    """

    def __init__(self, work: Workload, grads: Gradients) -> None:
        self.named = bearers(work, grads[0][0].device, grads[0][0].dtype)
        self.parameters = [parameter for _, parameter in self.named]
        self.grads = grads
        self.device = grads[0][0].device

    def clear(self) -> None:
        """Empty every ``.grad``."""
        for parameter in self.parameters:
            parameter.grad = None

    def deliver(self, grads: Sequence[Tensor]) -> None:
        """Put ``grads`` into ``.grad``."""
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad

    @cached_property
    def jacobians(self) -> list[Tensor]:
        """The gradients as torchjd's backward leaves them: ``[K, *shape]`` for each parameter."""
        return [torch.stack(column) for column in zip(*self.grads, strict=True)]


class GivenLoss:
    """Stands where a peer takes a loss: its backward only puts one task's gradients in place."""

    def __init__(self, given: Given, task: int) -> None:
        self._given, self._task = given, task

    def backward(self, retain_graph: bool = False) -> None:
        """Fill ``.grad``, with tensors that can be re-pointed but share the gradients' memory."""
        self._given.deliver([grad.detach() for grad in self._given.grads[self._task]])
