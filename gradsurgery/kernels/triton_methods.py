"""PCGrad and GradVac on the Gram matrix as one Triton launch, a program per segment.

On a GPU the K visits of K tasks are hundreds of tiny tensor operations, each a launch of its own;
here they are one. It is the arithmetic of :mod:`gradsurgery.methods`, where it is derived, in
float64 and in the same order; only that the products of the modified with the original gradients,
C G, are kept up to date instead of being taken anew at each visit.

Rows of the K x K tiles are the tasks i that visit, columns the tasks j. Tiles are padded to a power
of two; padded tasks have norm zero, and so neither act nor are acted upon.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradsurgery.kernels.fused import _on


def visits(
    gram: Tensor,
    order: Tensor,
    target: Tensor | None = None,
    *,
    cancelled: float,
    cap: float = 0.0,
    highest: float = 0.0,
    beta: float = 0.0,
    always: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Let all tasks visit all others.

    Args:
        gram: ``[..., K, K]`` float64.
        order: ``[K, K]`` int64 on the same device.
        target: ``[..., K, K]`` float64 for GradVac, None for PCGrad.
        cancelled: see :data:`gradsurgery.methods.projection.CANCELLED`.
        cap, highest: see :mod:`gradsurgery.methods.gradvac`.
        beta, always: GradVac's.

    Returns:
        Weights ``[..., K]``, altered ``[..., K, K]`` bool, and the new targets.
    """
    tasks = gram.shape[-1]
    gram = gram.contiguous()
    weights = torch.empty(gram.shape[:-1], dtype=torch.float64, device=gram.device)
    altered = torch.empty(gram.shape, dtype=torch.bool, device=gram.device)
    fresh = None if target is None else torch.empty_like(gram)
    rows = max(2, triton.next_power_of_2(tasks))
    with _on(gram.device):
        _visits_kernel[(gram.numel() // tasks**2,)](
            gram,
            order.contiguous(),
            gram if target is None else target.expand(gram.shape).contiguous(),
            weights,
            altered,
            gram if fresh is None else fresh,
            K=tasks,
            ROWS=rows,
            GRADVAC=target is not None,
            CANCELLED=cancelled,
            CAP=cap,
            HIGHEST=highest,
            BETA=beta,
            ALWAYS=always,
            num_warps={32: 4, 64: 8}.get(rows, 1),
            enable_fp_fusion=False,
        )
    return weights, altered, fresh


@triton.jit
def _number(value: tl.constexpr):
    """A constant in float64: as a bare literal it would be rounded to float32."""
    return tl.full([], value, tl.float64)


@triton.jit
def _root(value):
    return tl.sqrt(tl.maximum(value, 0.0))


@triton.jit
def _along(across, target, bound, HIGHEST: tl.constexpr):
    """The length along g_j that g_i' is to have, see ``methods.gradvac``."""
    t = tl.minimum(target, _number(HIGHEST))
    beside = (1 - t) * (1 + t)
    # A target of -1: no cosine is below it.
    free = tl.where(
        beside > 0, across * t / _root(tl.where(beside > 0, beside, 1.0)), -float("inf")
    )
    capped = _root(tl.maximum(bound - across, 0.0) * (bound + across))
    return tl.where(t > 0, tl.minimum(free, capped), free)


@triton.jit
def _visits_kernel(
    gram, order, target, weights, altered, fresh,
    K: tl.constexpr, ROWS: tl.constexpr, GRADVAC: tl.constexpr,
    CANCELLED: tl.constexpr, CAP: tl.constexpr, HIGHEST: tl.constexpr,
    BETA: tl.constexpr, ALWAYS: tl.constexpr,
):  # fmt: skip
    """All visits of one segment, position by position of the order."""
    segment = tl.program_id(0).to(tl.int64)
    gram += segment * K * K
    i = tl.arange(0, ROWS)
    j = tl.arange(0, ROWS)
    cells = i[:, None] * K + j[None, :]
    inside = (i[:, None] < K) & (j[None, :] < K)
    products = tl.load(gram + cells, mask=inside, other=0.0)  # C G, and C begins as 1
    coefficients = tl.where(i[:, None] == j[None, :], _number(1.0), _number(0.0))
    changed = tl.zeros([ROWS, ROWS], tl.int32)
    norms = _root(tl.load(gram + j * (K + 1), mask=j < K, other=0.0))  # by column
    goal = products
    bound = _number(0.0)
    if GRADVAC:
        goal = tl.load(target + segment * K * K + cells, mask=inside, other=0.0)
        present = tl.maximum(tl.sum((norms > 0).to(tl.float64), axis=0), _number(1.0))
        bound = _number(CAP) * _root(tl.sum(tl.sum(products, axis=1), axis=0)) / present
    for position in range(K):
        partner = tl.load(order + i * K + position, mask=i < K, other=0).to(tl.int32)
        here = j[None, :] == partner[:, None]
        pieces = tl.sum(tl.abs(coefficients) * norms[None, :], axis=1)
        square = tl.sum(products * coefficients, axis=1)
        least = _number(CANCELLED) * pieces
        norm = _root(tl.where(square > least * least, square, 0.0))
        other = tl.sum(tl.where(here, norms[None, :], 0.0), axis=1)
        dot = tl.sum(tl.where(here, products, 0.0), axis=1)
        noise = _number(CANCELLED) * _number(CANCELLED) * pieces * other
        dot = tl.where((norm > 0) & (tl.abs(dot) > noise), dot, 0.0)
        acts = (partner != i) & (norm > 0) & (other > 0)
        length = tl.where(acts, other, 1.0)
        if GRADVAC:
            cosine = dot / (tl.where(acts, norm, 1.0) * length)
            cosine = tl.where(acts, tl.minimum(tl.maximum(cosine, -1.0), 1.0), 0.0)
            across = norm * _root(1 - cosine * cosine)
            wanted = tl.sum(tl.where(here, goal, 0.0), axis=1)
            along = _along(across, wanted, bound, HIGHEST)
            room = (bound - norm) * bound
            full = (dot >= 0) & (room <= _number(CANCELLED) * _number(CANCELLED) * pieces * pieces)
            alter = acts & (dot / length < along) & (full == 0)
            amount = (along - dot / length) / length
            moved = (1 - _number(BETA)) * wanted + _number(BETA) * cosine
            moves = acts if ALWAYS else alter
            goal = tl.where(here & moves[:, None], moved[:, None], goal)
        else:
            alter = acts & (dot < 0)
            amount = -dot / (length * length)
        step = tl.where(alter, amount, 0.0)
        theirs = (i[:, None] < K) & (j[None, :] < K)
        row = tl.load(gram + partner[:, None] * K + j[None, :], mask=theirs, other=0.0)
        coefficients += tl.where(here, step[:, None], 0.0)
        products += step[:, None] * row
        changed = tl.where(here & alter[:, None], 1, changed)
    tl.store(
        weights + segment * K + j,
        tl.sum(tl.where(i[:, None] < K, coefficients, 0.0), axis=0),
        mask=j < K,
    )
    tl.store(altered + segment * K * K + cells, changed != 0, mask=inside)
    if GRADVAC:
        tl.store(fresh + segment * K * K + cells, goal, mask=inside)
