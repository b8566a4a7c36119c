"""Dot products on devices without float64, such as Apple's MPS: partial sums to the host, once.

    partial[c, i, j] = sum_{e in stretch c} g_i[e] g_j[e]     in float32, on the device
    G[i, j]          = sum_c partial[c, i, j]                 in float64, on the CPU

A stretch is short enough for float32; there are few thousand of them in a large model, and one copy
takes them all. Where a sum of squares may have left float32's range, the vectors are measured once
more, times a power of two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gradsurgery.kernels.layout import Group, runs

#: Elements that float32 adds up.
DEPTH = 1 << 12
#: Elements of a task in one operation: each copies its elements once.
BLOCK = 1 << 20
#: A vector is scaled by at most this power of two, which float32 holds.
STEEPEST = 126


def dots(groups: Sequence[Group], safe: tuple[float, float]) -> list[Tensor]:
    """Return the dot products of each group's k tasks, ``[k, k]`` float64 on the CPU.

    Args:
        groups: of float32, bf16 or fp16 vectors on one device.
        safe: the range of sums of squares in which float32 has lost no term.
    """
    groups = [group._replace(columns=_filled(group)) for group in groups]
    sums = _sums(groups, [None] * len(groups))
    doubtful = [
        n
        for n, (group, total) in enumerate(zip(groups, sums, strict=True))
        if group.columns and _outside(total.diagonal(), safe)
    ]
    retaken = [groups[n] for n in doubtful]
    exponents = [_exponents(group) for group in retaken]
    again = _sums(retaken, exponents)
    for n, total, scaled in zip(doubtful, again, exponents, strict=True):
        sizes = torch.tensor(scaled, dtype=torch.float64, device="cpu").exp2()
        sums[n] = total / sizes / sizes.unsqueeze(-1)
    return sums


def _filled(group: Group) -> list[list[Tensor]]:
    return [column for column in group.columns if column[0].numel()]


def _outside(squares: Tensor, safe: tuple[float, float]) -> bool:
    return not bool(((squares > safe[0]) & (squares < safe[1])).all())


def _exponents(group: Group) -> list[float]:
    """Return for each task the power of two that brings its largest element to one half."""
    peaks = torch.stack(
        [
            torch.stack([vector.abs().amax().float() for vector in vectors]).amax()
            for vectors in zip(*group.columns, strict=True)
        ]
    ).cpu()
    return [
        max(-STEEPEST, min(STEEPEST, -math.frexp(peak)[1])) if 0 < peak < math.inf else 0
        for peak in peaks.tolist()
    ]


def _sums(groups: Sequence[Group], exponents: Sequence[Sequence[float] | None]) -> list[Tensor]:
    """Return the products of each group's tasks, times two to the exponents of both."""
    parts = [
        list(_partial(runs(group.columns, DEPTH, BLOCK), scaled))
        for group, scaled in zip(groups, exponents, strict=True)
    ]
    none = torch.empty(0, dtype=torch.float32, device="cpu")
    flat = [part.flatten() for many in parts for part in many] or [none]
    host = torch.cat(flat).cpu().double()  # one copy: one wait
    sizes = [sum(part.numel() for part in many) for many in parts]
    totals = [
        values.view(len(values) // len(group.tasks) ** 2, *2 * (len(group.tasks),)).sum(0)
        for group, values in zip(groups, torch.split(host, sizes), strict=True)
    ]
    return [(total + total.mT) / 2 for total in totals]  # rounding may not make it lopsided


def _partial(
    vectors: Iterable[Sequence[Tensor]], scaled: Sequence[float] | None
) -> Iterator[Tensor]:
    """Yield the products of K vectors by stretches, ``[n, K, K]`` float32."""
    for run in vectors:
        for block in zip(*(torch.split(vector, BLOCK) for vector in run), strict=True):
            panel = torch.stack([piece.float() for piece in block])
            if scaled is not None:
                factors = torch.tensor(scaled, dtype=torch.float32, device="cpu").exp2()
                panel = panel * factors.unsqueeze(-1).to(panel.device)
            deep = F.pad(panel, (0, -panel.shape[1] % DEPTH)).view(len(panel), -1, DEPTH)
            deep = deep.transpose(0, 1)
            yield torch.bmm(deep, deep.mT)
