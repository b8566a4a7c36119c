"""The losses' part in a step: their means over the ranks, and what a method that decides by the
losses alone decides before the one backward pass of their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradsurgery.combine import Measured
from gradsurgery.distributed.averaging import StepLossMeans
from gradsurgery.distributed.placement import Processes
from gradsurgery.losses import StepLosses
from gradsurgery.methods import LossWeighting, Method, State, Verdict
from gradsurgery.state import SurgeryState
from gradsurgery.statistics import ConflictStatistics


class Decision(NamedTuple):
    """The decision of a method of the losses, before the backward.

    Attributes:
        weights: ``[K]`` float64.
        state: what the next step is to be given.
        before: what this step was given.
    """

    weights: Tensor
    state: State
    before: State

    def on(self, device: torch.device) -> Decision:
        """Return it on ``device``."""
        return Decision(
            self.weights.to(device),
            {name: value.to(device) for name, value in self.state.items()},
            {name: value.to(device) for name, value in self.before.items()},
        )


class LossesOfStep:
    """The losses of the step under way, of whatever method, and the decision on them.

    Args:
        method: of the losses alone, or one that needs them, or none of these.
        tasks: the tasks' names, in order.
        processes: that the losses are averaged over.
        state: of surgery.
    """

    def __init__(
        self, method: Method, tasks: Sequence[str], processes: Processes, state: SurgeryState
    ) -> None:
        self._method, self._tasks = method, tuple(tasks)
        self._processes, self._state = processes, state
        self._losses = StepLosses(tasks)
        self._means: StepLossMeans | None = None
        self._decision: Decision | None = None

    def clear(self) -> None:
        """Forget the step under way."""
        self._losses.clear()
        self.reopen()

    def reopen(self) -> None:
        """Forget the means and the decision: the losses may change again."""
        self._means = self._decision = None

    @property
    def settled(self) -> bool:
        """Whether the losses have been averaged: no more can be added."""
        return self._means is not None

    @property
    def decided(self) -> bool:
        """Whether the weights were decided: one backward pass stands for all tasks."""
        return self._decision is not None

    def add(self, task: str, loss: Tensor | float) -> None:
        """Add the loss of one backward pass of ``task``, if the method needs it."""
        if not self.settled and "losses" in self._method.needs:
            self._losses.add(task, loss)

    def drop(self, task: str) -> None:
        """Forget the loss of ``task``."""
        self._losses.drop(task)

    def replace(self, losses: Mapping[str, Tensor | float], ran: Sequence[str]) -> None:
        """Take ``losses`` for those of the step, of the tasks that ``ran``.

        Raises:
            ValueError: for the loss of a task that did not run.
            RuntimeError: when one is missing that the method needs.
        """
        self._losses.replace(losses, ran)
        missing = self._losses.missing(ran)
        if "losses" in self._method.needs and missing:
            raise RuntimeError(
                f"{self._method!r} decides by the tasks' losses, and that of {', '.join(missing)} "
                "is unknown: use optimizer.join(losses), optimizer.task(name, loss=...) or "
                "optimizer.combine(losses={name: ...})"
            )

    def mean(self, device: torch.device, apart: bool = True) -> StepLossMeans:
        """Return the means over the ranks, averaged at the first call.

        Args:
            device: of the parameters.
            apart: whether this rank captures the tasks' gradients apart.
        """
        if self._means is None:
            losses = self._losses.vector(device)
            self._means = self._processes.mean_losses(losses, self._losses.known(), apart)
        return self._means

    def decide(
        self, segments: Sequence[str], device: torch.device, apart: bool | None = None
    ) -> bool:
        """Let a method of the losses decide, unless some rank captures gradients apart.

        Args:
            segments: the S segments' names.
            device: of the parameters.
            apart: whether this rank does; None where it does if a task ran here, or nobody else is
                there: a rank without a task does what the others do.

        Returns:
            Whether the weights were decided.
        """
        assert isinstance(self._method, LossWeighting)
        if apart is None:
            apart = self._processes.count == 1 or any(self._losses.known())
        means = self.mean(device, apart)
        if not means.apart:
            before = self._state.of_method(segments, means.losses.device)
            self._decision = Decision(*self._method.weigh(means.losses, before), before)
        return self.decided

    def factors(self) -> dict[str, Tensor]:
        """Return what each task's loss is to be multiplied by in the one backward pass."""
        assert self._decision is not None
        assert self._means is not None
        return dict(zip(self._tasks, self._decision.weights * self._means.factors, strict=True))

    def keep(
        self, measured: Measured, segments: Sequence[str], conflicts: ConflictStatistics
    ) -> None:
        """Keep the state of a step whose weights were decided here, and count the step."""
        assert self._decision is not None
        assert self._means is not None
        gram, finite = measured.gram, measured.finite
        if not measured.resident and not finite:
            conflicts.skip(gram)
            return
        weights, state, before = self._decision.on(gram.device)
        verdict = Verdict(weights.expand(gram.shape[:-1]), None, state)
        verdict = measured.if_finite(verdict, before)
        rng = self._state.values["rng"]
        self._state.keep(rng, verdict.state, self._state.unmeasured + 1)
        active = torch.tensor(self._means.active, dtype=torch.bool, device="cpu")
        conflicts.update(gram, verdict, segments, active, finite, measured=False)
