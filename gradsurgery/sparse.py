"""Sparse gradients as dense ones: the values on the rows that any task touched.

``nn.Embedding(sparse=True)`` gives each task a sparse gradient with rows of its own. On the union
of those rows they are ordinary dense tensors of one shape, which the kernels take like any other;
put back on the union, the combination is the exact dense answer, sparse and coalesced.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def align(grads: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
    """Return the gradients of one parameter as dense tensors of one shape.

    Args:
        grads: of one parameter; strided, or sparse COO and coalesced, or some of each.

    Returns:
        The dense tensors, and the union of the indices (``[sparse_dim, n]``) that :func:`restore`
        needs; None when the result is dense anyhow, since one of the gradients is.

    Example:
        >>> a = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]).to_sparse(1)
        >>> b = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]]).to_sparse(1)
        >>> dense, union = align([a, b])
        >>> [d.tolist() for d in dense], union.tolist()
        ([[[1.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [3.0, 4.0]]], [[0, 2]])
    """
    if not any(g.is_sparse for g in grads):
        return list(grads), None
    if not all(g.is_sparse for g in grads):
        return [g.to_dense() if g.is_sparse else g for g in grads], None
    indices = torch.cat([g.indices() for g in grads], dim=1)
    aligned = [_spread(grads, k, indices) for k in range(len(grads))]
    return [a.values() for a in aligned], aligned[0].indices()


def restore(values: Tensor, union: Tensor, like: Tensor) -> Tensor:
    """Return ``values`` as a coalesced sparse tensor on the indices ``union``."""
    return torch.sparse_coo_tensor(
        union,
        values,
        like.shape,
        dtype=values.dtype,
        device=values.device,
        is_coalesced=True,
        check_invariants=False,
    )


def _spread(grads: Sequence[Tensor], task: int, indices: Tensor) -> Tensor:
    """Gradient ``task`` on the indices of all, zeros where it has none; coalescing sorts them."""
    values = [
        g.values() if k == task else torch.zeros_like(g.values()) for k, g in enumerate(grads)
    ]
    like = grads[task]
    return torch.sparse_coo_tensor(
        indices,
        torch.cat(values),
        like.shape,
        dtype=like.dtype,
        device=like.device,
        check_invariants=False,
    ).coalesce()
