"""Theme ``memory``: the peak of a training step with surgery, over that of a plain one.

Each kind of step runs in a fresh process that builds the model, forgets the peak so far, and makes
three steps. The CPU's peak is the kernel's ``VmHWM``; ``getrusage`` would count what the parent
process held when it started the child. On CUDA it is ``torch.cuda.max_memory_allocated``.

The K gradients have to exist together, plain training keeps one: (K - 1) x 4N bytes is the most
that surgery may add to ``sum(losses).backward()``.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.harness import Case, Theme
from benchmarks.options import Options
from benchmarks.problems.encoders import parameters
from benchmarks.problems.multitask import problem, size_of
from benchmarks.steps.step import EACH, FEEDS, OWN, SUM, SURGERY, step
from benchmarks.tables import Row, field
from benchmarks.timing import rotated, spread

KINDS = (SUM, EACH, "pcgrad")

TASKS = 3


class Memory(Theme):
    """Both feeds."""

    name = "memory"
    floor = "the plain step's own peak; bound: (K - 1) x 4N bytes over it"
    title = "{batches}: peak of a step"
    columns = (
        ("step", field("step")),
        ("peak MiB", field("peak_bytes.median", lambda count: f"{count / 2**20:.1f}")),
        ("over plain MiB", field("over_plain_bytes", lambda count: f"{count / 2**20:+.1f}")),
        ("of the bound", lambda row: f"{100 * row['over_plain_bytes'] / row['bound_bytes']:.0f}%"),
    )

    def parameters(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {
            **super().parameters(rows),
            "precision": "fp32",
            "processes per step": self._rounds,
            "bound MiB": round(self.bound / 2**20, 1),
        }

    def cases(self) -> Iterator[Case]:
        for feed in [OWN] if self.options.quick else FEEDS:
            yield Case(FEEDS[feed], partial(self._measure, feed))

    def notes(self, rows: Sequence[Row]) -> list[str]:
        counter = "max_memory_allocated" if self.options.cuda else "VmHWM, resident"
        return [f"Peak: {counter}, of a process that also holds model and AdamW's state."]

    @property
    def bound(self) -> int:
        """(K - 1) x 4N bytes."""
        return (TASKS - 1) * 4 * parameters(size_of(self.options).encoder).elements

    @property
    def _rounds(self) -> int:
        return 1 if self.options.quick or self.options.cuda else 3

    def _measure(self, feed: str) -> list[Row]:
        peaks: dict[str, list[int]] = {kind: [] for kind in KINDS}
        order = [kind for number in range(self._rounds) for kind in rotated(KINDS, number)]
        for kind in tqdm(order, desc=FEEDS[feed], leave=False, disable=None):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peaks[kind].append(pool.apply(peak_bytes, (kind, feed, self.options)))
        return figures(peaks, self.bound, FEEDS[feed])


def peak_bytes(kind: str, feed: str, options: Options) -> int:
    """Return the peak of three such steps, in a process that does nothing else."""
    torch.set_num_threads(options.threads)
    run = step(SURGERY[feed] if kind == "pcgrad" else kind, problem(options, TASKS), feed)
    gc.collect()
    _forget_peak(options.device)
    for _ in range(3):
        run()
    return _peak_since(options.device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _peak_since(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def figures(peaks: Mapping[str, Sequence[int]], bound: int, batches: str) -> list[Row]:
    """Return the rows of one feed; differences are taken round by round."""
    over = {
        kind: [a - b for a, b in zip(values, peaks[SUM], strict=True)]
        for kind, values in peaks.items()
    }
    return [
        {
            "batches": batches,
            "step": kind,
            "rounds": len(values),
            "peak_bytes": spread(values),
            "over_plain_bytes": spread(over[kind])["median"],
            "bound_bytes": bound,
        }
        for kind, values in peaks.items()
    ]
