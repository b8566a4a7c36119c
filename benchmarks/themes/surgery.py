"""Theme ``surgery``: both passes over the gradients, and all of ``combine()``, over their floor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.harness import Case, Theme
from benchmarks.passes import TRAFFIC, Passes, figures
from benchmarks.problems.encoders import parameters
from benchmarks.problems.gradients import DTYPES, random_gradients
from benchmarks.roofline import Probes
from benchmarks.tables import ROUNDS, TIMES, Row, Table, decimals, field, milliseconds
from benchmarks.timing import alternate
from gradsurgery import PCGrad

GROUPINGS = ("model", "layer")


class Surgery(Theme):
    """Sets of gradients by workload, dtype and K."""

    name = "surgery"
    title = "Time over the floor"
    columns = (
        ("workload", field("workload")),
        ("dtype", field("dtype")),
        ("K", field("tasks")),
        ("grouping", field("grouping")),
        ("pass", field("pass")),
        *TIMES,
        ("floor ms", field("floor_seconds", milliseconds)),
        ("over the floor", field("over_floor", decimals(2))),
        ("host ms", field("host_seconds", milliseconds)),
        ROUNDS,
    )
    remarks = (
        "gram reads K gradients of N elements; combine reads K and writes one; whole is "
        "optimizer.combine() after capture, so it reads 2K and writes one.",
        "host ms is the time until the call returns, which on CUDA is what the next kernel "
        "launches wait for.",
        "The bandwidths above are those of the first case; each case's own are with its figures.",
        "Gradients that fit into a cache can beat a floor that was measured on vectors that do "
        "not.",
        "They lie at the same addresses in every round, as torch's allocator mostly has it in "
        "training, so what is kept by address is found again; the theme step has real ones.",
    )

    def parameters(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {"groupings": list(GROUPINGS), "method": repr(PCGrad())}

    def cases(self) -> Iterator[Case]:
        if self.options.quick:
            yield self._case("mini", 2)
            yield self._case("mini", 3, torch.bfloat16)
            yield self._case("100 tiny tensors", 3)
            return
        large = self.options.everything or self.options.cuda
        counts = {
            "minilm": (2, 8, 32, 64),
            "bert-base": (2, 8, 32, 64) if large else (2, 8),
            "bert-large": (2, 8, 32, 64) if large else (),
            "10000 tiny tensors": (2, 8, 32, 64) if self.options.everything else (8,),
        }
        yield from (self._case(workload, 3) for workload in counts)
        yield self._case("bert-base", 3, torch.bfloat16)
        yield from (self._case(workload, k) for workload in counts for k in counts[workload])

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        workloads = list(dict.fromkeys(row["workload"] for row in rows))

        def position(row: Row) -> tuple[int, bool, int]:
            return workloads.index(row["workload"]), row["dtype"] != "fp32", row["tasks"]

        return super().tables(sorted(rows, key=position))

    def _case(self, workload: str, tasks: int, dtype: torch.dtype = torch.float32) -> Case:
        label = f"{workload}, K = {tasks}, {DTYPES[dtype]}"
        size = tasks * parameters(workload).elements * dtype.itemsize
        return Case(label, partial(self._measure, workload, tasks, dtype), gradient_bytes=size)

    def _measure(self, workload: str, tasks: int, dtype: torch.dtype) -> Iterator[Row]:
        """Yield the figures of each grouping and pass."""
        options, shaped = self.options, parameters(workload)
        grads = random_gradients(shaped.shapes, tasks, options.device, dtype)
        probes = Probes(shaped.elements, options.device, options.probe_bytes)
        for grouping in GROUPINGS:
            passes = Passes(shaped, grads, grouping)
            times = alternate(
                probes.candidates() | passes.candidates(),
                options.effort(21, cpu=8, cuda=2),
                options.device,
                f"{workload}, K = {tasks}, by {grouping}",
            )
            facts = {
                "workload": workload,
                "dtype": DTYPES[dtype],
                "tasks": tasks,
                "elements": shaped.elements,
                "tensors": len(shaped.shapes),
                "grouping": grouping,
                "segments": passes.segments,
                "bandwidths_gb_s": probes.bandwidths(times),
            }
            for name, traffic in TRAFFIC.items():
                floor = probes.floor(times, traffic(tasks, shaped.elements, dtype.itemsize))
                yield {**facts, "pass": name, **figures(times, name, floor)}
