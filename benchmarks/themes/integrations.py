"""Theme ``integrations``: a step with surgery over the same framework's own plain step.

In every integration the same BERT has three tasks with a batch each, AdamW and clipping. Timed is a
whole step: in the user's own loops from the first forward to ``zero_grad()``; in those that HF
Trainer and Lightning own, from one batch handed out to the next one asked for (:mod:`.fits`).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks import integrations_managed, integrations_manual, steps
from benchmarks.harness import Candidate, Times, alternate, ratio, seconds, spread
from benchmarks.integrations_manual import EACH, JOIN, SUM, TASK, Bench
from benchmarks.options import Setting
from benchmarks.paused_loop import Fit
from benchmarks.results import Result, Table, milliseconds
from benchmarks.themes.step import size_of

#: On the CPU, with a batch per task: of both ways, over sum(losses).
TARGET = 1.05


class Integration(NamedTuple):
    """A row of the table.

    Attributes:
        name: of it.
        build: returns the steps by kind.
        package: that it needs.
    """

    name: str
    build: Callable[[Bench], Mapping[str, steps.Step | Fit]]
    package: str = "torch"


INTEGRATIONS = (
    Integration("plain loop", integrations_manual.plain),
    Integration("bf16 autocast", integrations_manual.autocast),
    Integration("activation checkpointing", integrations_manual.checkpointed),
    Integration("PEFT, LoRA", integrations_manual.adapted, "peft"),
    Integration("AdamW, foreach", integrations_manual.foreach),
    Integration("AdamW, fused", integrations_manual.fused),
    Integration("AdamW8bit", integrations_manual.eight_bit, "bitsandbytes"),
    Integration("AdamWScheduleFree", integrations_manual.schedule_free, "schedulefree"),
    Integration("Accelerate", integrations_manual.accelerated, "accelerate"),
    Integration("Fabric", integrations_manual.fabric, "lightning"),
    Integration("HF Trainer", integrations_managed.trainer, "accelerate"),
    Integration("Lightning, automatic", integrations_managed.lightning, "lightning"),
    Integration("Lightning, manual", integrations_managed.lightning_by_hand, "lightning"),
    Integration("torch.compile", integrations_manual.compiled),  # last: compiling takes its time
)

RATIOS = (
    *("integration", "plain, median ms", "join, to sum(losses)", "task(), to sum(losses)"),
    *("task(), to loss by loss", "rounds", f"at most {TARGET}"),
)
STEPS = ("integration", "step", "median ms", "p20", "p80", "rounds")


def measure(integration: Integration, bench: Bench, setting: Setting) -> list[dict[str, Any]]:
    """Return the rows of one integration, a kind each."""
    built = integration.build(bench)
    try:
        candidates = {
            kind: Candidate(step.step if isinstance(step, Fit) else step)
            for kind, step in built.items()
        }
        cpu = setting.device.type == "cpu"
        effort = setting.effort(41, 60 if cpu else 8, warmup=2)
        times = alternate(candidates, effort, setting.device, integration.name)
    finally:
        for step in built.values():
            if isinstance(step, Fit):
                step.close()
        torch._dynamo.reset()
        _forget_accelerate()
    return figures(integration.name, times)


def _forget_accelerate() -> None:
    """Accelerate keeps its configuration for the whole process."""
    if "accelerate.state" in sys.modules:
        from accelerate import state  # type: ignore[import-untyped]

        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


def figures(name: str, times: Times) -> list[dict[str, Any]]:
    """Return a row for each kind; there is "loss by loss" where the loop is the user's."""
    taken = {kind: seconds(samples) for kind, samples in times.items()}
    return [
        {
            "integration": name,
            "kind": kind,
            "rounds": len(taken[kind]),
            "seconds": spread(taken[kind])._asdict(),
            "to_sum": ratio(taken[kind], taken[SUM]),
            "to_sum_error": error(taken[kind], taken[SUM]),
            "to_loss_by_loss": ratio(taken[kind], taken[EACH]) if EACH in taken else None,
        }
        for kind in taken
    ]


def error(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the standard error of :func:`~benchmarks.harness.ratio`, as if rounds were normal.

    A normal distribution's 20th and 80th percentiles are 1.68 standard deviations apart, and the
    median of n values has 1.25 of them over the square root of n.
    """
    found = spread([a / b for a, b in zip(ours, theirs, strict=True)])
    return 1.25 * (found.p80 - found.p20) / 1.68 / math.sqrt(len(ours))


def verdict(row: dict[str, Any]) -> str:
    """Say whether a ratio keeps to the target; "open" where that is within two errors of it."""
    if row["to_sum"] <= TARGET:
        return "met"
    return "open" if row["to_sum"] - 2 * row["to_sum_error"] <= TARGET else "missed"


def ratios(groups: Sequence[Sequence[dict[str, Any]]], judged: bool) -> Table:
    """Return the table of ratios, a row for each integration.

    Args:
        groups: the rows of each integration.
        judged: whether the target holds here.
    """
    lines = []
    for rows in groups:
        kinds = {row["kind"]: row for row in rows}
        ours = [kinds[kind] for kind in (JOIN, TASK) if kind in kinds]
        lines.append(
            [
                rows[0]["integration"],
                *milliseconds([kinds[SUM]["seconds"]["median"]]),
                _ratio(kinds.get(JOIN)),
                _ratio(kinds.get(TASK)),
                f"{by_loss:.3f}" if (by_loss := kinds.get(TASK, {}).get("to_loss_by_loss")) else "",
                str(rows[0]["rounds"]),
                ", ".join(map(verdict, ours)) if judged else "",
            ]
        )
    return Table("Over the framework's own plain step", RATIOS, lines)


def _ratio(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['to_sum']:.3f} ± {row['to_sum_error']:.3f}"


def every_step(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the table of times."""
    lines = [
        [
            row["integration"],
            row["kind"],
            *milliseconds(row["seconds"].values()),
            str(row["rounds"]),
        ]
        for row in rows
    ]
    return Table("All steps", STEPS, lines)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the frameworks' advice on data loaders, devices and precision."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def packages() -> dict[str, str]:
    """Return the versions of what the integrations need and is there."""
    needed = {integration.package for integration in INTEGRATIONS} - {"torch"}
    there = sorted(name for name in needed if importlib.util.find_spec(name))
    return {name: importlib.metadata.version(name) for name in there}


def run(setting: Setting) -> Result:
    """Measure the theme."""
    result = Result("integrations", "none: each framework's own plain step, sum(losses).backward()")
    size = size_of(setting)
    bench = Bench(size, setting.device, setting.threads, setting.quick)
    result.parameters = {
        "tasks": len(steps.TASKS),
        **size._asdict(),
        "clip": integrations_manual.CLIP,
    }
    result.parameters |= {
        "torch.compile": integrations_manual.backend(bench),
        "packages": packages(),
    }
    groups = []
    for integration in INTEGRATIONS:
        if importlib.util.find_spec(integration.package) is None:
            result.notes.append(f"{integration.name}: {integration.package} is not installed")
        elif setting.late:
            result.notes.append(f"{integration.name}: out of time")
        else:
            with quiet():
                groups.append(measure(integration, bench, setting))
    result.figures = [row for rows in groups for row in rows]
    judged = setting.device.type == "cpu" and not setting.quick
    result.tables = [ratios(groups, judged), every_step(result.figures)]
    result.notes += [
        "join: all tasks' graphs are alive together, as with sum(losses). task(): each graph is "
        "freed before the next forward, which is faster than sum(losses) where memory is slow.",
        "±: standard error of the median over the rounds. Open: over the target by less than two.",
        "HF Trainer and Lightning: their whole step, from batch to batch.",
        "Steps under DDP and FSDP2: theme distributed.",
    ]
    return result
