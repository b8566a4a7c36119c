"""Theme ``trunk``: K losses of one shared forward, with surgery the exact way, at every eighth step
and at the features.

One encoder, K linear heads on one batch. The joint backward of ``sum(losses)`` goes through the
encoder once; surgery the exact way needs K passes, as "loss by loss" without surgery does; a step
that reuses weights needs one, and ``every=8`` is the mean of one exact step and seven of these;
with ``features=`` each loss's backward ends at the encoder's output, and one goes on. Both the
backward alone (the forward is not timed) and the whole step are measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.harness import Case, Theme
from benchmarks.problems.multitask import Forward, Problem, problem, size_of
from benchmarks.steps.step import EACH, FEATURES, JOIN, SUM, adamw, shared_backward, wrapped
from benchmarks.tables import ROUNDS, TIMES, Row, decimals, field
from benchmarks.timing import Candidate, Sample, alternate

TASKS = (2, 3, 8)

EXACT = "pcgrad, exact"
REUSED = "pcgrad, a step that reuses weights"
EVERY = "pcgrad, every=8"

#: The kind of step behind each row.
KINDS = {SUM: SUM, EACH: EACH, EXACT: JOIN, REUSED: JOIN, FEATURES: FEATURES}


class Trunk(Theme):
    """Numbers of tasks."""

    name = "trunk"
    floor = (
        "with features: the joint backward, once through the encoder; exact: loss by loss, K times"
    )
    title = "{tasks} tasks, {part}"
    columns = (
        ("what", field("kind")),
        *TIMES,
        ("to sum(losses)", field("to_joint", decimals(2))),
        ("to loss by loss", field("to_loss_by_loss", decimals(2))),
        ROUNDS,
    )
    remarks = ("backward: with surgery, and without the forward and AdamW.",)

    def parameters(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {"tasks": list(TASKS), **size_of(self.options)._asdict()}

    def cases(self) -> Iterator[Case]:
        for tasks in TASKS:
            yield Case(f"{tasks} tasks", partial(self._measure, tasks))

    def _measure(self, tasks: int) -> Iterator[Row]:
        options = self.options
        model = problem(options, tasks)
        steps = {name: candidates(name, model) for name in KINDS}
        for part in ("backward", "whole step"):
            times = alternate(
                {name: step[part] for name, step in steps.items()},
                options.effort(31, cpu=60, cuda=10),
                options.device,
                f"{part}, K = {tasks}",
            )
            times[EVERY] = cycle(times[EXACT], times[REUSED])
            for kind in (SUM, EACH, EXACT, REUSED, EVERY, FEATURES):
                row = times.figures(kind, to_joint=SUM, to_loss_by_loss=EACH)
                yield {"tasks": tasks, "part": part, "kind": kind, **row}


def cycle(exact: Sequence[Sample], reused: Sequence[Sample], every: int = 8) -> list[Sample]:
    """Return the mean step of a cycle: one exact, the others with its weights."""
    return [
        Sample(*((first + (every - 1) * later) / every for first, later in zip(*pair, strict=True)))
        for pair in zip(exact, reused, strict=True)
    ]


def candidates(name: str, problem: Problem) -> dict[str, Candidate]:
    """Return the backward, which lets go of the losses as a loop would, and the whole step."""
    kind = KINDS[name]
    every = sys.maxsize if name == REUSED else 1  # only the first step, a warm-up, is measured
    optimizer = wrapped(kind, adamw(problem.model), problem, every=every)
    pending: list[Forward] = []

    def forward() -> None:
        optimizer.zero_grad()
        pending.append(problem.shared())

    def backward() -> None:
        shared_backward(kind, pending.pop(), optimizer)

    def step() -> None:
        forward()
        backward()
        optimizer.step()

    return {"backward": Candidate(backward, forward), "whole step": Candidate(step)}
