"""Reuse: steps that keep the last measured step's weights and run one backward pass, PSMGD.

A measured step runs K backward passes and decides the weights w. The R - 1 steps after it run one,
of sum_k w_k loss_k (Xu, Ju, Liu and Yang, "PSMGD: Periodic Stochastic Multi-Gradient Descent for
Fast Multi-Objective Optimization", AAAI 2025). A parameter of an only task k receives
w_k g_k in that pass, and is divided by w_k after it: its gradient is what it is in a measured step.
Which parameters have an only task is what the measured step saw.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from gradsurgery._warnings import warn
from gradsurgery.combine import Measured
from gradsurgery.distributed.averaging import StepLossMeans
from gradsurgery.distributed.placement import Processes
from gradsurgery.kept import FROZEN, SHARED, UNUSED, Kept
from gradsurgery.methods import Verdict
from gradsurgery.state import SurgeryState
from gradsurgery.statistics import ConflictStatistics
from gradsurgery.transfer import to_device


class Reuse:
    """The step under way, as one that may reuse the weights of the last measured step.

    Args:
        every: the steps R of a cycle, of which the first is measured.
        tasks: the tasks' names, in order.
        mean: whether the update of shared parameters is divided by the number of tasks.
        processes: the ranks.
        state: of surgery, with the weights kept and the steps since.
    """

    def __init__(
        self,
        every: int,
        tasks: Sequence[str],
        mean: bool,
        processes: Processes,
        state: SurgeryState,
    ) -> None:
        self._every, self._tasks, self._mean = every, tuple(tasks), mean
        self._processes, self._state = processes, state
        self.clear()

    def clear(self) -> None:
        """Forget the step under way."""
        self._means: StepLossMeans | None = None
        self._decided: Kept | None = None
        #: What gradients of parameters with an only task are to be multiplied by, where not one.
        self.own_factors: dict[int, float] = {}

    @property
    def possible(self) -> bool:
        """Whether weights are there, and not to be measured anew; the same on all ranks."""
        if self._every == 1 or self._state.kept is None:
            return False
        return self._state.unmeasured + 1 < self._every

    @property
    def open(self) -> bool:
        """Whether it is still to be decided if the step reuses weights."""
        return self._means is None and self.possible

    @property
    def decided(self) -> bool:
        """Whether it does: one backward pass stands for all tasks."""
        return self._decided is not None

    def decide(self, ran: Collection[str], parameters: Sequence[Tensor], apart: bool) -> None:
        """Decide whether the step reuses weights, all ranks alike, if that is :attr:`open`.

        Args:
            ran: the tasks of the step here, or of its first micro-batch.
            parameters: of the optimizer.
            apart: whether this rank captures the tasks' gradients apart.

        Raises:
            RuntimeError: where DDP averages the gradients, and nothing tells what other ranks do.
        """
        if self._every > 1 and not self._processes.agrees:
            raise RuntimeError(
                f"every={self._every} under DistributedDataParallel's own averaging: the ranks "
                "cannot agree to run one backward pass. Pass process_group=dist.group.WORLD to "
                "GradientSurgery and run forward and backward inside ddp.no_sync(), or leave every "
                "out"
            )
        if not self.open:
            return
        kept = self._state.kept
        assert kept is not None
        none = torch.zeros(len(self._tasks), dtype=torch.float64, device=parameters[0].device)
        present = [task in ran for task in self._tasks]
        apart = apart or not kept.fit(parameters)
        self._means = self._processes.mean_losses(none, present, apart)
        same = self._means.active == kept.active
        factors = kept.own_factors(self._divisor(kept))
        if same and not self._means.apart and factors is not None:
            self._decided, self.own_factors = kept, factors

    def check_task(self, task: str) -> None:
        """Check that a later micro-batch of a step with one backward pass may have ``task``.

        Raises:
            RuntimeError: for a task without a kept weight.
        """
        kept = self._decided
        if kept is not None and not kept.active[self._tasks.index(task)]:
            raise RuntimeError(
                f"task {task!r} joined a step that reuses weights (every={self._every}) after its "
                "first micro-batch, and has none from the last measured step: give the first "
                "micro-batch of a step all of its tasks, or leave every out"
            )

    def refuse_apart(self, task: str) -> None:
        """Refuse a task of its own in a step whose earlier micro-batches had one backward pass.

        Raises:
            RuntimeError: in such a step.
        """
        if self.decided:
            raise RuntimeError(
                f"task({task!r}) after join(combine=False) in a step that reuses weights (every="
                f"{self._every}): run all micro-batches of a step the same way, or leave every out"
            )

    def factors(self) -> dict[str, Tensor]:
        """Return what each task's loss is to be multiplied by in the one backward pass."""
        assert self._decided is not None
        assert self._means is not None
        weights = self._decided.loss_weights(self._divisor(self._decided))
        shares = self._means.factors.cpu()
        values = torch.tensor(weights, dtype=torch.float64, device="cpu") * shares
        return dict(zip(self._tasks, values, strict=True))

    def keep(
        self, measured: Measured, segments: Sequence[str], conflicts: ConflictStatistics
    ) -> None:
        """Count a step that reused weights; tell of parameters that the measured one did not use,
        and measure the next."""
        kept = self._decided
        assert kept is not None
        unknown = [p for p in kept.unused if measured.grads[p]]
        if unknown:
            self._state.forget()
            warn(
                f"{len(unknown)} of the parameters have a gradient in a step that reuses weights "
                f"(every={self._every}), and had none in the measured one: no one can tell "
                "whose it is, so they count as shared in this step, and the next is measured. "
                "Where a model uses other parameters from step to step, leave every out"
            )
        gram, finite = measured.gram, measured.finite
        if not measured.resident and not finite:
            conflicts.skip()
            return
        weights = torch.tensor(kept.weights, dtype=torch.float64, device="cpu")
        altered = torch.zeros(gram.shape, dtype=torch.bool, device=gram.device)
        verdict = Verdict(
            to_device(weights, gram.device).expand(gram.shape[:-1]),
            altered if kept.alters else None,
            self._state.of_method(segments, gram.device),
        )
        if not unknown:
            self._state.reused()
        shared = torch.tensor(kept.shared, dtype=torch.bool, device="cpu")
        conflicts.update(gram, verdict, segments, shared, finite, measured=False)

    def _divisor(self, kept: Kept) -> int:
        return sum(kept.active) if self._mean else 1


def kept_of(
    measured: Measured,
    verdict: Verdict,
    own: Tensor | None,
    active: Sequence[bool],
    parameters: Sequence[Tensor],
) -> Kept:
    """Return what a measured step leaves for the steps after it.

    Args:
        measured: the gradients, of one segment.
        verdict: on them.
        own: ``[1, K]`` float64, the weights of gradients of an only task; None for ones.
        active: for each task, whether it ran, on any rank.
        parameters: of the optimizer.
    """
    columns = iter(measured.alone)
    owners = []
    for parameter, grads in zip(parameters, measured.grads, strict=True):
        if len(grads) > 1:
            owners.append(SHARED)
        elif grads:
            owners.append([grad is not None for grad in next(columns)].index(True))
        else:
            owners.append(UNUSED if parameter.requires_grad else FROZEN)
    weights = verdict.weights[0]
    alone = torch.ones_like(weights) if own is None else own[0]
    shared = measured.present()[0].tolist()
    alters = verdict.altered is not None
    return Kept(weights, alone, measured.finite, active, shared, owners, alters)
