"""Estimates from the probe's dot products: pure functions of Gram matrices.

With g_i(b) task i's gradient on b examples, mu_i its expectation and s_i^2 the variance of one
example's, two halves of one task have E <l_i, r_i> = |mu_i|^2, and a batch has E |g_i(b)|^2 =
|mu_i|^2 + s_i^2 / b. So the cosine between two tasks' batches is that of the expected gradients
times about sqrt(f_i f_j), f_i = |mu_i|^2 / (|mu_i|^2 + s_i^2 / b) being the *noise floor*, the
cosine of two batches of the same task. At small b both are near zero whatever the tasks want of
the encoder. Free of that attenuation is

    rho_ij = mean <g_i, g_j> / sqrt(mean <l_i, r_i> mean <l_j, r_j>)

where all products are between independent batches (a U-statistic over all pairs of blocks).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bert_mtl_demo.study.intervals import Interval, interval
from gradsurgery import functional
from research.conflicts.counter import Array, upper_levels
from research.conflicts.probe import unpacked

FEW = 8  # pairs of halves; with fewer, intervals come from the kept blocks


@dataclass(frozen=True)
class Probed:
    """One stage's probe as arrays.

    Args:
        tasks, segments: their names.
        levels: effective batch size -> [R, S, 2, K, 2, K], products of left and right.
        blocks: [S, B, K, B, K], products of the kept blocks.
    """

    tasks: list[str]
    segments: list[str]
    levels: Mapping[int, Array]
    blocks: Array

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Probed:
        """From the plain values that `probe` returns."""
        tasks, segments = len(record["tasks"]), len(record["segments"])
        count, size = record["blocks"]["count"], record["batch_size"]
        blocks = unpacked(record["blocks"]["gram"], count * tasks)
        blocks = blocks.reshape(segments, count, tasks, count, tasks)
        shape = (-1, segments, 2, tasks, 2, tasks)
        below = [unpacked(rows, 2 * tasks).reshape(shape) for rows in record["levels"]]
        kept = size * record["batches"] // count  # examples in a block
        levels = {size * 2**n: grams for n, grams in enumerate(below)}
        levels |= {kept * 2**n: grams for n, grams in enumerate(upper_levels(blocks))}
        return cls(list(record["tasks"]), list(record["segments"]), levels, blocks)

    def level(self, batch: int, segment: str | None = None) -> Array:
        """[R, 2, K, 2, K] at an effective batch size; of the whole encoder if no segment."""
        grams = self.levels[batch]
        part: Array = grams.sum(1) if segment is None else grams[:, self.segments.index(segment)]
        return part

    def kept(self, segment: str | None = None) -> Array:
        """[B, K, B, K]."""
        blocks = self.blocks
        part: Array = blocks.sum(0) if segment is None else blocks[self.segments.index(segment)]
        return part


def cosines(grams: Array) -> Array:
    """All cosines of [..., 2, K, 2, K] products; NaN with a zero gradient."""
    shape = grams.shape
    size = shape[-1] * shape[-2]
    flat = grams.reshape(*shape[:-4], size, size)
    norm = np.sqrt(np.diagonal(flat, axis1=-2, axis2=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        normed: Array = (flat / (norm[..., :, None] * norm[..., None, :])).reshape(shape)
    return normed


def between(grams: Array, i: int, j: int) -> list[float]:
    """The cosine of tasks i and j in each replicate: the mean over its four pairs of batches."""
    return [float(x) for x in cosines(grams)[..., :, i, :, j].mean((-1, -2))]


def floor(grams: Array, i: int) -> list[float]:
    """The cosine of task i's left and right half in each replicate."""
    return [float(x) for x in cosines(grams)[..., 0, i, 1, i]]


def negative(grams: Array, i: int, j: int) -> float:
    """The share of batches in which tasks i and j have a negative cosine: "conflicts"."""
    return float((grams[..., :, i, :, j] < 0).mean())


def expected_products(blocks: Array) -> Array:
    """Unbiased estimates of <mu_i, mu_j>, [K, K], from the products of B blocks' sums.

    Up to a common factor. A block never meets itself: its own noise would enter.

    Args:
        blocks: [B, K, B, K].
    """
    count = blocks.shape[0]
    same_block = np.einsum("aiaj->ij", blocks)
    products: Array = (blocks.sum((0, 2)) - same_block) / (count * (count - 1))
    return (products + products.T) / 2


@dataclass(frozen=True)
class Expected:
    """The expected gradients' cosine of two tasks, or why there is none.

    >>> Expected(Interval(0.2, 0.1, 0.3, 16)).verdict
    'agree'
    >>> Expected(None).verdict
    'n/a'
    """

    cosine: Interval | None  # None: one of the expected gradients cannot be told from zero
    p: float | None = None  # that the truth is 0, adjusted for all that were judged together

    @property
    def verdict(self) -> str:
        """conflict, agree, open (the interval holds 0), or n/a."""
        if self.cosine is None or self.cosine.low is None or self.cosine.high is None:
            return "n/a"
        if self.cosine.high < 0:
            return "conflict"
        return "agree" if self.cosine.low > 0 else "open"


def length(blocks: Array, i: int) -> Interval:
    """|mu_i|^2 with its interval, up to a factor."""
    return jackknife(blocks, lambda kept: float(expected_products(kept)[i, i]))


def expected(blocks: Array, i: int, j: int) -> Expected:
    """The cosine of tasks i's and j's expected gradients, from [B, K, B, K] products, by itself."""
    single = expected_values(blocks, i, j)
    return Expected(single[0] if single else None)


def expected_values(blocks: Array, i: int, j: int) -> tuple[Interval, Array] | None:
    """The same with its pseudo-values, [B]; None where it cannot be told from zero."""
    if any((length(blocks, k).low or 0.0) <= 0 for k in (i, j)):
        return None
    return jackknifed(blocks, lambda kept: _cosine(kept, i, j, math.inf))


def cosine_at(probed: Probed, batch: int, i: int, j: int, segment: str | None = None) -> Interval:
    """The cosine of tasks i and j at an effective batch size; with i = j, the noise floor.

    Of few pairs of halves (`FEW`) no mean has an interval of any use, so there it comes from the
    products of all kept blocks, jackknifed.
    """
    grams = probed.level(batch, segment)
    if len(grams) >= FEW:
        return interval(floor(grams, i) if i == j else between(grams, i, j))
    blocks = probed.kept(segment)
    size = max(probed.levels) * 2 / len(blocks)  # examples in a block
    return jackknife(blocks, lambda kept: _cosine(kept, i, j, batch / size))


def _cosine(blocks: Array, i: int, j: int, merged: float) -> float:
    """The cosine of batches of `merged` blocks each: E <g_i, g_j> / root of E |g_i|^2 E |g_j|^2.

    With i = j the two are different batches of the same task.
    """
    products = expected_products(blocks)
    same_block = np.diagonal(np.einsum("aiaj->ij", blocks)) / len(blocks)
    squares = np.diagonal(products) + (same_block - np.diagonal(products)) / merged
    pair = squares[[i, j]]
    return float(products[i, j] / math.sqrt(pair.prod())) if pair.min() > 0 else math.nan


def jackknife(blocks: Array, statistic: Callable[[Array], float]) -> Interval:
    """The interval of a function of [B, K, B, K] products by leaving out one block at a time.

    Pseudo-values B t - (B - 1) t_(a), and Student's t over them (Tukey 1958). A bootstrap would
    draw a block twice and multiply it with itself, which is the noise this estimate avoids. No
    bounds where the function does not exist without one of the blocks.
    """
    return jackknifed(blocks, statistic)[0]


def jackknifed(blocks: Array, statistic: Callable[[Array], float]) -> tuple[Interval, Array]:
    """The interval and the pseudo-values, [B]."""
    count = blocks.shape[0]
    estimate = statistic(blocks)
    values = []
    for a in range(count):
        rest = np.delete(np.delete(blocks, a, axis=0), a, axis=2)
        values.append(count * estimate - (count - 1) * statistic(rest))
    spread = interval(values)
    half = spread.half
    if half is None or not all(math.isfinite(value) for value in values):
        return Interval(estimate, None, None, count), np.array(values)
    # Around the estimate itself: t corrects no bias here.
    around = estimate - half, estimate + half
    return Interval(estimate, *around, count, spread.error, spread.df), np.array(values)


def change(grams: Array, target: Array | None = None) -> Array:
    """|u - s| / |s| in each of [R] Gram matrices: u is the update after surgery, s the plain sum.

    PCGrad, or with targets [K, K] GradVac that aims at them. The mean of two visiting orders,
    forwards and backwards.

    Args:
        grams: [R, K, K].
        target: None for PCGrad.
    """
    gram = torch.from_numpy(np.ascontiguousarray(grams))
    tasks = gram.shape[-1]
    changes = []
    for row in (torch.arange(tasks), torch.arange(tasks - 1, -1, -1)):
        order = row.repeat(tasks, 1)
        if target is None:
            weights = functional.pcgrad(gram, order).weights
        else:
            aims = torch.from_numpy(target).expand_as(gram)
            weights = functional.gradvac(gram, order, aims, beta=0.0).weights
        off = weights - 1
        changed = torch.einsum("ri,rij,rj->r", off, gram, off).clamp(min=0)
        changes.append((changed / gram.sum((1, 2))).sqrt())
    mean: Array = torch.stack(changes).mean(0).numpy()
    return mean


def batches_of(grams: Array) -> Array:
    """Left and right of [R, 2, K, 2, K] as Gram matrices of their own, [2R, K, K]."""
    halves: Array = np.concatenate([grams[:, half, :, half, :] for half in (0, 1)])
    return halves


def usual_cosines(grams: Array) -> Array:
    """The mean cosines at one batch size, [K, K], where GradVac's targets settle."""
    means: Array = np.nan_to_num(cosines(grams).mean((0, 1, 3)))
    return means
