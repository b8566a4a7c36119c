"""The Triton programs of the two passes; :mod:`gradsurgery.kernels.fused` launches them.

    pairs, panel:  partial[c, i, j] = sum_{e in chunk c} g_i[e] g_j[e]       for few tasks, for many
    reduce:        G[s, i, j] += sum_{c in segment s} partial[c, i, j]
    combine:       g[e] <- sum_k w[s, k] g_k[e]

A gradient is a raw address, 0 where it is absent: then its length is 0, and its loads are masked.
Loads are vectors of 16 bytes where lengths and addresses are known multiples of 16; what is left
over of a chunk, at most 15 elements, is loaded one by one.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from gradsurgery.kernels.eager import ORDINARY, SAFE

LOW = tl.constexpr(SAFE[0])
HIGH = tl.constexpr(SAFE[1])
SMALL = tl.constexpr(ORDINARY[0])
LARGE = tl.constexpr(ORDINARY[1])


@triton.jit
def _chunk(chunks):
    """This program's chunk: its number, parameter, start, length and segment."""
    chunk = tl.program_id(0)
    row = chunks + 4 * chunk
    start = tl.multiple_of(tl.load(row + 1), 16)
    length = tl.load(row + 2).to(tl.int32)
    return chunk.to(tl.int64), tl.load(row), start, length, tl.load(row + 3)


@triton.jit
def _rows(
    addresses, p, start, length, P, K: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr
):
    """The K gradients' pointers to a chunk, and how many elements each has there (0 if absent)."""
    pointers = ()
    lengths = ()
    for k in tl.static_range(K):
        address = tl.load(addresses + k * P + p)
        pointer = address.to(tl.pointer_type(DTYPE))
        if ALIGNED:
            pointer = tl.multiple_of(pointer, 16)
        pointers = pointers + (pointer + start,)
        lengths = lengths + (tl.where(address != 0, length, 0),)
    return pointers, lengths


@triton.jit
def _add_products(
    sums,
    peaks,
    pointers,
    lengths,
    at,
    K: tl.constexpr,
    ACC: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the products of one block to the lanes' sums; ``VECTOR``: lengths are multiples of 16."""
    offsets = at + tl.arange(0, BLOCK)
    rows = ()
    highest = ()
    for k in tl.static_range(K):
        length = lengths[k]
        if VECTOR:
            length = tl.multiple_of(length, 16)
        row = tl.load(pointers[k] + offsets, mask=offsets < length, other=0.0).to(ACC)
        rows = rows + (row,)
        highest = highest + (tl.maximum(peaks[k], tl.abs(row)),)
    added = ()
    for i in tl.static_range(K):
        for j in tl.static_range(i, K):
            added = added + (sums[len(added)] + rows[i] * rows[j],)
    return added, highest


@triton.jit
def _chunk_products(
    pointers, lengths, length, K: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """The K (K + 1) / 2 products of a chunk, added up in float64, and the largest elements."""
    sums = ()
    peaks = ()
    whole = ()
    for _ in tl.static_range(K * (K + 1) // 2):
        sums = sums + (tl.zeros([BLOCK], ACC),)
    for k in tl.static_range(K):
        peaks = peaks + (tl.zeros([BLOCK], ACC),)
        whole = whole + (lengths[k] // 16 * 16,)
    even = length // 16 * 16
    for at in range(0, even, BLOCK):
        sums, peaks = _add_products(sums, peaks, pointers, whole, at, K, ACC, True, BLOCK)
    if even < length:
        sums, peaks = _add_products(sums, peaks, pointers, lengths, even, K, ACC, False, BLOCK)
    totals = ()
    tops = ()
    for n in tl.static_range(K * (K + 1) // 2):
        totals = totals + (tl.sum(sums[n].to(tl.float64)),)
    for k in tl.static_range(K):
        tops = tops + (tl.max(peaks[k]),)
    return totals, tops


@triton.jit
def pairs(
    addresses,
    chunks,
    partial,
    P,
    K: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Few tasks: ``partial[c, pair]`` for the pairs i <= j."""
    chunk, p, start, length, _ = _chunk(chunks)
    pointers, lengths = _rows(addresses, p, start, length, P, K, DTYPE, ALIGNED)
    ACC: tl.constexpr = tl.float64 if tl.float64 == DTYPE else tl.float32
    PAIRS: tl.constexpr = K * (K + 1) // 2
    out = partial + chunk * PAIRS
    totals, tops = _chunk_products(pointers, lengths, length, K, ACC, BLOCK)
    for n in tl.static_range(PAIRS):
        tl.store(out + n, totals[n])
    if tl.float32 == ACC:
        # A sum of squares of zero is fine if all elements are zero; NaN fails every comparison.
        doubtful = False
        for k in tl.static_range(K):
            square = totals[k * K - k * (k - 1) // 2]
            fine = ((square > LOW) & (square < HIGH)) | (tops[k] == 0)
            doubtful = doubtful | (not fine)
        if doubtful:
            exact, _tops = _chunk_products(pointers, lengths, length, K, tl.float64, 128)
            for n in tl.static_range(PAIRS):
                tl.store(out + n, exact[n])


@triton.jit
def _exact_panel(
    addresses,
    p,
    start,
    length,
    rows,
    known,
    P,
    K: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A chunk's products of all pairs in float64, row by row; slow, and rarely wanted."""
    pointers = known.to(tl.pointer_type(DTYPE))[:, None] + start
    lengths = tl.where(known != 0, length, 0)[:, None]
    total = tl.zeros([ROWS, ROWS], tl.float64)
    for at in range(0, length, BLOCK):
        offsets = at + tl.arange(0, BLOCK)
        tile = tl.load(pointers + offsets[None, :], mask=offsets[None, :] < lengths, other=0.0)
        for i in range(K):
            address = tl.load(addresses + i * P + p)
            inside = offsets < tl.where(address != 0, length, 0)
            row = tl.load(
                address.to(tl.pointer_type(DTYPE)) + start + offsets, mask=inside, other=0.0
            )
            column = tl.sum(tile.to(tl.float64) * row.to(tl.float64)[None, :], axis=1)
            total += tl.where(rows[None, :] == i, column[:, None], 0.0)
    return total


@triton.jit
def _add_tile(total, top, pointers, lengths, at, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    """Add one block's products of all pairs, and keep the largest elements."""
    offsets = at + tl.arange(0, BLOCK)[None, :]
    tile = tl.load(pointers + offsets, mask=offsets < lengths, other=0.0).to(tl.float32)
    products = tl.dot(tile, tl.trans(tile), input_precision=PRECISION)
    return total + products.to(tl.float64), tl.maximum(top, tl.abs(tile))


@triton.jit
def panel(
    addresses,
    chunks,
    partial,
    P,
    K: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Many tasks: ``partial[c, i, j]`` for all i, j, on the matrix units."""
    chunk, p, start, length, _ = _chunk(chunks)
    rows = tl.arange(0, ROWS)
    known = tl.load(addresses + rows * P + p, mask=rows < K, other=0)
    if ALIGNED:
        known = tl.multiple_of(known, 16)
    total = tl.zeros([ROWS, ROWS], tl.float64)
    top = tl.zeros([ROWS, BLOCK], tl.float32)
    # bf16 and fp16 fit into tf32 as they are; float32 takes three products.
    PRECISION: tl.constexpr = "tf32x3" if tl.float32 == DTYPE else "tf32"
    if tl.float64 != DTYPE:
        pointers = known.to(tl.pointer_type(DTYPE))[:, None]
        if ALIGNED:
            pointers = tl.multiple_of(pointers, [16, 16])
        pointers += start
        even = length // 16 * 16
        whole = tl.multiple_of(tl.where(known != 0, even, 0), 16)[:, None]
        for at in range(0, even, BLOCK):
            total, top = _add_tile(total, top, pointers, whole, at, PRECISION, BLOCK)
        if even < length:
            some = tl.where(known != 0, length, 0)[:, None]
            total, top = _add_tile(total, top, pointers, some, even, PRECISION, BLOCK)
    same = rows[:, None] == rows[None, :]
    square = tl.sum(tl.where(same, total, 0.0), axis=1)
    fine = ((square > LOW) & (square < HIGH)) | (tl.max(top, axis=1) == 0)
    if (tl.float64 == DTYPE) | (tl.min(fine.to(tl.int32), axis=0) == 0):
        total = _exact_panel(addresses, p, start, length, rows, known, P, K, DTYPE, ROWS, BLOCK)
    cells = partial + chunk * K * K + rows[:, None] * K + rows[None, :]
    tl.store(cells, total, mask=(rows[:, None] < K) & (rows[None, :] < K))


@triton.jit
def reduce(
    partial,
    first,
    cells,
    gram,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Add a segment's chunks up in their order, onto ``gram[s, i, j]`` and ``gram[s, j, i]``."""
    segment = tl.program_id(0)
    start = tl.load(first + segment)
    stop = tl.load(first + segment + 1)
    pair = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pair < PAIRS
    cell = tl.load(cells + pair, mask=inside, other=0)
    i = tl.load(cells + PAIRS + pair, mask=inside, other=0)
    j = tl.load(cells + 2 * PAIRS + pair, mask=inside, other=0)
    sums = tl.zeros([ROWS, BLOCK], tl.float64)
    for at in range(start, stop, ROWS):
        row = at + tl.arange(0, ROWS)
        mask = (row < stop)[:, None] & inside[None, :]
        sums += tl.load(partial + row[:, None] * WIDTH + cell[None, :], mask=mask, other=0.0)
    into = gram + segment.to(tl.int64) * K * K
    total = tl.sum(sums, axis=0) + tl.load(into + i * K + j, mask=inside, other=0.0)
    tl.store(into + i * K + j, total, mask=inside)
    tl.store(into + j * K + i, total, mask=inside)


@triton.jit
def _excess(weight):
    """The power of two by which a weight leaves what float32 can multiply with; mostly 1."""
    size = tl.minimum(tl.abs(weight), 2 * LARGE).to(tl.float32)
    return tl.where(size > LARGE, LARGE, tl.where(size < SMALL, SMALL, 1.0))


@triton.jit
def _weighted(
    addresses,
    weights,
    p,
    start,
    at,
    length,
    P,
    K: tl.constexpr,
    DTYPE: tl.constexpr,
    ACC: tl.constexpr,
    ALIGNED: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write one block's weighted sum into the first gradient there is."""
    offsets = at + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], ACC)
    into = tl.zeros([], tl.int64)
    for k in range(K):
        address = tl.load(addresses + k * P + p)
        into = tl.where(into == 0, address, into)
        pointer = address.to(tl.pointer_type(DTYPE))
        here = tl.where(address != 0, length, 0)
        if ALIGNED:
            pointer = tl.multiple_of(pointer, 16)
        if VECTOR:
            here = tl.multiple_of(here, 16)
        row = tl.load(pointer + start + offsets, mask=offsets < here, other=0.0).to(ACC)
        weight = tl.load(weights + k)
        if tl.float32 == ACC:
            # Powers of two go to the gradient, twice if need be: exact, down to subnormal numbers.
            for _ in tl.static_range(2):
                excess = _excess(weight)
                weight *= (1.0 / excess).to(tl.float64)
                row *= excess
        weight = weight.to(ACC)
        # What is absent has no weight, whatever it is: it might be infinite.
        total += tl.where(address != 0, weight, 0.0) * row
    pointer = into.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    if VECTOR:
        length = tl.multiple_of(length, 16)
    tl.store(pointer + start + offsets, total.to(DTYPE), mask=offsets < length)


@triton.jit
def combine(
    addresses,
    chunks,
    weights,
    P,
    K: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The weighted sum of a chunk, in place, accumulated in float32 or float64, rounded once."""
    _, p, start, length, segment = _chunk(chunks)
    mine = weights + segment * K
    ACC: tl.constexpr = tl.float64 if tl.float64 == DTYPE else tl.float32
    even = length // 16 * 16
    for at in range(0, even, BLOCK):
        _weighted(addresses, mine, p, start, at, even, P, K, DTYPE, ACC, ALIGNED, True, BLOCK)
    if even < length:
        _weighted(addresses, mine, p, start, even, length, P, K, DTYPE, ACC, ALIGNED, False, BLOCK)
