"""The arithmetic of PCGrad and GradVac: K modified gradients, visiting one task each at a time.

Each modified gradient stays a linear combination of the originals, ``g_i' = c_i . (g_1 .. g_K)``,
so every dot product that the papers' algorithms ask for is ``c_i G c_j``, and K^2 numbers stand in
for vectors of any length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

#: A modified gradient shorter than this, relative to the pieces it was summed from, is rounding
#: noise of a cancellation: it counts as zero. Relative, so scaling all losses changes no decision.
CANCELLED = 1e-6


class Visits:
    """The modified gradients as rows of coefficients of the original ones, and their K visits.

    Row i of ``coefficients[..., K, K]`` expresses g_i' in the original gradients. The K rows never
    read each other (the papers project against the *originals*), so the K visits of one position of
    the order happen at once; and each pair of tasks meets once, so that what only depends on the
    pair is computed for all positions at once. Columns of ``order``, ``others`` and ``possible``
    are positions: at position p, i visits j = order[i, p].

    Args:
        gram: ``[..., K, K]`` float64.
        order: ``[K, K]`` int64, each row a permutation of the tasks.

    Raises:
        ValueError: for a ``gram`` of another dtype, or that is not square.

    Example:
        >>> gram = torch.tensor([[1.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)
        >>> visits = Visits(gram, torch.tensor([[1, 0], [0, 1]]))
        >>> partner, other, _ = next(iter(visits))
        >>> visits.measure(partner)[0].tolist()
        [[-1.0], [-1.0]]
    """

    def __init__(self, gram: Tensor, order: Tensor) -> None:
        if gram.dtype != torch.float64 or gram.shape[-1] != gram.shape[-2]:
            raise ValueError(
                f"gram must be float64 of shape [..., K, K], not {gram.dtype} {list(gram.shape)}"
            )
        tasks, device = gram.shape[-1], gram.device
        self.gram, self.order = gram, order.expand(gram.shape)
        self.norms = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt().unsqueeze(-2)
        self.others = self.norms.expand(gram.shape).gather(-1, self.order)  # |g_j|
        itself = order == torch.arange(tasks, device=device).unsqueeze(-1)
        self.possible = (self.others > 0) & ~itself  # two tasks, and j has a direction
        self.coefficients = torch.eye(tasks, dtype=gram.dtype, device=device).repeat(
            *gram.shape[:-2], 1, 1
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield j, |g_j| and whether a visit is possible, ``[..., K, 1]``, for each position."""
        columns = (self.order, self.others, self.possible)
        return zip(*(torch.split(values, 1, -1) for values in columns), strict=True)

    def measure(self, partner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return g_i' . g_j, |g_i'|^2, and the length of the pieces that g_i' was summed from.

        The pieces, sum_k |c_k||g_k|, tell rounding from what is there: up to ``CANCELLED`` times
        their length, g_i' has been cancelled, and up to the square of that, times |g_j|, the dot
        product is zero. Each is ``[..., K, 1]``.
        """
        projected = self.coefficients @ self.gram
        square = (projected * self.coefficients).sum(-1, keepdim=True)
        pieces = (self.coefficients.abs() * self.norms).sum(-1, keepdim=True)
        return projected.gather(-1, partner), square, pieces

    def add(self, partner: Tensor, amount: Tensor, where: Tensor) -> None:
        """Add ``amount * g_j`` to g_i', where ``where``."""
        self.coefficients.scatter_add_(-1, partner, torch.where(where, amount, 0))

    def by_task(self, positions: Sequence[Tensor]) -> Tensor:
        """Return what each position brought, K times ``[..., K, 1]``, by task: ``[..., K, K]``."""
        values = torch.cat(list(positions), -1)
        return torch.empty_like(values).scatter_(-1, self.order, values)

    @property
    def weights(self) -> Tensor:
        """The sum of the modified gradients over i: column sums, ``[..., K]``."""
        return self.coefficients.sum(-2)
