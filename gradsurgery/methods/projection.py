"""The arithmetic of PCGrad and GradVac: K modified gradients, visiting one task each at a time.

Each modified gradient stays a linear combination of the originals, ``g_i' = c_i . (g_1 .. g_K)``,
so every dot product that the papers' algorithms ask for is ``c_i G c_j``, and K^2 numbers stand in
for vectors of any length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradsurgery.methods.base import State, Verdict

#: A modified gradient shorter than this, relative to the pieces it was summed from, is rounding
#: noise of a cancellation: it counts as zero. Relative, so scaling all losses changes no decision.
CANCELLED = 1e-6


class Visits:
    """The modified gradients as rows of coefficients of the original ones.

    Row i of ``coefficients[..., K, K]`` expresses g_i' in the original gradients. The K rows never
    read each other (the papers project against the *originals*), so the K visits of one position of
    the order happen at once.

    Example:
        >>> gram = torch.tensor([[1.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)
        >>> visits = Visits(gram)
        >>> dot, norm, other = visits.measure(torch.tensor([1, 0]))
        >>> dot.tolist()
        [-1.0, -1.0]
    """

    def __init__(self, gram: Tensor) -> None:
        if gram.dtype != torch.float64 or gram.shape[-1] != gram.shape[-2]:
            raise ValueError(
                f"gram must be float64 of shape [..., K, K], not {gram.dtype} {list(gram.shape)}"
            )
        self.gram = gram
        self.norms = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()  # [..., K]
        self.coefficients = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).repeat(
            *gram.shape[:-2], 1, 1
        )
        self.altered = torch.zeros_like(gram, dtype=torch.bool)
        self._rows = torch.arange(gram.shape[-1], device=gram.device)

    def measure(self, partner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return g_i' . g_j, |g_i'| and |g_j| ([..., K] each) for j = partner[i].

        Where g_i' has been cancelled down to rounding noise its norm is exactly zero, and a dot
        product within rounding noise of zero is exactly zero.
        """
        projected = self.coefficients @ self.gram
        pieces = self.pieces()
        square = (projected * self.coefficients).sum(-1)
        norm = torch.where(square > (CANCELLED * pieces) ** 2, square, 0).sqrt()
        other = self.norms[..., partner]
        dot = projected[..., self._rows, partner]
        noise = CANCELLED**2 * pieces * other
        return torch.where((norm > 0) & (dot.abs() > noise), dot, 0), norm, other

    def pieces(self) -> Tensor:
        """Return the length of what each g_i' was summed from, sum_k |c_k||g_k|, ``[..., K]``."""
        return (self.coefficients.abs() * self.norms[..., None, :]).sum(-1)

    def acts(self, partner: Tensor, norm: Tensor, other: Tensor) -> Tensor:
        """Return where ([..., K] bool) i and j = partner[i] are two gradients with directions."""
        return (partner != self._rows) & (norm > 0) & (other > 0)

    def add(self, partner: Tensor, amount: Tensor, where: Tensor) -> None:
        """Add ``amount * g_j`` to g_i' for j = partner[i], where ``where``."""
        step = torch.where(where, amount, 0)
        self.coefficients[..., self._rows, partner] += step
        self.altered[..., self._rows, partner] |= where

    def verdict(self, state: State) -> Verdict:
        """Sum the modified gradients over i: the weights are the column sums."""
        return Verdict(self.coefficients.sum(-2), self.altered, state)
