"""The two functions that touch gradients: ``gram`` reads them once, ``combine_`` writes them once.

Everything device-specific lives behind these two. :mod:`gradsurgery.kernels.eager` is the
definition of correct and runs everywhere. On the CPU with a C compiler
:mod:`gradsurgery.kernels.native` takes its place, on a GPU with triton
:mod:`gradsurgery.kernels.fused`: both walk tables of addresses, and pass the same tests.
The environment variable ``GRADSURGERY_KERNELS`` (``auto``, ``eager``, ``fused``) overrides the
choice; ``GRADSURGERY_NATIVE=0`` does without C.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from gradsurgery.kernels import eager, native
from gradsurgery.kernels.layout import Column, Columns

__all__ = ["Column", "Columns", "combine_", "fused_on", "gram"]

#: The most tasks that the fused kernels are made for. More of them are taken by the eager ones.
MOST_TASKS = 64

CHOICES = ("auto", "eager", "fused")
OLDEST_TRITON = (3, 3)


def gram(columns: Columns, segments: Sequence[int], count: int, tasks: int) -> Tensor:
    """Return ``[S, K, K]`` float64, see :func:`gradsurgery.kernels.eager.gram`."""
    products: Tensor = _implementation(columns, tasks).gram(columns, segments, count, tasks)
    return products


def combine_(columns: Columns, weights: Tensor, segments: Sequence[int]) -> list[Tensor | None]:
    """Combine in place, see :func:`gradsurgery.kernels.eager.combine_`."""
    implementation = _implementation(columns, weights.shape[-1])
    sums: list[Tensor | None] = implementation.combine_(columns, weights, segments)
    return sums


def fused_on(device: torch.device, tasks: int) -> bool:
    """Whether the fused kernels serve. Then nothing needs to wait for the host.

    Args:
        device: of the gradients.
        tasks: K.

    Raises:
        ValueError: when ``GRADSURGERY_KERNELS`` is none of its values.
    """
    choice = _choice()
    automatic = choice == "auto" and device.type == "cuda" and _has_triton()
    return (automatic or choice == "fused") and tasks <= MOST_TASKS


def _choice() -> str:
    choice = os.environ.get("GRADSURGERY_KERNELS", "auto")
    if choice not in CHOICES:
        raise ValueError(f"GRADSURGERY_KERNELS is one of {', '.join(CHOICES)}, not {choice!r}")
    return choice


def _implementation(columns: Columns, tasks: int) -> ModuleType:
    present = next((grad for column in columns for grad in column if grad is not None), None)
    if present is None:
        return eager
    if fused_on(present.device, tasks):
        from gradsurgery.kernels import fused

        return fused
    return native if present.is_cpu and _choice() == "auto" and native.available() else eager


@functools.cache
def _has_triton() -> bool:
    """Whether a triton is there that knows the tuples which the programs are written with."""
    if importlib.util.find_spec("triton") is None:
        return False
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) >= OLDEST_TRITON
