"""A training step: passes that fill ``.grad``, then the update.

There are two ways to feed K tasks. With *own* batches each task has its own tokens and its own
forward; with a *shared* batch there is one forward and K losses. ``sum(losses).backward()`` is the
plain step in both; "loss by loss" makes the K backward passes that any surgery needs, and no
surgery.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import backward
from torch.optim import AdamW, Optimizer

from benchmarks.problems.multitask import Forward, Problem
from benchmarks.timing import nothing
from gradsurgery import GradientSurgery, Method, PCGrad

#: Kinds of step without surgery, on both feeds.
SUM, EACH = "plain, sum(losses).backward()", "plain, loss by loss"
#: With surgery: ``join`` on both feeds, task after task on own batches, at the features of a
#: shared one.
JOIN, TASK, FEATURES = "pcgrad, join", "pcgrad, task()", "pcgrad, features"

OWN, SHARED = "own", "shared"

#: The feeds as tables call them.
FEEDS = {OWN: "one batch per task", SHARED: "one shared batch"}

#: The kind of step with surgery that fits a feed.
SURGERY = {OWN: TASK, SHARED: JOIN}

RATE = 1e-5


@dataclass(frozen=True)
class Step:
    """A training step, in two halves.

    Attributes:
        passes: runs all forward and backward passes.
        optimizer: a torch optimizer, or a framework's wrapper of one.
        combine: ends the passes that are captured task after task.
        clip: clips the gradients.
    """

    passes: Callable[[], object]
    optimizer: Any
    combine: Callable[[], object] = nothing
    clip: Callable[[], object] = nothing

    def __call__(self) -> None:
        """Run both halves."""
        self.passes()
        self.finish()

    def finish(self) -> None:
        """Combine, clip, and update the weights."""
        self.combine()
        self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad()


def own_step(
    kind: str,
    problem: Problem,
    optimizer: Any,
    *,
    surgery: Any = None,
    clip: Callable[[], object] = nothing,
    backward: Callable[[Tensor], object] = backward,
) -> Step:
    """Return the step of one kind (not :data:`FEATURES`) in which each task has its own batch.

    ``surgery`` is the :class:`GradientSurgery` inside the optimizer, where a framework has wrapped
    it.
    """
    surgery = surgery or optimizer

    def losses() -> dict[str, Tensor]:
        return {task: problem.loss(task) for task in problem.tasks}

    def loss_by_loss() -> None:
        for task in problem.tasks:
            backward(problem.loss(task))

    def captured() -> None:
        for task in problem.tasks:
            with surgery.task(task):
                backward(problem.loss(task))

    passes: dict[str, Callable[[], object]] = {
        SUM: lambda: backward(total(losses())),
        EACH: loss_by_loss,
        JOIN: lambda: backward(surgery.join(losses())),
        TASK: captured,
    }
    return Step(passes[kind], optimizer, surgery.combine if kind == TASK else nothing, clip)


def shared_backward(kind: str, forward: Forward, surgery: Any) -> None:
    """Run the backward of one kind (not :data:`TASK`) after the forward of a shared batch."""
    losses = forward.losses
    if kind == SUM:
        backward(total(losses))
    elif kind == EACH:
        for number, loss in enumerate(losses.values(), start=1):
            backward(loss, retain_graph=number < len(losses))
    elif kind == JOIN:
        backward(surgery.join(losses))
    else:
        backward(surgery.join(losses, features=forward.features))


def step(kind: str, problem: Problem, feed: str, method: Callable[[], Method] = PCGrad) -> Step:
    """Return the step of one kind, with an AdamW of its own."""
    optimizer = wrapped(kind, adamw(problem.model), problem, method)
    if feed == OWN:
        return own_step(kind, problem, optimizer)
    return Step(lambda: shared_backward(kind, problem.shared(), optimizer), optimizer)


def wrapped(
    kind: str,
    base: Optimizer,
    problem: Problem,
    method: Callable[[], Method] = PCGrad,
    **options: Any,
) -> Optimizer:
    """Return ``base``, inside :class:`GradientSurgery` where the kind has surgery."""
    if kind in (SUM, EACH):
        return base
    return GradientSurgery(base, method(), tasks=problem.tasks, **options)


def adamw(model: nn.Module, **options: Any) -> AdamW:
    """Return AdamW on the parameters that are trained."""
    return AdamW(trained(model), lr=RATE, **options)


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the named parameters that are trained."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the losses."""
    return torch.stack(list(losses.values())).sum()
