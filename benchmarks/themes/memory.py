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
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import steps, workloads
from benchmarks.harness import rotated, spread
from benchmarks.options import Setting
from benchmarks.results import Result, Table
from benchmarks.themes.step import size_of

COLUMNS = ("step", "peak MiB", "over plain MiB", "of the bound")

KINDS = (steps.PLAIN, steps.EACH, "pcgrad")


def peak_bytes(kind: str, feed: str, setting: Setting) -> int:
    """Return the peak of a fresh process that makes three such steps."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        size = size_of(setting)
        arguments = (kind, feed, size, str(setting.device), setting.threads)
        return int(pool.apply(_peak, arguments))


def _peak(kind: str, feed: str, size: steps.Size, device: str, threads: int) -> int:
    torch.set_num_threads(threads)
    where = torch.device(device)
    step = steps.build(kind, steps.problem(size, where), feed)
    gc.collect()
    _forget_peak(where)
    for _ in range(3):
        step()
    return _peak_since(where)


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


def measure(setting: Setting, feed: str, rounds: int) -> dict[str, list[int]]:
    """Return the peaks of each kind, round by round."""
    peaks: dict[str, list[int]] = {kind: [] for kind in KINDS}
    with tqdm(total=rounds * len(peaks), desc=steps.FEEDS[feed], leave=False, disable=None) as bar:
        for number in range(rounds):
            for kind in rotated(list(peaks), number):
                peaks[kind].append(peak_bytes(kind, feed, setting))
                bar.update()
    return peaks


def bound(setting: Setting) -> int:
    """Return (K - 1) x 4N bytes."""
    encoder = workloads.workload(size_of(setting).encoder)
    return (len(steps.TASKS) - 1) * 4 * encoder.elements


def figures(peaks: dict[str, list[int]], allowed: int, feed: str) -> list[dict[str, Any]]:
    """Return the rows of one way of feeding; differences are taken round by round."""
    rows = []
    for kind, values in peaks.items():
        over = [a - b for a, b in zip(values, peaks[steps.PLAIN], strict=True)]
        rows.append(
            {
                "batches": steps.FEEDS[feed],
                "step": kind,
                "rounds": len(values),
                "peak_bytes": spread(values)._asdict(),
                "over_plain_bytes": spread(over).median,
                "bound_bytes": allowed,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the table of one way of feeding."""
    lines = []
    for row in rows:
        over, allowed = row["over_plain_bytes"], row["bound_bytes"]
        peak = f"{row['peak_bytes']['median'] / 2**20:.1f}"
        lines.append([row["step"], peak, f"{over / 2**20:+.1f}", f"{100 * over / allowed:.0f}%"])
    title = f"{rows[0]['batches'].capitalize()}: peak of a step"
    return Table(title, COLUMNS, lines)


def run(setting: Setting) -> Result:
    """Measure the theme."""
    allowed = bound(setting)
    result = Result("memory", "the plain step's own peak; bound: (K - 1) x 4N bytes over it")
    rounds = 1 if setting.quick or setting.device.type == "cuda" else 3
    result.parameters = {
        "tasks": len(steps.TASKS),
        **size_of(setting)._asdict(),
        "precision": "fp32",
        "processes per step": rounds,
        "bound MiB": round(allowed / 2**20, 1),
    }
    for feed in [steps.OWN] if setting.quick else steps.FEEDS:
        if setting.late:
            result.notes.append(f"{steps.FEEDS[feed]}: out of time")
            continue
        rows = figures(measure(setting, feed, rounds), allowed, feed)
        result.figures += rows
        result.tables.append(table(rows))
    kind = "max_memory_allocated" if setting.device.type == "cuda" else "VmHWM, resident"
    result.notes.append(f"Peak: {kind}, of a process that also holds model and AdamW's state.")
    return result
