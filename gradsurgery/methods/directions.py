"""Unit gradients: a Gram matrix as cosines and norms.

What a method asks of a Gram matrix is easier asked of unit gradients u_k = g_k / |g_k|: their
matrix has a diagonal of ones whatever the losses' scales are. Some of the methods that do so
iterate until a condition holds. On a GPU each look at one would wait for the device; these copy the
Gram matrix to the CPU first, which waits once. The others stay where it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradsurgery.methods.base import Verdict
from gradsurgery.transfer import to_device


class Directions(NamedTuple):
    """The directions of K gradients, and how long they are.

    Attributes:
        cosines: ``[S, K, K]``; without a direction, a gradient's row is that of the identity.
        norms: ``[S, K]``, relative to the longest gradient of the segment, so at most one.
        longest: ``[S, 1]``, the norm of that one; one where all gradients are zero.
        inverse: ``[S, K]``, shortest norm over norm: at most one, and zero for a zero gradient.
        present: ``[S, K]`` bool, whether the task is present.
        there: ``[S, K]`` bool, whether its gradient has a direction: it is not zero.
    """

    cosines: Tensor
    norms: Tensor
    longest: Tensor
    inverse: Tensor
    present: Tensor
    there: Tensor

    @property
    def zero(self) -> Tensor:
        """Whether a gradient is present and zero, ``[S, K]`` bool."""
        return self.present & ~self.there

    @property
    def mean(self) -> Tensor:
        """The weights of the mean gradient of the present tasks, ``[S, K]``."""
        return uniform(self.present)

    def segments(self, index: Tensor) -> Directions:
        """Return the directions in the segments of an index."""
        return Directions(*(value[index] for value in self))

    def dot(self, parts: Tensor) -> Tensor:
        """Return the dot products ``[S, K]`` of u_k with ``sum_k parts[k] * u_k``."""
        return torch.bmm(self.cosines, parts.unsqueeze(-1)).squeeze(-1)

    def square(self, parts: Tensor) -> Tensor:
        """Return the squared length ``[S, 1]`` of ``sum_k parts[k] * u_k``."""
        return (parts * self.dot(parts)).sum(-1, keepdim=True).clamp(min=0)

    def weights(self, parts: Tensor) -> Tensor:
        """Return the weights of the gradients whose sum is ``longest * sum_k parts[k] * u_k``."""
        return torch.where(self.there, parts / self.norms, 0)

    def verdict(self, weights: Tensor, device: torch.device | None = None) -> Verdict:
        """Return the verdict: an absent task has weight zero, and there is no state.

        ``device`` is where the weights are wanted that were found on the CPU.
        """
        weights = torch.where(self.present, weights, 0)
        return Verdict(weights if device is None else to_device(weights, device), None, {})


def directions(gram: Tensor, present: Tensor) -> Directions:
    """Split a Gram matrix into cosines and norms.

    Args:
        gram: ``[S, K, K]`` float64; rows and columns of absent tasks are zero.
        present: ``[S, K]`` bool.

    Example:
        >>> gram = torch.tensor([[[1.0, -3.0, 0.0], [-3.0, 25.0, 0.0], [0.0] * 3]]).double()
        >>> unit = directions(gram, torch.ones(1, 3, dtype=torch.bool))
        >>> unit.cosines[0, 0].tolist(), unit.norms.tolist(), unit.zero.tolist()
        ([1.0, -0.6, 0.0], [[0.2, 1.0, 0.0]], [[False, False, True]])
    """
    gram = gram.nan_to_num(0, 0, 0)
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    there = norms > 0
    lengths = torch.where(there, norms, torch.inf)
    cosines = (gram / lengths.unsqueeze(-1) / lengths.unsqueeze(-2)).clamp(-1, 1)
    cosines.diagonal(dim1=-2, dim2=-1).fill_(1)
    longest = norms.amax(-1, keepdim=True)
    longest = torch.where(longest > 0, longest, 1)
    inverse = torch.where(there, lengths.amin(-1, keepdim=True) / lengths, 0)
    return Directions(cosines, norms / longest, longest, inverse, present, there)


def on_cpu(gram: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return both on the CPU, by one copy: one wait."""
    both = torch.cat([gram, present.unsqueeze(-1)], -1).cpu()
    return both[..., :-1], both[..., -1] > 0


def uniform(among: Tensor) -> Tensor:
    """Return equal weights ``[S, K]`` that sum to one over the tasks of a mask; zero elsewhere."""
    return among.double() / among.sum(-1, keepdim=True).clamp(min=1)
