"""What is measured: lists of gradients shaped like real encoders, and one with thousands of crumbs.

Shapes and names are those of ``transformers.BertModel``, read off the meta device; values are
random. Parameters that only carry a ``.grad`` are one expanded scalar each, and take no memory.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: What BertConfig is given. The embedding tables (30522 x hidden) are the default's.
ENCODERS: dict[str, dict[str, int]] = {
    "mini": {  # for smoke runs
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 100,
        "max_position_embeddings": 32,
    },
    "minilm": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "bert-base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "bert-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}

#: Lists of vectors of 1 to 64 elements, where calls cost more than bytes.
CRUMBS = {"100 tiny tensors": 100, "10000 tiny tensors": 10_000}

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}

Gradients = list[list[Tensor]]  # [K][P]


class Workload(NamedTuple):
    """The parameters of a model, without their values."""

    name: str
    names: list[str]
    shapes: list[torch.Size]

    @property
    def elements(self) -> int:
        """N."""
        return sum(shape.numel() for shape in self.shapes)


def workload(name: str) -> Workload:
    """Return the workload called ``name``, of :data:`ENCODERS` or :data:`CRUMBS`."""
    if name in CRUMBS:
        shapes = [torch.Size([1 + (37 * i) % 64]) for i in range(CRUMBS[name])]
        names = [f"layer.{i // 100}.tensor_{i}" for i in range(len(shapes))]
        return Workload(name, names, shapes)
    with torch.device("meta"):
        named = list(encoder(name).named_parameters())
    return Workload(name, [n for n, _ in named], [p.shape for _, p in named])


def encoder(name: str, dropout: float = 0.1) -> Any:
    """Return a ``BertModel`` without pooler, untrained."""
    from transformers import BertConfig, BertModel  # slow to import, and gradients need no model

    config: dict[str, Any] = {
        **ENCODERS[name],
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    return BertModel(BertConfig(**config), add_pooling_layer=False)


def sliced(elements: int, size: int) -> Workload:
    """Return a workload of exactly ``elements``, in vectors of ``size`` and a rest."""
    shapes = [torch.Size([size])] * (elements // size)
    rest = elements % size
    shapes += [torch.Size([rest])] if rest else []
    return Workload(f"{elements} elements", [f"slice.{i}" for i in range(len(shapes))], shapes)


def gradients(
    shapes: Sequence[torch.Size],
    tasks: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    cosines: Tensor | None = None,
) -> Gradients:
    """Return random gradients of K tasks.

    Args:
        shapes: one per parameter.
        tasks: K.
        device: where.
        dtype: of the gradients.
        cosines: ``[K, K]``, the gradients' cosines (up to chance); None for independent gradients.
    """
    noise = _Noise(device)
    grads = [[noise.take(shape, dtype) for shape in shapes] for _ in range(tasks)]
    if cosines is not None:
        _correlate_(grads, cosines)
    return grads


class _Noise:
    """Normal numbers, copied from windows of one block: drawing billions would take minutes."""

    def __init__(self, device: torch.device, size: int = 1 << 22) -> None:
        source = torch.Generator(device).manual_seed(0)
        block = torch.randn(size, generator=source, device=device)
        self._size, self._twice = size, torch.cat([block, block])  # every window of one size fits
        self._starts = random.Random(0)

    def take(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(shape, device=self._twice.device, dtype=dtype)
        for piece in torch.split(tensor.view(-1), self._size):
            start = self._starts.randrange(self._size)
            piece.copy_(self._twice[start : start + piece.numel()])
        return tensor


def _correlate_(grads: Gradients, cosines: Tensor) -> None:
    """Give independent gradients the wanted cosines: gradient i becomes sum_j L_ij g_j, j <= i."""
    factor = torch.linalg.cholesky(cosines.double()).tolist()
    for column in zip(*grads, strict=True):
        for i in reversed(range(len(column))):  # downwards: row i needs the g_j before it untouched
            column[i].mul_(factor[i][i])
            for j in range(i):
                column[i].add_(column[j], alpha=factor[i][j])


def conflict_cosines(tasks: int, conflicts: str) -> Tensor:
    """Return ``[K, K]`` cosines in which ``"one"`` pair of tasks conflicts, or ``"all"`` do."""
    low, high = -0.3, 0.1
    cosines = torch.full((tasks, tasks), -0.6 / tasks if conflicts == "all" else high)
    if conflicts == "one":
        cosines[0, 1] = cosines[1, 0] = low
    return cosines.fill_diagonal_(1.0)


def bearers(
    work: Workload, device: torch.device, dtype: torch.dtype = torch.float32
) -> list[tuple[str, nn.Parameter]]:
    """Return named parameters that can bear gradients, without memory of their own."""
    scalar = torch.zeros((), device=device, dtype=dtype)
    named = zip(work.names, work.shapes, strict=True)
    return [(name, nn.Parameter(scalar.expand(shape))) for name, shape in named]


def free_bytes(device: torch.device) -> int:
    """Return the memory that can still be taken, once what is no longer used is given back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in meminfo if line.startswith("MemAvailable"))
