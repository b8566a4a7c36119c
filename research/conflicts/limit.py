"""The change that PCGrad makes to the expected gradients' sum, without a bias at zero.

PCGrad acts on negative products alone, so its change computed from an estimate is positive even
where two tasks are orthogonal: half of the estimates are negative by noise, and the other half
give 0, not less. Here one half of the blocks, A, decides which projections are made, and the other,
B, says how large they are, with its sign (cross-fitting). With delta the change of the sum that
these projections make to each half's products, the size is <delta_B, delta_A> / |delta_A|: of mean
0 where the true products are 0, and |delta| where every half of the blocks sees the conflict. In
between it is too small rather than too large.
"""

from __future__ import annotations

import math

import numpy as np

from bert_mtl_demo.study.intervals import Interval, interval
from research.conflicts.counter import Array
from research.conflicts.estimate import expected_products, length

SPLITS = 64  # of the blocks in halves; each is used both ways


def expected_change(blocks: Array) -> Interval | None:
    """The relative change of the expected gradients' sum under PCGrad, jackknifed over blocks.

    It may be negative, by noise. None where an expected gradient, or their sum, cannot be told from
    zero, or where there are too few blocks.

    Args:
        blocks: [B, K, B, K].
    """
    count, tasks = blocks.shape[:2]
    if count < 5 or any((length(blocks, k).low or 0.0) <= 0 for k in range(tasks)):
        return None
    halves = _halves(count)
    estimate = _change(blocks, halves)
    values = []
    for a in range(count):
        rest = np.delete(np.delete(blocks, a, axis=0), a, axis=2)
        # The same halves without block a: other ones would add their own noise, B times.
        values.append(count * estimate - (count - 1) * _change(rest, np.delete(halves, a, axis=1)))
    if not math.isfinite(estimate) or not np.isfinite(values).all():
        return None
    spread = interval(values)
    half = spread.half or 0.0
    return Interval(estimate, estimate - half, estimate + half, count, spread.error, spread.df)


def _halves(count: int) -> Array:
    """[2 SPLITS, B] of 1 and 0: halves of the blocks and, below them, the other halves."""
    rng = np.random.default_rng(0)
    ones = np.arange(count) < count // 2
    first = np.stack([rng.permutation(ones) for _ in range(SPLITS)])
    halves: Array = np.concatenate([first, ~first]).astype(float)
    return halves


def _change(blocks: Array, halves: Array) -> float:
    """The mean over all splits of what half A decides and half B measures."""
    products = expected_products(blocks)
    if products.sum() <= 0 or products.diagonal().min() <= 0:
        return math.nan
    decides, measures = _products(blocks, halves), _products(blocks, 1 - halves)
    tasks = len(products)
    sizes = []
    for order in (range(tasks), range(tasks - 1, -1, -1)):
        off, measured = _projected(decides, measures, products.diagonal(), list(order))
        square = np.einsum("si,ij,sj->s", off, products, off)
        inner = np.einsum("si,ij,sj->s", off, products, measured)
        sizes.append(np.where(square > 0, inner / np.sqrt(np.where(square > 0, square, 1)), 0))
    return float(np.mean(sizes) / math.sqrt(products.sum()))


def _products(blocks: Array, halves: Array) -> Array:
    """`expected_products` of every half, [S, K, K]."""
    size = halves.sum(1)[:, None, None]
    total = np.einsum("sa,aibj,sb->sij", halves, blocks, halves, optimize=True)
    same = np.einsum("sa,aiaj->sij", halves, blocks)
    products: Array = (total - same) / (size * (size - 1))
    return (products + products.transpose(0, 2, 1)) / 2


def _projected(
    decides: Array, measures: Array, squares: Array, order: list[int]
) -> tuple[Array, Array]:
    """What the projections add to the weights of the sum, [S, K], in both halves."""
    off, measured = np.zeros(decides.shape[:2]), np.zeros(decides.shape[:2])
    for i in range(len(order)):
        start = np.eye(len(order))[i]
        one, other = np.tile(start, (len(off), 1)), np.tile(start, (len(off), 1))
        for j in order:
            if j == i:
                continue
            product = np.einsum("sk,sk->s", one, decides[:, :, j])
            acts = product < 0
            same = np.einsum("sk,sk->s", other, measures[:, :, j])
            one[:, j] -= np.where(acts, product / squares[j], 0)
            other[:, j] -= np.where(acts, same / squares[j], 0)
        off += one - start
        measured += other - start
    return off, measured
