"""Theme ``surgery``: both passes over the gradients, and all of ``combine()``, over their floor.

``gram`` and ``combine`` are timed at the seam :mod:`gradsurgery.kernels`, ``whole`` through the
public API: gradients are captured first, untimed, and ``optimizer.combine()`` is what is timed.
The three work on the same tensors, in place. Weights sum to one, so ``combine`` keeps values
bounded; the first gradient of ``whole`` is its update, so it grows by the others' sum each round.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import roofline, workloads
from benchmarks.harness import Candidate, Times, alternate, ratio, seconds, spread
from benchmarks.options import Setting
from benchmarks.results import Result, Table, milliseconds
from gradsurgery import GradientSurgery, PCGrad, kernels
from gradsurgery.grouping import segments

GROUPINGS = ("model", "layer")

TRAFFIC = {
    "gram": roofline.gram_traffic,
    "combine": roofline.combine_traffic,
    "whole": roofline.whole_traffic,
}

COLUMNS = (
    *("workload", "dtype", "K", "grouping", "pass"),
    *("median ms", "p20", "p80", "floor ms", "over the floor", "host ms"),
    "rounds",
)


class Case(NamedTuple):
    """One set of gradients."""

    workload: str
    tasks: int
    dtype: torch.dtype = torch.float32


def cases(setting: Setting) -> list[Case]:
    """Return what this run measures, the most telling first."""
    if setting.quick:
        return [Case("mini", 2), Case("mini", 3, torch.bfloat16), Case("100 tiny tensors", 3)]
    half = Case("bert-base", 3, torch.bfloat16)
    wide = setting.everything or setting.device.type == "cuda"
    counts = {
        "minilm": (3, 2, 8, 32, 64),
        "bert-base": (3, 2, 8, 32, 64) if wide else (3, 2, 8),
        "bert-large": (3, 2, 8, 32, 64) if wide else (3,),
        "10000 tiny tensors": (3, 2, 8, 32, 64) if setting.everything else (3, 8),
    }
    first = [Case(name, 3) for name in counts]
    rest = [Case(name, tasks) for name, every in counts.items() for tasks in every[1:]]
    return [*first, half, *rest]


class Passes:
    """The three candidates on one set of gradients.

    Args:
        work: names and shapes.
        grads: ``[K][P]``; the first row is overwritten at each round.
        grouping: of the segments.
    """

    def __init__(self, work: workloads.Workload, grads: workloads.Gradients, grouping: str) -> None:
        first = grads[0][0]
        bearers = workloads.bearers(work, first.device, first.dtype)
        self._grads = grads
        self._parameters = [parameter for _, parameter in bearers]
        self._tasks = tuple(f"task {k}" for k in range(len(grads)))
        self._optimizer = GradientSurgery(
            torch.optim.SGD(bearers), PCGrad(), tasks=self._tasks, grouping=grouping
        )
        where, names = segments(work.names, grouping)
        self._where, self.segments = where, len(names)
        # On the gradients' device: the fused kernels decide there, and the eager ones ask for it.
        self._weights = mixing(len(grads)).repeat(len(names), 1).to(first.device)

    def candidates(self) -> dict[str, Candidate]:
        """Return the passes by name."""
        return {
            "gram": Candidate(lambda: kernels.gram(self._grads, self._where, self.segments)),
            "combine": Candidate(lambda: kernels.combine_(self._grads, self._weights, self._where)),
            "whole": Candidate(self._optimizer.combine, self._capture),
        }

    def _capture(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        for task, grads in zip(self._tasks, self._grads, strict=True):
            with self._optimizer.task(task):
                for parameter, grad in zip(self._parameters, grads, strict=True):
                    parameter.grad = grad


def mixing(tasks: int) -> Tensor:
    """Return ``[K]`` float64 weights that sum to one, half of it on the first."""
    weights = torch.full((tasks,), 0.5 / max(tasks - 1, 1), dtype=torch.float64)
    weights[0] = 0.5
    return weights


def obstacle(case: Case, setting: Setting) -> str | None:
    """Return why the case cannot be measured here, None if it can."""
    if setting.late:
        return "out of time"
    work = workloads.workload(case.workload)
    size = case.tasks * work.elements * case.dtype.itemsize
    free = workloads.free_bytes(setting.device)
    if 2 * size > free:
        return f"gradients of {size / 2**30:.1f} GiB exceed half of the free {free / 2**30:.1f} GiB"
    return None


def measure(case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the figures of each grouping and pass."""
    work = workloads.workload(case.workload)
    grads = workloads.gradients(work.shapes, case.tasks, setting.device, case.dtype)
    probes = roofline.Probes(work.elements, setting.device, setting.probe_bytes)
    for grouping in GROUPINGS:
        passes = Passes(work, grads, grouping)
        times = alternate(
            probes.candidates() | passes.candidates(),
            setting.effort(21, 8 if setting.device.type == "cpu" else 2),
            setting.device,
            f"{case.workload}, K = {case.tasks}, by {grouping}",
        )
        facts = {
            "workload": case.workload,
            "dtype": workloads.DTYPES[case.dtype],
            "tasks": case.tasks,
            "elements": work.elements,
            "tensors": len(work.shapes),
            "grouping": grouping,
            "segments": passes.segments,
            "bandwidths_gb_s": probes.bandwidths(times),
        }
        size = (case.tasks, work.elements, case.dtype.itemsize)
        for name, traffic in TRAFFIC.items():
            least = probes.floor(times, traffic(*size))
            yield {**facts, "pass": name, **figures(times, name, least)}


def figures(times: Times, name: str, least: list[float]) -> dict[str, Any]:
    """Return a candidate's figures in seconds, beside its floor round by round."""
    taken = seconds(times[name])
    return {
        "rounds": len(taken),
        "seconds": spread(taken)._asdict(),
        "floor_seconds": spread(least).median,
        "over_floor": ratio(taken, least),
        "host_seconds": spread([sample.host for sample in times[name]]).median,
    }


def run(setting: Setting) -> Result:
    """Measure the theme."""
    result = Result("surgery", roofline.FORMULA[setting.device.type])
    result.parameters = {"groupings": list(GROUPINGS), "method": repr(PCGrad())}
    skipped: list[str] = []
    for case in tqdm(cases(setting), desc="surgery", disable=None):
        said = f"{case.workload}, K = {case.tasks}, {workloads.DTYPES[case.dtype]}"
        reason = obstacle(case, setting)
        try:
            result.figures += measure(case, setting) if reason is None else ()
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
        skipped += [f"skipped: {said}: {reason}"] if reason else []
    result.bandwidths = result.figures[0]["bandwidths_gb_s"] if result.figures else {}
    result.tables = [table(result.figures)]
    result.notes = [*NOTES, *skipped]
    return result


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the table of all cases, by workload, dtype and K."""
    names = list(dict.fromkeys(row["workload"] for row in rows))

    def place(row: dict[str, Any]) -> tuple[int, bool, int]:
        return names.index(row["workload"]), row["dtype"] != "fp32", row["tasks"]

    lines = []
    for row in sorted(rows, key=place):
        taken = milliseconds(row["seconds"].values())
        least, host = milliseconds([row["floor_seconds"], row["host_seconds"]])
        case = [row["workload"], row["dtype"], str(row["tasks"]), row["grouping"], row["pass"]]
        over = f"{row['over_floor']:.2f}"
        lines.append([*case, *taken, least, over, host, str(row["rounds"])])
    return Table("Time over the floor", COLUMNS, lines)


NOTES = [
    "gram reads K gradients of N elements; combine reads K and writes one; whole is "
    "optimizer.combine() after capture, so it reads 2K and writes one.",
    "host ms is the time until the call returns, which on CUDA is what the next kernel launches "
    "wait for.",
    "The bandwidths above are those of the first case; each case's own are with its figures.",
    "Gradients that fit into a cache can beat a floor that was measured on vectors that do not.",
    "They lie at the same addresses in every round, as torch's allocator mostly has it in "
    "training, so what is kept by address is found again; the theme step has real ones.",
]
