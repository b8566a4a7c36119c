"""Address tables: where gradients lie and how they are cut, so that one launch walks all tensors.

An *address table* ``[K, P]`` says where each task's gradient of each parameter starts (0 where it
is absent), and a *chunk table* ``[C, 4]`` which stretch of which parameter each program takes,
sorted by segment. Chunks depend on shapes and segments, which do not change, addresses on what the
allocator gave, which settles after a few steps: both are kept, and sent only when they are new.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradsurgery.kernels.layout import Columns, walked
from gradsurgery.transfer import to_device

#: Elements of a parameter that one program takes.
CHUNK = 1 << 14

#: Vector loads need addresses that are multiples of this many bytes.
ALIGNMENT = 16

#: Tables that are kept of each kind; those not used for longest go.
KEPT = 64


class Table(NamedTuple):
    """Parameters of one dtype and alignment.

    Attributes:
        dtype: of the gradients, a real one.
        aligned: whether all addresses are multiples of ``ALIGNMENT``.
        addresses: ``[K, P]`` int64 on the device.
        chunks: ``[C, 4]`` int64 on the device: parameter, start, length, segment.
        first: ``[S + 1]`` int64 on the device: the first chunk of each segment, and C.
        kept: tensors that have to outlive the launches, copies that the addresses point to.
    """

    dtype: torch.dtype
    aligned: bool
    addresses: Tensor
    chunks: Tensor
    first: Tensor
    kept: list[Tensor]


def tables(columns: Columns, segments: Sequence[int], count: int) -> list[Table]:
    """Return the tables of all parameters, one per dtype and alignment.

    Args:
        columns: ``[P][K]``; those of one parameter have one shape and dtype.
        segments: the segment of each parameter.
        count: the number of segments S.

    Raises:
        ValueError: when the gradients lie on several devices.
    """
    # All of this runs at every step, on K P tensors: plain lists, and nothing twice.
    present = [grad for column in columns for grad in column if grad is not None]
    key = (_identity(columns, present), tuple(segments), count)
    plain = walked_as_they_are(present)
    if plain and key in _known:
        _known.move_to_end(key)
        return _known[key]
    devices = {grad.device for grad in present}
    if len(devices) > 1:
        raise ValueError(f"gradients on several devices: {', '.join(sorted(map(str, devices)))}")
    built = _built(columns, segments, count, *devices) if devices else []
    if plain:
        _keep(_known, key, built)
    return built


def walked_as_they_are(tensors: Sequence[Tensor]) -> bool:
    """Whether the memory of all of them can be walked from its start, as it nearly always can."""
    return False not in [tensor.is_contiguous() for tensor in tensors] and not any(
        dtype.is_complex for dtype in {tensor.dtype for tensor in tensors}
    )


def _identity(columns: Columns, present: Sequence[Tensor]) -> tuple[object, ...]:
    """Return what tells gradients from all others, as far as their tables go."""
    return (
        present[0].device if present else None,
        len(columns[0]) if columns else 0,
        tuple([grad is None for column in columns for grad in column]),
        tuple([grad.data_ptr() for grad in present]),
        tuple([grad.numel() for grad in present]),
        tuple([grad.dtype for grad in present]),
    )


def _built(
    columns: Columns, segments: Sequence[int], count: int, device: torch.device
) -> list[Table]:
    """Return the tables of ``columns`` ([P][K]), from what is kept or sent now."""
    by_kind: dict[tuple[torch.dtype, bool], _Parts] = {}
    for column, segment in zip(columns, segments, strict=True):
        present = [grad for grad in column if grad is not None]
        if not present or not present[0].numel():
            continue
        flat, copies = _flat(present)
        starts = iter([grad.data_ptr() for grad in flat])
        where = [0 if grad is None else next(starts) for grad in column]
        key = (flat[0].dtype, not any(address % ALIGNMENT for address in where))
        parts = by_kind.setdefault(key, _Parts([], [], [], []))
        parts.sizes.append(flat[0].numel())
        parts.homes.append(segment)
        parts.addresses.extend(where)
        parts.kept.extend(copies)
    return [Table(*key, *_sent(parts, count, device), parts.kept) for key, parts in by_kind.items()]


class _Parts(NamedTuple):
    """What a table is made of: sizes and segments of P parameters, P x K addresses, copies."""

    sizes: list[int]
    homes: list[int]
    addresses: list[int]
    kept: list[Tensor]


def _flat(present: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return tensors whose memory can be walked in one order, and those that are copies."""
    if walked_as_they_are(present):
        return present, []
    flat = walked(present)
    return flat, flat


def _sent(parts: _Parts, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return addresses, chunks and first chunks on the device, copied there unless kept."""
    addresses, sizes, homes = map(tuple, (parts.addresses, parts.sizes, parts.homes))
    return (
        _kept(device, ("addresses", addresses), lambda: _addresses(addresses, len(sizes))),
        _kept(device, ("chunks", sizes, homes), lambda: _chunks(sizes, homes)),
        _kept(device, ("first", sizes, homes, count), lambda: _first(sizes, homes, count)),
    )


def _addresses(addresses: Sequence[int], parameters: int) -> Tensor:
    table = torch.tensor(addresses, dtype=torch.int64, device="cpu")
    return table.view(parameters, -1).t().contiguous()


def _chunks(sizes: Sequence[int], homes: Sequence[int]) -> Tensor:
    rows = [
        (p, start, min(CHUNK, sizes[p] - start), homes[p])
        for p in sorted(range(len(sizes)), key=homes.__getitem__)
        for start in range(0, sizes[p], CHUNK)
    ]
    return torch.tensor(rows, dtype=torch.int64, device="cpu")


def _first(sizes: Sequence[int], homes: Sequence[int], count: int) -> Tensor:
    per_segment = torch.zeros(count + 1, dtype=torch.int64, device="cpu")
    for size, home in zip(sizes, homes, strict=True):
        per_segment[home + 1] += -(-size // CHUNK)
    return per_segment.cumsum(0)


_known: OrderedDict[Any, list[Table]] = OrderedDict()
_cache: OrderedDict[Any, Tensor] = OrderedDict()


def _keep(cache: OrderedDict[Any, Any], key: object, value: object) -> None:
    """Add an entry; the one not used for longest goes."""
    cache[key] = value
    if len(cache) > KEPT:
        cache.popitem(last=False)


def _kept(device: torch.device, key: tuple[Any, ...], build: Callable[[], Tensor]) -> Tensor:
    """Return the table for ``key`` on the device, built and copied there if it is not kept."""
    entry = (device, *key)
    if entry not in _cache:
        _keep(_cache, entry, to_device(build(), device))
    _cache.move_to_end(entry)
    return _cache[entry]
