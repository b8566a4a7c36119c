"""Theme ``integrations``: a step with surgery over the same framework's own plain step.

In every integration the same BERT has three tasks with a batch each, AdamW and clipping. Timed is a
whole step: in the user's own loops from the first forward to ``zero_grad()``; in those that HF
Trainer and Lightning own, from one batch handed out to the next one asked for
(:mod:`benchmarks.steps.paused_loop`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.harness import Case, Theme
from benchmarks.machine import installed
from benchmarks.options import Options
from benchmarks.steps import managed_loops, manual_loops
from benchmarks.steps.managed_loops import lightning
from benchmarks.steps.manual_loops import loop
from benchmarks.steps.paused_loop import PausedLoop
from benchmarks.steps.step import EACH, JOIN, SUM, TASK, Step, adamw
from benchmarks.tables import ROUNDS, TIMES, Row, Table, decimals, field, milliseconds, table
from benchmarks.timing import Candidate, Times, alternate, spread

#: On the CPU, with a batch per task: of both ways, over sum(losses).
TARGET = 1.05


class Integration(NamedTuple):
    """A row of the table.

    Attributes:
        name: in the table.
        build: returns the steps by kind.
        package: to be installed.
    """

    name: str
    build: Callable[[Options], Mapping[str, Step | PausedLoop]]
    package: str = "torch"


INTEGRATIONS = (
    Integration("plain loop", loop()),
    Integration("bf16 autocast", loop(bf16=True)),
    Integration("activation checkpointing", loop(manual_loops.checkpoint)),
    Integration("PEFT, LoRA", loop(manual_loops.add_lora), "peft"),
    Integration("AdamW, foreach", loop(base=partial(adamw, foreach=True))),
    Integration("AdamW, fused", loop(base=partial(adamw, fused=True))),
    Integration("AdamW8bit", loop(base=manual_loops.adamw_8bit), "bitsandbytes"),
    Integration("AdamWScheduleFree", loop(base=manual_loops.adamw_schedule_free), "schedulefree"),
    Integration("Accelerate", loop(framework=manual_loops.accelerate), "accelerate"),
    Integration("Fabric", loop(framework=manual_loops.fabric), "lightning"),
    Integration("HF Trainer", managed_loops.trainer, "accelerate"),
    Integration("Lightning, automatic", partial(lightning, automatic=True), "lightning"),
    Integration("Lightning, manual", partial(lightning, automatic=False), "lightning"),
    Integration("torch.compile", loop(manual_loops.compile_encoder)),  # last, since it takes long
)

#: Kinds of step as the fields of a row of :data:`RATIOS`, which is one integration.
SHORT = {SUM: "plain", EACH: "loss by loss", JOIN: "join", TASK: "task"}


def _ratio(row: Row) -> str:
    return f"{row['to_sum']:.3f} ± {row['to_sum_error']:.3f}"


RATIOS = [
    ("integration", field("plain.integration")),
    ("plain, median ms", field("plain.seconds.median", milliseconds)),
    ("join, to sum(losses)", field("join", _ratio)),
    ("task(), to sum(losses)", field("task", _ratio)),
    ("task(), to loss by loss", field("task.to_loss_by_loss", decimals(3))),
    ("rounds", field("plain.rounds")),
]
STEPS = [("integration", field("integration")), ("step", field("kind")), *TIMES, ROUNDS]


class Integrations(Theme):
    """Every integration."""

    name = "integrations"
    floor = "none: each framework's own plain step, sum(losses).backward()"
    remarks = (
        "join: all tasks' graphs are alive together, as with sum(losses). task(): each graph is "
        "freed before the next forward, which is faster than sum(losses) where memory is slow.",
        "±: standard error of the median over the rounds. Open: over the target by less than two.",
        "HF Trainer and Lightning: their whole step, from batch to batch.",
        "Steps under DDP and FSDP2: theme distributed.",
    )

    def parameters(self, rows: Sequence[Row]) -> dict[str, Any]:
        packages = {integration.package for integration in INTEGRATIONS} - {"torch"}
        return {
            **super().parameters(rows),
            "clip": manual_loops.CLIP,
            "torch.compile": manual_loops.backend(self.options),
            "packages": installed(sorted(packages)),
        }

    def cases(self) -> Iterator[Case]:
        for integration in INTEGRATIONS:
            measure = partial(self._measure, integration)
            yield Case(integration.name, measure, package=integration.package)

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        judged = not self.options.cuda and not self.options.quick
        return [ratios(rows, judged), table("All steps", STEPS, rows)]

    def _measure(self, integration: Integration) -> list[Row]:
        options = self.options
        steps: Mapping[str, Step | PausedLoop] = {}
        with quiet():
            try:
                steps = integration.build(options)
                candidates = {kind: Candidate(step) for kind, step in steps.items()}
                effort = options.effort(41, cpu=60, cuda=8)
                times = alternate(candidates, effort, options.device, integration.name)
            finally:
                close(steps)
        return figures(integration.name, times)


def close(steps: Mapping[str, Step | PausedLoop]) -> None:
    """End the loops, and forget what the frameworks keep for the whole process."""
    for step in steps.values():
        if isinstance(step, PausedLoop):
            step.close()
    torch._dynamo.reset()
    if "accelerate.state" in sys.modules:
        from accelerate import state  # type: ignore[import-untyped]

        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


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


def figures(name: str, times: Times) -> list[Row]:
    """Return a row for each kind; there is "loss by loss" where the loop is the user's."""
    return [
        {
            "integration": name,
            "kind": kind,
            **times.figures(kind, to_sum=SUM),
            "to_sum_error": error(times.seconds(kind), times.seconds(SUM)),
            "to_loss_by_loss": times.ratio(kind, EACH) if EACH in times else None,
        }
        for kind in times
    ]


def error(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the standard error of :func:`~benchmarks.timing.ratio`, as if rounds were normal.

    A normal distribution's 20th and 80th percentiles are 1.68 standard deviations apart, and the
    median of n values has 1.25 of them over the square root of n.
    """
    ratios = spread([a / b for a, b in zip(ours, theirs, strict=True)])
    return 1.25 * (ratios["p80"] - ratios["p20"]) / 1.68 / math.sqrt(len(ours))


def ratios(rows: Sequence[Row], judged: bool) -> Table:
    """Return the table of ratios, a row for each integration; targets are ``judged`` or empty."""
    integrations: dict[str, Row] = {}
    for row in rows:
        integrations.setdefault(row["integration"], {})[SHORT[row["kind"]]] = row
    columns = [*RATIOS, (f"at most {TARGET}", _verdicts if judged else lambda row: "")]
    return table("Over the framework's own plain step", columns, integrations.values())


def verdict(row: Row) -> str:
    """Return whether a ratio meets the target; "open" where it is over by less than two errors."""
    if row["to_sum"] <= TARGET:
        return "met"
    return "open" if row["to_sum"] - 2 * row["to_sum_error"] <= TARGET else "missed"


def _verdicts(row: Row) -> str:
    return ", ".join(verdict(row[kind]) for kind in ("join", "task") if kind in row)
