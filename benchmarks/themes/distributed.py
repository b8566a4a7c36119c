"""Theme ``distributed``: steps with surgery on several ranks, beside plain ones, and their traffic.

Real processes, with gloo on the CPU; with NCCL where each rank can have a GPU. All ways of
averaging take turns on the same ranks. A step is clocked on every rank, from a barrier on, and the
slowest rank's time is the step's. Two more figures are taken from single steps after that: the
bytes that a rank sends, read off the loopback device's counter, and the gradients that it holds
when the last backward is done, counted by storages.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks import averaged_steps as averaged
from benchmarks import launch, steps
from benchmarks.averaged_steps import DDP_EACH, DDP_SUM, KINDS, Step
from benchmarks.harness import Candidate, Effort, alternate, ratio, seconds, spread
from benchmarks.options import Setting
from benchmarks.results import Result, Table, digits, milliseconds

#: Small batches: with large ones the passes hide what is measured here.
SIZES = {
    "cpu": steps.Size("minilm", 2, 32),
    "cuda": steps.Size("bert-base", 8, 128),
    "quick": steps.Size("mini", 2, 8),
}

TIMES = ("step", "median ms", "p20", "p80", "to DDP, sum", "to DDP, loss by loss", "rounds")
WIRE = (
    *("step", "MB sent, measured", "formula", "measured / formula"),
    *("formula for gloo", "gradients held, x N", "formula"),
)

#: Rounds before the first that counts: what goes out early is known after two steps.
WARMUP = 3


def cases(setting: Setting) -> list[tuple[int, int]]:
    """Return the ranks and tasks to measure."""
    if setting.quick:
        return [(2, 2)]
    return [(2, 3), (4, 3)] + [(2, 2), (2, 5), (4, 5)] * setting.everything


def size_of(setting: Setting, world: int) -> steps.Size:
    """Return the model and batch."""
    if setting.quick:
        return SIZES["quick"]
    return SIZES["cuda" if launch.backend(setting, world) == "nccl" else "cpu"]


def measure(
    device: torch.device, size: steps.Size, tasks: int, rounds: int, limit: float
) -> dict[str, Any]:
    """Measure one case on this rank.

    Args:
        device: this rank's.
        size: of model and batch.
        tasks: K.
        rounds: at most.
        limit: seconds for the rounds; two are made at least.

    Returns:
        ``seconds``, ``sent`` and ``held`` by kind, and the model's ``elements`` and ``layered``.
    """
    built = averaged.build(size, tasks, device)
    timed = {kind: Candidate(step.whole, dist.barrier) for kind, step in built.items()}
    start = time.monotonic()
    alternate(timed, Effort(1, 1, 0.0, WARMUP - 1), device)
    each = (time.monotonic() - start) / WARMUP
    # All ranks have to make the same number.
    count = max(2, min(rounds, int(limit / launch.greatest(each, device))))
    times = alternate(timed, Effort(count, count, 0.0, 0), device)
    wire = launch.Wire()
    sent = {kind: wire.sent(step.whole, 2) if wire.counts else None for kind, step in built.items()}
    model = averaged.Heads(size.encoder, tasks)
    return {
        "elements": elements(model),
        "layered": elements(model.encoder.encoder.layer),
        "seconds": {kind: seconds(samples) for kind, samples in times.items()},
        "sent": sent,
        "held": {kind: held_bytes(step) for kind, step in built.items()},
    }


def elements(module: nn.Module) -> int:
    """Return how many its parameters have."""
    return sum(p.numel() for p in module.parameters())


def held_bytes(step: Step) -> int:
    """Return the bytes of the tensors that the first half of a step leaves behind."""
    before = _tensor_bytes()
    step.backward()
    held = _tensor_bytes() - before
    step.finish()
    return held


def _tensor_bytes() -> int:
    gc.collect()
    found: dict[int, int] = {}
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    for tensor in tensors + [t.grad for t in tensors if t.is_leaf and t.grad is not None]:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if local.layout == torch.strided and local.device.type != "meta":
            storage = local.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def figures(found: Sequence[dict[str, Any]], tasks: int) -> list[dict[str, Any]]:
    """Return a row for each kind from what the ranks found; a round is as slow as its slowest."""
    world, first = len(found), found[0]
    slowest = {
        kind: [max(taken) for taken in zip(*(rank["seconds"][kind] for rank in found), strict=True)]
        for kind in KINDS
    }
    rows = []
    for kind in KINDS:
        n = first["elements"]
        formula = averaged.amounts(kind, tasks, n, first["layered"], world)
        rows.append(
            {
                "ranks": world,
                "tasks": tasks,
                "elements": n,
                "kind": kind,
                "rounds": len(slowest[kind]),
                "seconds": spread(slowest[kind])._asdict(),
                "to_ddp_sum": ratio(slowest[kind], slowest[DDP_SUM]),
                "to_ddp_loss_by_loss": ratio(slowest[kind], slowest[DDP_EACH]),
                "sent_bytes": first["sent"][kind],
                "sent_bytes_formula": 4 * formula.sent(),
                "sent_bytes_formula_gloo": 4 * formula.sent(scatters_as_all_reduce=True),
                "held_bytes": max(rank["held"][kind] for rank in found),
                "held_bytes_formula": 4 * formula.held,
            }
        )
    return rows


def tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """Return the tables of one case."""
    case = f"{rows[0]['ranks']} ranks, {rows[0]['tasks']} tasks"
    times, wire = [], []
    for row in rows:
        ratios = (row["to_ddp_sum"], row["to_ddp_loss_by_loss"])
        texts = [*milliseconds(row["seconds"].values()), *(f"{figure:.3f}" for figure in ratios)]
        times.append([row["kind"], *texts, str(row["rounds"])])
        sent, formula = row["sent_bytes"], row["sent_bytes_formula"]
        n = 4 * row["elements"]
        wire.append(
            [
                row["kind"],
                "" if sent is None else _megabytes(sent),
                _megabytes(formula),
                "" if not sent or not formula else f"{sent / formula:.2f}",
                _megabytes(row["sent_bytes_formula_gloo"]),
                f"{row['held_bytes'] / n:.2f}",
                f"{row['held_bytes_formula'] / n:.2f}",
            ]
        )
    return [
        Table(f"{case}: time of a step", TIMES, times),
        Table(f"{case}: a rank's part of a step", WIRE, wire),
    ]


def _megabytes(count: float) -> str:
    return digits(count / 1e6) if count else "0"


def run(setting: Setting) -> Result:
    """Measure the theme."""
    result = Result("distributed", "none: DDP's own steps are what the others are held against")
    size = size_of(setting, 2)
    result.parameters = {
        **size._asdict(),
        "precision": "fp32",
        "backend": launch.backend(setting, 2),
    }
    rounds, limit = (2, 0.0) if setting.quick else (15, 60.0)
    for world, tasks in cases(setting):
        if setting.late:
            result.notes.append(f"{world} ranks, {tasks} tasks: out of time")
            continue
        arguments = (size_of(setting, world), tasks, rounds, limit)
        found = launch.start(measure, world, arguments, setting, limit=10 * limit + 300)
        rows = figures(found, tasks)
        result.figures += rows
        result.tables += tables(rows)
    result.notes += notes(setting)
    return result


def notes(setting: Setting) -> list[str]:
    """Say what the tables' reader has to know."""
    said = [
        "to DDP, loss by loss: over plain averaging of K gradients, K all-reduces, no surgery.",
        "Formula: a ring sends 2N(W - 1)/W elements from each rank in an all-reduce, and half of "
        "that in a reduce-scatter or an all-gather; 4 bytes each.",
        "Formula for gloo: the same, but its reduce-scatter sends what an all-reduce sends.",
        "Held: tensors that Python can see, so without DDP's own buckets (N elements). "
        "reduce_scatter still reads the last task's gradient then; after several backwards FSDP2 "
        "still has the output of its last reduce-scatter.",
    ]
    if launch.backend(setting, 2) == "gloo":
        said.append(
            f"gloo over the loopback device: the ranks share {setting.threads} threads, so sending "
            "takes from computing, and there is little for it to hide behind."
        )
        if setting.device.type == "cuda":
            said.append("On the CPU: NCCL needs a GPU for each rank.")
    return said
