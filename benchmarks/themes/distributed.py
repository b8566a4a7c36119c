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
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks import launch
from benchmarks.harness import Case, Theme
from benchmarks.problems.gradients import task_names
from benchmarks.problems.multitask import MultiTask, Size
from benchmarks.steps.averaged import DDP_EACH, DDP_SUM, KINDS, amounts, build
from benchmarks.steps.step import Step
from benchmarks.tables import ROUNDS, TIMES, Row, Table, decimals, digits, field, tables
from benchmarks.timing import Candidate, Effort, Sample, Times, alternate

#: Small batches: with large ones the passes hide what is measured here.
SIZES = {
    "gloo": Size("minilm", 2, 32),
    "nccl": Size("bert-base", 8, 128),
    "quick": Size("mini", 2, 8),
}

#: Rounds before the first that counts: what goes out early is known after two steps.
WARMUP = 3


def _megabytes(count: float) -> str:
    return digits(count / 1e6) if count else "0"


def _over_formula(row: Row) -> str:
    sent, formula = row["sent_bytes"], row["sent_bytes_formula"]
    return f"{sent / formula:.2f}" if sent and formula else ""


class Distributed(Theme):
    """Numbers of ranks and tasks."""

    name = "distributed"
    floor = "none: DDP's own steps are what the others are held against"
    title = "{ranks} ranks, {tasks} tasks: time of a step"
    columns = (
        ("step", field("kind")),
        *TIMES,
        ("to DDP, sum", field("to_ddp_sum", decimals(3))),
        ("to DDP, loss by loss", field("to_ddp_loss_by_loss", decimals(3))),
        ROUNDS,
    )
    traffic_title = "{ranks} ranks, {tasks} tasks: a rank's part of a step"
    traffic = (
        ("step", field("kind")),
        ("MB sent, measured", field("sent_bytes", _megabytes)),
        ("formula", field("sent_bytes_formula", _megabytes)),
        ("measured / formula", _over_formula),
        ("formula for gloo", field("sent_bytes_formula_gloo", _megabytes)),
        ("gradients held, x N", lambda row: f"{row['held_bytes'] / 4 / row['elements']:.2f}"),
        ("formula", lambda row: f"{row['held_bytes_formula'] / 4 / row['elements']:.2f}"),
    )
    remarks = (
        "to DDP, loss by loss: over plain averaging of K gradients, K all-reduces, no surgery.",
        "Formula: a ring sends 2N(W - 1)/W elements from each rank in an all-reduce, and half of "
        "that in a reduce-scatter or an all-gather; 4 bytes each.",
        "Formula for gloo: the same, but its reduce-scatter sends what an all-reduce sends.",
        "Held: tensors that Python can see, so without DDP's own buckets (N elements). After "
        "several backwards FSDP2 still has the output of its last reduce-scatter.",
    )

    def parameters(self, rows: Sequence[Row]) -> dict[str, Any]:
        backend = launch.backend(self.options, 2)
        return {**self._size(2)._asdict(), "precision": "fp32", "backend": backend}

    def cases(self) -> Iterator[Case]:
        worlds = [(2, 3), (4, 3)] + [(2, 2), (2, 5), (4, 5)] * self.options.everything
        for world, tasks in [(2, 2)] if self.options.quick else worlds:
            yield Case(f"{world} ranks, {tasks} tasks", partial(self._measure, world, tasks))

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        traffic = tables(self.traffic_title, self.traffic, rows)
        pairs = zip(super().tables(rows), traffic, strict=True)
        return [table for pair in pairs for table in pair]

    def notes(self, rows: Sequence[Row]) -> list[str]:
        notes = super().notes(rows)
        if launch.backend(self.options, 2) == "gloo":
            notes.append(
                "gloo over the loopback device: the ranks share "
                f"{self.options.threads} threads, so sending takes from computing, and there is "
                "little for it to hide behind."
            )
            notes += ["On the CPU: NCCL needs a GPU for each rank."] * self.options.cuda
        return notes

    def _size(self, world: int) -> Size:
        return SIZES["quick" if self.options.quick else launch.backend(self.options, world)]

    def _measure(self, world: int, tasks: int) -> list[Row]:
        rounds, limit = (2, 0.0) if self.options.quick else (15, 60.0)
        arguments = (self._size(world), tasks, rounds, limit)
        ranks = launch.start(measure, world, arguments, self.options, limit=10 * limit + 300)
        return figures(ranks, tasks)


def measure(
    device: torch.device, size: Size, tasks: int, rounds: int, limit: float
) -> dict[str, Any]:
    """Return one case's seconds, bytes sent and held on this rank, and the model's elements.

    After two rounds no further one is started once ``limit`` seconds are over.
    """
    steps = build(size, tasks, device)
    candidates = {name: Candidate(step, dist.barrier) for name, step in steps.items()}
    start = time.monotonic()
    alternate(candidates, Effort(1, 1, 0.0, WARMUP - 1), device)
    duration = (time.monotonic() - start) / WARMUP
    # All ranks have to make the same number.
    count = max(2, min(rounds, int(limit / launch.greatest(duration, device))))
    times = alternate(candidates, Effort(count, count, 0.0, 0), device)
    wire = launch.Wire()
    sent = {name: wire.sent(step, 2) if wire.counts else None for name, step in steps.items()}
    model = MultiTask(size, task_names(tasks))
    return {
        "elements": elements(model),
        "layered": elements(model.encoder.encoder.layer),
        "seconds": {name: times.seconds(name) for name in times},
        "sent": sent,
        "held": {name: held_bytes(step) for name, step in steps.items()},
    }


def elements(module: nn.Module) -> int:
    """Return the number of elements of a module's parameters."""
    return sum(p.numel() for p in module.parameters())


def held_bytes(step: Step) -> int:
    """Return the bytes of the tensors that the first half of a step leaves behind."""
    before = _tensor_bytes()
    step.passes()
    held = _tensor_bytes() - before
    step.finish()
    return held


def _tensor_bytes() -> int:
    gc.collect()
    storages: dict[int, int] = {}
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    for tensor in tensors + [t.grad for t in tensors if t.is_leaf and t.grad is not None]:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if local.layout == torch.strided and local.device.type != "meta":
            storage = local.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def figures(ranks: Sequence[dict[str, Any]], tasks: int) -> list[Row]:
    """Return a row for each step; a round takes as long as its slowest rank."""
    world, first = len(ranks), ranks[0]
    n = first["elements"]
    formulas = amounts(tasks, n, first["layered"], world)
    times = Times()
    for name in KINDS:
        rounds = zip(*(rank["seconds"][name] for rank in ranks), strict=True)
        times[name] = [Sample(max(taken), max(taken)) for taken in rounds]
    return [
        {
            "ranks": world,
            "tasks": tasks,
            "elements": n,
            "kind": name,
            **times.figures(name, to_ddp_sum=DDP_SUM, to_ddp_loss_by_loss=DDP_EACH),
            "sent_bytes": first["sent"][name],
            "sent_bytes_formula": 4 * formula.sent(),
            "sent_bytes_formula_gloo": 4 * formula.sent(scatters_as_all_reduce=True),
            "held_bytes": max(rank["held"][name] for rank in ranks),
            "held_bytes_formula": 4 * formula.held,
        }
        for name, formula in formulas.items()
    ]
