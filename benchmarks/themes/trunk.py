"""Theme ``trunk``: K losses of one shared forward, with surgery the exact way and at the features.

One encoder, K linear heads on one batch. The joint backward of ``sum(losses)`` goes through the
encoder once; surgery the exact way needs K passes, as "loss by loss" without surgery does; with
``features=`` each loss's backward ends at the encoder's output, and one goes on. Both the backward
alone (the forward is not timed) and the whole step are measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.harness import Case, Theme
from benchmarks.problems.multitask import Forward, Problem, problem, size_of
from benchmarks.steps.step import EACH, FEATURES, JOIN, SUM, adamw, shared_backward, wrapped
from benchmarks.tables import ROUNDS, TIMES, Row, decimals, field
from benchmarks.timing import Candidate, alternate

TASKS = (2, 3, 8)

EXACT = "pcgrad, exact"

#: The kind of step behind each row.
KINDS = {SUM: SUM, EACH: EACH, EXACT: JOIN, FEATURES: FEATURES}


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
        steps = {name: TwoPartStep(kind, model) for name, kind in KINDS.items()}
        parts = {
            "backward": {n: Candidate(step.backward, step.forward) for n, step in steps.items()},
            "whole step": {name: Candidate(step.whole) for name, step in steps.items()},
        }
        for part, candidates in parts.items():
            effort = options.effort(31, cpu=60, cuda=10)
            times = alternate(candidates, effort, options.device, f"{part}, K = {tasks}")
            for kind in KINDS:
                row = times.figures(kind, to_joint=SUM, to_loss_by_loss=EACH)
                yield {"tasks": tasks, "part": part, "kind": kind, **row}


class TwoPartStep:
    """A step whose forward and backward run apart, with an optimizer of its own.

    Args:
        kind: of the step.
        problem: shared by the kinds.
    """

    def __init__(self, kind: str, problem: Problem) -> None:
        self._kind, self._problem = kind, problem
        self._optimizer = wrapped(kind, adamw(problem.model), problem)
        self._forwards: list[Forward] = []

    def forward(self) -> None:
        """Run the forward, without the gradients of the step before."""
        self._optimizer.zero_grad()
        self._forwards.append(self._problem.shared())

    def backward(self) -> None:
        """Run the backward, surgery included, and let go of the losses as a loop would."""
        shared_backward(self._kind, self._forwards.pop(), self._optimizer)

    def whole(self) -> None:
        """Run a whole step."""
        self.forward()
        self.backward()
        self._optimizer.step()
