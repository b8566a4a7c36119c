"""The kernel implementations that share one test body. A new one is a row of ``KERNELS``."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from gradsurgery.kernels import eager, native

Grads = list[list[Tensor | None]]  # [K][P]


@dataclass(frozen=True)
class Kernel:
    """Two functions, where they run, and how much a test may ask of them."""

    name: str
    module: Any
    device: str = "cpu"
    most: int = 5_000_000  # elements of one task; an interpreter takes 50,000

    def gram(
        self, grads: Sequence[Sequence[Tensor | None]], segments: Sequence[int], count: int
    ) -> Tensor:
        return self.module.gram(list(zip(*grads, strict=True)), segments, count, len(grads))

    def combine_(
        self, grads: Sequence[Sequence[Tensor | None]], weights: Tensor, segments: Sequence[int]
    ) -> list[Tensor | None]:
        return self.module.combine_(list(zip(*grads, strict=True)), weights, segments)

    def __repr__(self) -> str:
        return self.name


def _kernels() -> list[Kernel]:
    """Triton's interpreter takes a process of its own, which test_fused.py starts."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        from gradsurgery.kernels import fused

        return [Kernel("interpreted", fused, most=50_000)]
    kernels = [Kernel("eager", eager)]
    if native.available():
        kernels.append(Kernel("native", native))
    if torch.cuda.is_available():
        from gradsurgery.kernels import fused

        kernels += [
            Kernel("eager_cuda", eager, "cuda", most=150_000_000),
            Kernel("fused", fused, "cuda", most=150_000_000),
        ]
    return kernels


KERNELS = _kernels()
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=repr)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def random(kernel: Kernel, dtype: torch.dtype, shape: Sequence[int], seed: int) -> Tensor:
    """Normal numbers, drawn in float64 on the CPU: the same for every kernel."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(kernel.device, dtype)
