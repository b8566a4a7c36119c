"""The two passes in C, on the CPU: one call each over all tensors, dtypes and segments.

``native.c`` walks a table of the addresses at which autograd left the gradients, on torch's own
threads, which share elements and not tensors. For one number of threads the bits repeat.

The table is collected at each pass: addresses change from step to step, and reading them costs
what asking would whether they did. That is Python, so the K gradients of a parameter are asked only
for what may differ among them: address and strides. What cannot be walked in one order of memory,
and complex gradients, go to :mod:`gradsurgery.kernels.eager`, the definition of correct.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from gradsurgery.kernels import compiled, eager
from gradsurgery.kernels.layout import Columns, same_walk

#: What ``native.c`` reads, and the numbers it knows them by.
KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

#: Bytes that are worth a thread: handing them over costs what some ten thousand elements do.
SHARE = 1 << 20

#: A gradient that is not contiguous, and one that ``native.c`` does not read.
_ELSEWHERE, _UNKNOWN = -1, 255

available = compiled.available


@torch.no_grad()
def gram(columns: Columns, segments: Sequence[int], count: int, tasks: int) -> Tensor:
    """Return ``[S, K, K]`` float64, see :func:`gradsurgery.kernels.eager.gram`.

    Raises:
        IndexError: for a segment outside of ``range(count)``.
        MemoryError: when K^2 numbers per thread find no room.
    """
    result = torch.zeros(count, tasks, tasks, dtype=torch.float64, device="cpu")
    others = _walk("gram", columns, segments, _firsts(columns), result)
    if others:
        result += eager.gram(*_taken(others, columns, segments), count, tasks)
    return result


@torch.no_grad()
def combine_(columns: Columns, weights: Tensor, segments: Sequence[int]) -> list[Tensor | None]:
    """Combine in place, see :func:`gradsurgery.kernels.eager.combine_`.

    Raises:
        IndexError: for a segment without weights.
        MemoryError: when K numbers per thread find no room.
    """
    combined = _firsts(columns)
    weights = weights.to("cpu", torch.float64).contiguous()
    others = _walk("combine", columns, segments, combined, weights)
    if others:
        some, homes = _taken(others, columns, segments)
        eager.combine_(some, weights, homes)
    increment_version([grad for grad in combined if grad is not None])  # as torch's operators do
    return combined


def _walk(
    name: str,
    columns: Columns,
    segments: Sequence[int],
    firsts: Sequence[Tensor | None],
    numbers: Tensor,
) -> list[int]:
    """Call a function of the library, and return the parameters that it has to leave to others.

    Args:
        name: of the function.
        columns: ``[P][K]``.
        segments: the segment of each parameter.
        firsts: the first gradient of each parameter, None where it has none.
        numbers: ``[S, K, ...]`` float64, its last argument.
    """
    # Each look at a tensor that has left the cache costs more than the next ones: all at once.
    addresses = [
        0 if grad is None else grad.data_ptr() if grad.is_contiguous() else _ELSEWHERE
        for column in columns
        for grad in column
    ]
    kinds = [
        _UNKNOWN if grad is None or not grad.is_cpu else KINDS.get(grad.dtype, _UNKNOWN)
        for grad in firsts
    ]
    if _ELSEWHERE in addresses or _UNKNOWN in kinds:
        others = [p for p, column in enumerate(columns) if not _fits(column)]
        if others:
            rest = sorted(set(range(len(columns))) - set(others))
            _walk(name, *_taken(rest, columns, segments), [firsts[p] for p in rest], numbers)
            return others
        addresses = [
            0 if grad is None else grad.data_ptr() for column in columns for grad in column
        ]
    sizes = [grad.numel() for grad in firsts if grad is not None]
    _call(name, addresses, sizes, segments, bytes(kinds), numbers)
    return []


def _call(
    name: str,
    addresses: Sequence[int],
    sizes: Sequence[int],
    segments: Sequence[int],
    kinds: bytes,
    numbers: Tensor,
) -> None:
    """Call a function of the library on a table: addresses ``[P x K]``, the rest ``[P]``."""
    count, tasks = numbers.shape[:2]
    tables = (array("q", addresses), array("q", sizes), array("q", segments))
    failed = getattr(compiled.library(), name)(
        ctypes.c_int64(len(sizes)),
        ctypes.c_int64(tasks),
        *(ctypes.c_void_p(table.buffer_info()[0]) for table in tables),
        kinds,
        ctypes.c_int64(count),
        torch.get_num_threads(),
        ctypes.c_int64(SHARE),
        ctypes.c_void_p(numbers.data_ptr()),
    )
    if failed:
        low, high = min(segments, default=0), max(segments, default=0)
        raise (
            MemoryError(f"no room to work on the gradients of {tasks} tasks")
            if failed == 1
            else IndexError(f"segments go from 0 to {count - 1}, found {low} to {high}")
        )


def _firsts(columns: Columns) -> list[Tensor | None]:
    """Return the first gradient of each parameter."""
    return [
        column[0]
        if len(column) and column[0] is not None
        else next((grad for grad in column if grad is not None), None)
        for column in columns
    ]


def _fits(column: Sequence[Tensor | None]) -> bool:
    """Whether ``native.c`` can walk a parameter's gradients as they lie."""
    present = [grad for grad in column if grad is not None]
    return (
        len(present) > 0 and present[0].is_cpu and present[0].dtype in KINDS and same_walk(present)
    )


def _taken(
    numbers: Sequence[int], columns: Columns, segments: Sequence[int]
) -> tuple[Columns, list[int]]:
    """Return some parameters' columns and segments."""
    return [columns[p] for p in numbers], [segments[p] for p in numbers]
