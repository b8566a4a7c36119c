"""Training steps on several ranks: K tasks' gradients averaged in every way that there is.

A step has two halves. :meth:`Step.backward` makes the K forward and backward passes, and whatever
is exchanged meanwhile; :meth:`Step.finish` does the rest. What each has to send, and holds between
the halves, stands beside it as a formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import backward
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from benchmarks import steps, workloads
from gradsurgery import GradientSurgery, PCGrad

ALONE = "no averaging, loss by loss"
DDP_SUM = "DDP, sum(losses).backward()"
DDP_EACH = "DDP, loss by loss"
DDP_TASK = "pcgrad, DDP averages"
ALL_REDUCE = "pcgrad, all_reduce"
REDUCE_SCATTER = "pcgrad, reduce_scatter"
FSDP_SUM = "FSDP2, sum(losses).backward()"
FSDP_EACH = "FSDP2, loss by loss"
FSDP_TASK = "pcgrad, FSDP2"

KINDS = (
    *(ALONE, DDP_SUM, DDP_EACH, DDP_TASK, ALL_REDUCE, REDUCE_SCATTER),
    *(FSDP_SUM, FSDP_EACH, FSDP_TASK),
)

_SURGERY = (DDP_TASK, ALL_REDUCE, REDUCE_SCATTER, FSDP_TASK)
_SUM = (DDP_SUM, FSDP_SUM)


class Heads(steps.Opposed):
    """A batch per task."""

    def forward(self, task: int, tokens: Tensor) -> Tensor:
        """Return a task's loss on its own ``tokens`` ([batch, length])."""
        features = self.encoder(tokens).last_hidden_state
        loss: Tensor = (self.heads[task](features.mean(1)) - 1).square().mean()
        return loss


class Step:
    """A training step of one kind, with an optimizer of its own.

    Args:
        kind: one of :data:`KINDS`.
        model: perhaps inside DDP, or sharded.
        batches: tokens by task.
    """

    def __init__(self, kind: str, model: nn.Module, batches: Sequence[Tensor]) -> None:
        self._kind, self._model, self._batches = kind, model, batches
        self._names = [f"task {k}" for k in range(len(batches))]
        self._optimizer = steps.adamw(model)
        if kind in _SURGERY:
            self._optimizer = _wrapped(kind, self._optimizer, self._names)

    def backward(self) -> None:
        """Run the forward and backward passes."""
        if self._kind in _SUM:
            losses = [self._model(k, tokens) for k, tokens in enumerate(self._batches)]
            backward(torch.stack(losses).sum())
            return
        for k, tokens in enumerate(self._batches):
            with self._capturing(k):
                backward(self._model(k, tokens))

    def finish(self) -> None:
        """Combine, and update the weights."""
        if isinstance(self._optimizer, GradientSurgery):
            self._optimizer.combine()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def whole(self) -> None:
        """Run both halves."""
        self.backward()
        self.finish()

    def _capturing(self, k: int) -> AbstractContextManager[None]:
        if isinstance(self._optimizer, GradientSurgery):
            return self._optimizer.task(self._names[k])
        return nullcontext()


def _wrapped(kind: str, base: torch.optim.Optimizer, names: Sequence[str]) -> GradientSurgery:
    if kind in (ALL_REDUCE, REDUCE_SCATTER):
        exchange = "all_reduce" if kind == ALL_REDUCE else "reduce_scatter"
        group = dist.group.WORLD
        return GradientSurgery(base, PCGrad(), tasks=names, process_group=group, exchange=exchange)
    return GradientSurgery(base, PCGrad(), tasks=names)


def build(size: steps.Size, tasks: int, device: torch.device) -> dict[str, Step]:
    """Build all kinds on this rank: the same model, this rank's batches."""
    vocabulary = workloads.ENCODERS[size.encoder].get("vocab_size", 30522)
    own = torch.Generator().manual_seed(dist.get_rank())
    shape = (tasks, size.batch, size.length)
    batches = list(torch.randint(0, vocabulary, shape, generator=own).to(device))

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return Heads(size.encoder, tasks).to(device)

    # DDP's hooks stay on the parameters, so each has a model of its own.
    bare, summed, apart = fresh(), DistributedDataParallel(fresh()), _unused(fresh())
    sharded = _sharded(fresh(), device)
    models = dict.fromkeys((ALONE, ALL_REDUCE, REDUCE_SCATTER), bare)
    models |= dict.fromkeys((DDP_EACH, DDP_TASK), apart)
    models |= dict.fromkeys((FSDP_SUM, FSDP_EACH, FSDP_TASK), sharded)
    models[DDP_SUM] = summed
    torch.manual_seed(1 + dist.get_rank())  # dropout is each rank's own
    return {kind: Step(kind, models[kind], batches) for kind in KINDS}


def _unused(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, find_unused_parameters=True)


def _sharded(model: nn.Module, device: torch.device) -> nn.Module:
    """Shard each layer by itself, and the rest (embeddings, heads) as another group."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in model.encoder.encoder.layer:  # type: ignore[union-attr]
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


class Amounts(NamedTuple):
    """Elements of a step, by formula.

    Attributes:
        reduced: sent by each rank in all-reduces and in all-gathers.
        scattered: sent in reduce-scatters.
        held: gradients that each rank holds when the last backward is done.
    """

    reduced: float
    scattered: float
    held: float

    def sent(self, scatters_as_all_reduce: bool = False) -> float:
        """Return the elements that each rank sends, or does where a reduce-scatter costs double."""
        return self.reduced + self.scattered * (1 + scatters_as_all_reduce)


def amounts(kind: str, tasks: int, elements: int, layered: int, world: int) -> Amounts:
    """Return what a step of one kind sends and holds.

    Args:
        kind: one of :data:`KINDS`.
        tasks: K.
        elements: N, of the model.
        layered: those in layers that FSDP2 gathers again for each backward.
        world: W.
    """
    k, n, share = tasks, elements, (world - 1) / world
    gathers = 2 * k * layered + k * (n - layered)  # what is left is kept from forward to backward
    table: dict[str, Callable[[], Amounts]] = {
        ALONE: lambda: Amounts(0, 0, n),
        DDP_SUM: lambda: Amounts(2 * n * share, 0, n),
        DDP_EACH: lambda: Amounts(2 * k * n * share, 0, n),
        DDP_TASK: lambda: Amounts(2 * k * n * share, 0, k * n),
        ALL_REDUCE: lambda: Amounts(2 * k * n * share, 0, k * n),
        REDUCE_SCATTER: lambda: Amounts(n * share, k * n * share, k * n / world + n),
        FSDP_SUM: lambda: Amounts(
            (gathers - (k - 1) * (n - layered)) * share, n * share, n / world
        ),
        FSDP_EACH: lambda: Amounts(gathers * share, k * n * share, n / world),
        FSDP_TASK: lambda: Amounts(gathers * share, k * n * share, k * n / world),
    }
    return table[kind]()
