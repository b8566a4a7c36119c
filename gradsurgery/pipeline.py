"""The pipeline of a step: capture, measure, decide, apply, each calling only what lies below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from gradsurgery import features as _features
from gradsurgery import grouping as _grouping
from gradsurgery._warnings import warn
from gradsurgery.capture import Capture
from gradsurgery.combine import Measured, apply_, deliver, measure
from gradsurgery.distributed import consistency
from gradsurgery.distributed.averaging import StepDropped
from gradsurgery.distributed.placement import Processes
from gradsurgery.lifecycle import Lifecycle
from gradsurgery.methods import LossWeighting, Method, State, Sum, Verdict
from gradsurgery.methods.order import normal_draws, visiting_order
from gradsurgery.methods.smoothing import Smoothed
from gradsurgery.reuse import Reuse, kept_of
from gradsurgery.scale import StepScale, largest
from gradsurgery.state import SurgeryState
from gradsurgery.statistics import ConflictStatistics
from gradsurgery.transfer import to_device
from gradsurgery.weighted import LossesOfStep

#: The parameters' names, and what grouping makes of them: a segment for each, the segments' names.
_Segmented = tuple[list[str | None], tuple[list[int], list[str]]]


class Pipeline:
    """One optimizer's steps of surgery.

    Args:
        base: the optimizer whose parameters are trained.
        method: decides the weights.
        tasks: the tasks' names, in order.
        grouping: what is compared as one vector.
        named: the parameters' names, where ``base`` does not know them.
        process_group: that the gradients are averaged over, or None.
        task_only: whether gradients of an only task are weighted; None as the method has it.
        reduction: whether the update is divided by the number of tasks.
        smoothing: of the Gram matrix's running mean, 0 for none.
        observe_every: the steps after which a method of the losses has its gradients measured.
        every: the steps after which weights are decided anew.
    """

    def __init__(
        self,
        base: Optimizer,
        method: Method,
        tasks: Sequence[str],
        grouping: _grouping.Grouping,
        named: Mapping[Tensor, str],
        process_group: dist.ProcessGroup | None,
        task_only: Literal["plain", "weighted"] | None = None,
        reduction: Literal["sum", "mean"] = "sum",
        smoothing: float = 0.0,
        observe_every: int | None = None,
        every: int = 1,
    ) -> None:
        _grouping.resolve(grouping)
        if isinstance(method, LossWeighting):
            _refuse_gradient_options(method, task_only, reduction, smoothing, every)
        if smoothing != 0:
            method = Smoothed(method, smoothing)
        self._base, self._method, self._tasks = base, method, tuple(tasks)
        self._task_only, self._reduction = task_only or method.task_only, reduction
        #: Whether the method is shown the Gram matrix without the loss scale; a mean over steps
        #: would otherwise mix the scales of all of them.
        self._unscales = method.degree != 1 or smoothing != 0
        self._grouping, self.named = grouping, dict(named)
        self.conflicts = ConflictStatistics(self._tasks, repr(method))
        self._feature_leaves: list[Tensor] = []  # while a backward with features runs
        settings = _settings(self._tasks, method, (self._task_only, self._reduction))
        shapes = [(tuple(p.shape), p.dtype) for p in self.parameters()]
        self.processes = Processes(process_group, self._tasks, {**settings, "parameters": shapes})
        self._segmented: _Segmented = ([], ([], []))
        self._coded: tuple[_Segmented | None, str] = (None, "")
        self._observe_every, self.every = observe_every, every
        self.dropped = 0  # steps that another rank has dropped
        counting, segments = observe_every is not None or every > 1, self.segments()[1]
        self.state = SurgeryState(base, method, tasks, segments, counting)
        self._begin()

    def _begin(self) -> None:
        """Start without a step under way."""
        self._capture, self._scale = Capture(self._tasks), StepScale(self._tasks)
        self._losses = LossesOfStep(self._method, self._tasks, self.processes, self.state)
        mean = self._reduction == "mean"
        self._reuse = Reuse(self.every, self._tasks, mean, self.processes, self.state)
        #: What decides before the backward on weights for the losses, if anything does.
        self._ahead = self._losses if isinstance(self._method, LossWeighting) else self._reuse
        self.seen_graph = False  # of joined losses, which is looked at once
        self.combined_in = -1  # the backward in which a joined loss was last combined
        self.lifecycle = Lifecycle()

    def __getstate__(self) -> dict[str, Any]:
        transient = ("_capture", "_scale", "_losses", "_reuse", "_ahead", "lifecycle")
        return {name: value for name, value in vars(self).items() if name not in transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    # ------------------------------------------------------------------ capture

    @contextmanager
    def task(
        self,
        name: str,
        *,
        sync: bool = True,
        loss: Tensor | float | None = None,
        factor: Tensor | None = None,
        weighted: bool = False,
    ) -> Iterator[None]:
        """Capture the gradients of the backward passes run inside, for task ``name``; ``weighted``,
        as the one that stands for all."""
        parameters = self.parameters()
        self._capture.check_open(name)
        self._drop_skipped(f"task {name!r}")
        if not weighted:
            self._reuse.refuse_apart(name)
        try:
            with self._capture.record(name, parameters):
                self.processes.begin(name, parameters)
                yield
                if loss is not None:
                    self._losses.add(name, loss)
                if factor is not None and self._needs_scale():
                    self._scale.add(name, factor)
        except BaseException as error:
            self._losses.drop(name)
            self._scale.drop(name)
            self.processes.failed(name)
            if not self.processes.averages:  # else part of the step may be on its way
                self.drop(f"task {name!r} raised {type(error).__name__}")
            raise
        self.lifecycle.captured(name, self._capture.grads[name])
        if self._reuse.open or (self._ahead is self._losses and not self._losses.settled):
            sync = False  # ranks that run one backward pass ask for the losses first
        for sent in self.processes.captured(name, self._capture.grads, parameters, sync):
            self._capture.hand_over(*sent)

    @contextmanager
    def feature_leaves(self, leaves: Sequence[Tensor]) -> Iterator[None]:
        """Count the leaves that bear the gradients at features among the parameters."""
        self.refuse_waiting("features are joined")
        self._feature_leaves = list(leaves)
        try:
            yield
        finally:
            self._feature_leaves = []

    def begin_step(self) -> None:
        """Check that the base may step on what ``.grad`` holds.

        Raises:
            RuntimeError: when captured gradients wait, or a delivery was cut.
        """
        self.refuse_waiting()
        self.lifecycle.begin_step(self.parameters)

    def refuse_waiting(self, until: str = "step()") -> None:
        """Refuse to go on while captured gradients wait.

        Raises:
            RuntimeError: when they do.
        """
        waiting = self._capture.waiting
        if waiting:
            tasks = f"tasks {', '.join(waiting)} have" if waiting[1:] else f"task {waiting[0]} has"
            raise RuntimeError(
                f"{tasks} captured gradients that were not combined: call combine() before "
                f"{until}, or zero_grad() to drop them"
            )

    def refuse_open(self, call: str) -> None:
        """Refuse a call inside an open task.

        Raises:
            RuntimeError: when one is open, here or in another optimizer of the same parameters.
        """
        self._capture.refuse_open(call, self.parameters)

    def drop(self, why: str) -> None:
        """Forget the step under way; tasks that the next combination misses for it are told of."""
        self.lifecycle.dropped(self._capture.waiting, why)
        self.discard()

    def _drop_skipped(self, before: str) -> None:
        """Forget the step under way if its gradients were cleared: the batch was skipped."""
        if self.lifecycle.skipped():
            self.drop(f"gradients were cleared before {before}")

    def discard(self, begin: bool = False) -> None:
        """Forget the step under way; ``.grad`` stays as it is.

        Args:
            begin: over a process group, have the other ranks drop a step that this one has not
                begun.
        """
        self.lifecycle.settle()
        self._capture.clear()
        self._losses.clear()
        self._reuse.clear()
        self._scale.clear()
        self.processes.drop(self.parameters(), begin)

    def _dropped(self, by: str) -> None:
        """Forget a step that another rank has dropped; nothing is left in ``.grad``."""
        for parameter in self.parameters():
            parameter.grad = None
        self.discard()
        self.lifecycle.zeroed()
        warn(
            f"{by} dropped this step, so all ranks do: .grad is None, and step() changes nothing. "
            "Told once; optimizer.dropped counts such steps"
        )

    # ------------------------------------------------------------------ measure, decide, apply

    @torch.no_grad()  # as in join's backward: small operators are a quarter faster
    def combine(
        self,
        losses: Mapping[str, Tensor | float] | None = None,
        scale: Tensor | float | None = None,
    ) -> None:
        """Combine what was captured, into ``.grad``."""
        self.refuse_open("combine()")
        try:
            self._combine(losses, scale)
        except StepDropped as dropped:
            self.dropped += 1
            self._dropped(str(dropped))
        except BaseException:
            self._losses.reopen()
            raise

    def _combine(
        self, losses: Mapping[str, Tensor | float] | None, scale: Tensor | float | None
    ) -> None:
        parameters = self.parameters()
        _refuse_graph_capture(parameters[0].device)
        reason = self.lifecycle.reason()
        self.lifecycle.begin_combine(self._capture.waiting, parameters)
        segments, names = self.segments()
        apart = self.processes.count == 1 or bool(self._capture.waiting)
        self._reuse.decide(self._capture.waiting, parameters, apart)
        if not self._losses.settled and not self._reuse.decided:
            self._losses.replace(losses or {}, self._capture.waiting)
            if isinstance(self._method, LossWeighting):
                self._losses.decide(names, parameters[0].device)
        if self._needs_scale():
            self._scale.settle(self._capture.waiting, scale)
        for sent in self.processes.flush(self._capture.grads, parameters):
            self._capture.hand_over(*sent)
        common = self._common() if self.processes.count > 1 else {}
        gradients = self.processes.gather(self._capture.grads, parameters, common)
        if gradients.averaged:
            self._capture.clear()
        if not any(gradients.active):
            raise RuntimeError(
                "combine() found nothing captured: run each task's backward inside "
                "optimizer.task(name), or use optimizer.join(losses).backward()"
                + (f" (dropped were {reason})" if reason else "")
            )
        measured = measure(
            gradients.columns, segments, len(names), len(self._tasks), gradients.placement
        )
        if not self._ahead.decided:
            active = torch.tensor(gradients.active, dtype=torch.bool, device="cpu")
            weights = self._decide(measured, names, active)
            alone = self._alone(measured, weights)
            if self._reduction == "mean":
                weights = weights / sum(gradients.active)
            if not isinstance(self._method, LossWeighting | Sum):  # which want no two to meet
                self.lifecycle.compared(measured.shared, sum(gradients.active))
            # From here on the gradients are overwritten, and cannot be combined a second time.
            self.discard()
            self.lifecycle.begin_delivery()
            combined = apply_(measured, weights, alone)
        else:
            self._ahead.keep(measured, names, self.conflicts)
            own = self._reuse.own_factors
            self.discard()
            self.lifecycle.begin_delivery()
            combined = [column[0] if column else None for column in measured.grads]
            for p, factor in own.items():
                for weighted in measured.grads[p]:
                    weighted.mul_(factor)
        update = gradients.placement.restored(combined)
        for parameter, grad in zip(parameters, update, strict=True):
            if grad is not None:
                deliver(parameter, grad)
        self.lifecycle.delivered()

    def weigh(self, losses: Mapping[str, Tensor], combine: bool) -> bool:
        """Decide on weights for the losses of the step that begins, if the losses are all that the
        method needs, or the last measured step left weights to reuse.

        Args:
            losses: by task.
            combine: whether these are all losses of the step.

        Returns:
            Whether one backward pass of weighted losses will do, see :meth:`weighted`. No when the
            gradients are to be measured, or were captured apart by a micro-batch, on any rank.
        """
        self._drop_skipped("a joined loss ran")
        if self._ahead is self._reuse:
            return self._reuses(losses, combine)
        every = self._observe_every
        due = every is not None and self.state.unmeasured + 1 >= every
        if not combine or self._capture.waiting or due:
            return False
        parameters = self._begun(losses)
        for name, loss in losses.items():
            self._losses.add(name, loss)
        return self._losses.decide(self.segments()[1], parameters[0].device, apart=False)

    def _reuses(self, losses: Mapping[str, Tensor], combine: bool) -> bool:
        """Return whether the step reuses weights. With a process group its micro-batches do not:
        ranks would have to know all tasks of the step at the first."""
        if self._reuse.possible:
            for name in losses:
                self._reuse.check_task(name)
            parameters = self._begun(losses)
            apart = bool(self._capture.waiting) or (self.processes.averages and not combine)
            self._reuse.decide(losses, parameters, apart)
        return self._reuse.decided

    def _begun(self, losses: Mapping[str, Tensor]) -> list[Tensor]:
        """Take note of the tasks whose losses one backward pass may stand for."""
        parameters = self.parameters()
        for name in losses:
            self.processes.begin(name, parameters)
            self.lifecycle.captured(name, {})
        return parameters

    @contextmanager
    def weighted(self) -> Iterator[dict[str, Tensor]]:
        """Hand out the losses' weights, and capture the one backward pass of their sum."""
        with self.task(self._tasks[0], weighted=True):
            yield self._ahead.factors()

    def _decide(self, measured: Measured, segments: Sequence[str], active: Tensor) -> Tensor:
        """Let the method decide, keep its state, and count; return the weights, ``[S, K]``."""
        gram, finite = measured.gram, measured.finite
        # A mean over steps would mix the factors of all of them.
        lost = measured.factor != 1 and isinstance(self._method, Smoothed)
        if not measured.resident and (not finite or lost):
            self.processes.compare(active, gram)
            return self._skipped(gram)
        scale = self._step_scale(gram.device) if self._needs_scale() else None
        facts, rng = self._facts(measured, scale)
        before = self.state.of_method(segments, gram.device)
        verdict = self._verdict(measured, before, facts, scale)
        self.processes.compare(active, gram, facts.get("order"), verdict.weights)
        decided = verdict.weights.isfinite().all()
        if not measured.resident and not decided:
            return self._skipped(gram)
        measured = measured._replace(finite=finite & decided)
        verdict = measured.if_finite(verdict, before)
        kept = None
        if self.every > 1:
            own = self._alone(measured, verdict.weights)
            kept = kept_of(measured, verdict, own, active.tolist(), self.parameters())
        self.state.keep(rng, verdict.state, kept=kept)
        self.conflicts.update(
            gram, verdict, segments, active, measured.finite, factor=measured.factor
        )
        return verdict.weights

    def _skipped(self, gram: Tensor) -> Tensor:
        """Count a step that is not finite; return the weights of its plain sum, ``[S, K]``."""
        self.conflicts.skip(gram)
        return torch.ones(gram.shape[:-1], dtype=gram.dtype, device=gram.device)

    def _verdict(
        self, measured: Measured, state: State, facts: dict[str, Tensor], scale: Tensor | None
    ) -> Verdict:
        gram = measured.gram
        if self._unscales and scale is not None:
            gram = gram / scale.square()
        if measured.resident:
            from gradsurgery.methods import fused  # needs triton

            return fused.decide(self._method, gram, state, facts)
        verdict = self._method(gram, state=state, **facts)
        if measured.factor == 1:
            return verdict
        # Of the gradients times the factor: their update is factor**degree times what it is to be.
        root = measured.factor ** ((1 - self._method.degree) / 2)
        return verdict._replace(weights=verdict.weights * root * root)

    def _alone(self, measured: Measured, weights: Tensor) -> Tensor | None:
        """Return the weights of gradients of an only task, ``[S, K]``, or None for plain ones."""
        if self._task_only == "plain":
            return None
        if self._method.task_only == "weighted":  # these weights are the losses', in all segments
            return weights
        # A task that shares nothing in a segment has no weight there.
        return torch.where(to_device(measured.present(), weights.device), weights, 1.0)

    def _needs_scale(self) -> bool:
        return self._unscales or "scale" in self._method.needs

    def _step_scale(self, device: torch.device) -> Tensor:
        """Return the factor that the gradients of the step carry, on all ranks the same."""
        return largest(self.processes.mean_factors(self._scale.vector(device))).to(device)

    def _facts(self, measured: Measured, scale: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Return the facts that the method needs, and the generator's next state."""
        needs, device = self._method.needs, measured.gram.device
        rng: Tensor = self.state.values["rng"]
        facts = {}
        if "order" in needs:
            order, rng = visiting_order(rng, len(self._tasks))
            facts["order"] = to_device(order, device)
        if "draws" in needs:
            draws, rng = normal_draws(rng, len(self._tasks))
            facts["draws"] = to_device(draws, device)
        if "present" in needs:
            facts["present"] = to_device(measured.present(), device)
        if "losses" in needs:
            losses = self._losses.mean(self.parameters()[0].device).losses
            facts["losses"] = losses.to(device)
        if "scale" in needs and scale is not None:
            carried = measured.factor if self._method.degree == 1 else 1.0
            facts["scale"] = scale * carried
        return facts, rng

    # ------------------------------------------------------------------ parameters and segments

    def parameters(self) -> list[Tensor]:
        """Return the parameters as the groups hold them now: FSDP2 swaps them, so none is kept."""
        trained = [p for group in self._base.param_groups for p in group["params"]]
        return trained + self._feature_leaves

    def names(self) -> list[str | None]:
        """Return the parameters' names, None where unknown."""
        return _grouping.names(self._base.param_groups, self.named)

    def numbered(self) -> bool:
        """Whether segments go by the positions of parameters without names."""
        return self._grouping == "tensor" and None in self.names()

    def segments(self) -> tuple[list[int], list[str]]:
        """Return each parameter's segment, and the segments' names.

        A segment keeps its index for good, and so its part of the state: users delete parameter
        groups, reverse them, and bring them back.
        """
        names = self.names()
        if names != self._segmented[0]:
            known = self._segmented[1][1]
            segmented = _grouping.segments(names, self._grouping, known)
            if self.every > 1 and len(segmented[1]) > 1:
                raise ValueError(
                    f"every={self.every} reuses one weight for each task, and grouping="
                    f"{self._grouping!r} makes {len(segmented[1])} segments "
                    f"({', '.join(segmented[1][:3])}, ..), each with its own weights: use grouping="
                    "'model', or leave every out"
                )
            self._segmented = names, segmented
        indices, labels = self._segmented[1]
        if self._feature_leaves:
            at_features = self.feature_segment(labels)
            return indices + [at_features] * len(self._feature_leaves), labels
        return indices, labels

    def feature_segment(self, labels: Sequence[str]) -> int:
        """Return the segment of features among ``labels``."""
        return _features.segment(self._grouping, labels)

    def _common(self) -> dict[str, object]:
        """Return what the optimizers of all ranks must have in common, by what it is called."""
        values = self.state.values
        facts = {
            **_settings(self._tasks, self._method, (self._task_only, self._reduction)),
            "observe_every and every": (self._observe_every, self.every),
            "segments": self._segments_code(),
            "visiting order": values["rng"],
        }
        if self.processes.starts:
            state = sorted(values.items())
            facts |= {f"{name} of the method": value for name, value in state if name != "rng"}
        return facts

    def _segments_code(self) -> str:
        """Return a fingerprint of the segments, made when they are."""
        if self._coded[0] is not self._segmented:
            code = consistency.fingerprint(self._segmented)
            self._coded = self._segmented, f"fingerprint {code:05x}"
        return self._coded[1]


def _settings(
    tasks: Sequence[str], method: Method, options: tuple[object, ...]
) -> dict[str, object]:
    return {
        "tasks": tuple(tasks),
        "method": consistency.settings_of(method),
        "task_only and reduction": options,
    }


def _refuse_gradient_options(
    method: Method, task_only: str | None, reduction: str, smoothing: float, every: int
) -> None:
    refused = {
        "task_only='plain'": task_only == "plain",
        "reduction='mean'": reduction == "mean",
        f"smoothing={smoothing}": smoothing != 0,
        f"every={every}": every > 1,
    }
    for option, chosen in refused.items():
        if chosen:
            raise ValueError(
                f"{option} does not go with {method!r}, which weights the losses before one "
                "backward pass and knows neither the tasks' gradients nor their Gram matrix; for "
                "a mean over the tasks, divide the joined loss"
            )


def _refuse_graph_capture(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "combine() cannot be part of a CUDA graph: the host draws the visiting order and looks "
            "up the gradients' addresses at every step. Call combine() and step() outside of the "
            "graph"
        )
