"""Training steps on several ranks: K tasks' gradients averaged in every available way.

The first half of a step makes the K forward and backward passes, and whatever is exchanged
meanwhile; the second does the rest. What each has to send, and holds between the halves, stands
beside it as a formula.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from benchmarks.problems.gradients import task_names
from benchmarks.problems.multitask import MultiTask, Problem, Size, batches
from benchmarks.steps.step import EACH, SUM, TASK, Step, adamw, own_step, wrapped

ALONE = "no averaging, loss by loss"
DDP_SUM = "DDP, sum(losses).backward()"
DDP_EACH = "DDP, loss by loss"
DDP_TASK = "pcgrad, DDP averages"
ALL_REDUCE = "pcgrad, all_reduce"
FSDP_SUM = "FSDP2, sum(losses).backward()"
FSDP_EACH = "FSDP2, loss by loss"
FSDP_TASK = "pcgrad, FSDP2"

#: The kind of step behind each way of averaging.
KINDS = {
    ALONE: EACH,
    DDP_SUM: SUM,
    DDP_EACH: EACH,
    DDP_TASK: TASK,
    ALL_REDUCE: TASK,
    FSDP_SUM: SUM,
    FSDP_EACH: EACH,
    FSDP_TASK: TASK,
}


def build(size: Size, tasks: int, device: torch.device) -> dict[str, Step]:
    """Build all steps on this rank: the same model, this rank's batches."""
    names, rank = task_names(tasks), dist.get_rank()
    tokens = batches(size, names, device, seed=rank)

    def model() -> nn.Module:
        torch.manual_seed(0)
        return MultiTask(size, names).to(device)

    # DDP's hooks stay on the parameters, so each has a model of its own; and so has the step alone,
    # whose weights differ from rank to rank.
    sharded = _sharded(model(), device)
    apart = DistributedDataParallel(model(), find_unused_parameters=True)
    models: dict[str, nn.Module] = {ALONE: model(), ALL_REDUCE: model()}
    models |= {DDP_SUM: DistributedDataParallel(model()), DDP_EACH: apart, DDP_TASK: apart}
    models |= dict.fromkeys((FSDP_SUM, FSDP_EACH, FSDP_TASK), sharded)
    torch.manual_seed(1 + rank)  # each rank has dropout of its own
    return {name: _step(name, Problem(models[name], tokens)) for name in KINDS}


def _step(name: str, problem: Problem) -> Step:
    group = dist.group.WORLD if name == ALL_REDUCE else None
    optimizer = wrapped(KINDS[name], adamw(problem.model), problem, process_group=group)
    return own_step(KINDS[name], problem, optimizer)


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
        """Return the elements that each rank sends, also if a reduce-scatter costs double."""
        return self.reduced + self.scattered * (1 + scatters_as_all_reduce)


def amounts(tasks: int, elements: int, layered: int, world: int) -> dict[str, Amounts]:
    """Return what each step sends and holds; FSDP2 gathers ``layered`` again for each backward."""
    k, n, share = tasks, elements, (world - 1) / world
    rest = n - layered  # kept from forward to backward
    gathers = 2 * k * layered + k * rest
    return {
        ALONE: Amounts(0, 0, n),
        DDP_SUM: Amounts(2 * n * share, 0, n),
        DDP_EACH: Amounts(2 * k * n * share, 0, n),
        DDP_TASK: Amounts(2 * k * n * share, 0, k * n),
        ALL_REDUCE: Amounts(2 * k * n * share, 0, k * n),
        FSDP_SUM: Amounts((gathers - (k - 1) * rest) * share, n * share, n / world),
        FSDP_EACH: Amounts(gathers * share, k * n * share, n / world),
        FSDP_TASK: Amounts(gathers * share, k * n * share, k * n / world),
    }
