"""Other implementations behind one interface: fixed gradients in, ``.grad`` out.

No peer is a dependency: each is imported when it is used. Each works in its own way, through its
public functions, and keeps its inputs; where its way does not fit, the adapter favours the peer,
and its note says how.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.peers.naive_pcgrad import flatten_and_loop
from benchmarks.peers.peer import OURS, Peer
from benchmarks.problems.gradients import FixedGradients
from benchmarks.timing import Candidate
from gradsurgery import GradientSurgery, GradVac, Method, PCGrad

#: LibMTL's GradVac has no default for its rate; this is what its trainer passes unless told
#: otherwise.
BETA = 0.5


class FixedLoss:
    """Takes a loss's place: its backward only puts one task's gradients into ``.grad``."""

    def __init__(self, fixed: FixedGradients, task: int) -> None:
        self._fixed, self._task = fixed, task

    def backward(self, retain_graph: bool = False) -> None:
        """Fill ``.grad``, with tensors that can be re-pointed but share the gradients' memory."""
        self._fixed.deliver([grad.detach() for grad in self._fixed.grads[self._task]])


def fixed_losses(fixed: FixedGradients) -> list[FixedLoss]:
    """Return a loss for each task."""
    return [FixedLoss(fixed, task) for task in range(len(fixed.grads))]


def ours(fixed: FixedGradients, method: Callable[[], Method]) -> Candidate:
    """Capture and combine, on a copy of the first gradient, since it is overwritten."""
    optimizer = GradientSurgery(torch.optim.SGD(fixed.named), method(), tasks=fixed.tasks)
    update = [grad.clone() for grad in fixed.grads[0]]
    grads = [update, *fixed.grads[1:]]

    def run() -> None:
        for name, task in zip(fixed.tasks, grads, strict=True):
            with optimizer.task(name):
                fixed.deliver(task)
        optimizer.combine()

    return Candidate(run, partial(_restore, fixed, update))


def plain_sum(fixed: FixedGradients) -> Candidate:
    """Add up as autograd does: the first gradient is kept, the others are added to it."""
    update = [grad.clone() for grad in fixed.grads[0]]

    def run() -> None:
        for column in zip(update, *fixed.grads[1:], strict=True):
            for other in column[1:]:
                column[0].add_(other)
        fixed.deliver(update)

    return Candidate(run, partial(_restore, fixed, update))


def _restore(fixed: FixedGradients, update: Sequence[Tensor]) -> None:
    fixed.clear()
    for grad, first in zip(update, fixed.grads[0], strict=True):
        grad.copy_(first)


def loop(fixed: FixedGradients, masks: bool) -> Candidate:
    """Flatten and loop."""
    return Candidate(
        lambda: fixed.deliver(flatten_and_loop(fixed.grads, masks)), prepare=fixed.clear
    )


def torchjd(fixed: FixedGradients, gramian: bool) -> Candidate:
    """Run torchjd's ``jac_to_grad`` with its PCGrad, as it comes or on Gramians."""
    aggregation = importlib.import_module("torchjd.aggregation")
    autojac = importlib.import_module("torchjd.autojac")
    aggregator = aggregation.PCGrad()

    def prepare() -> None:
        fixed.clear()
        for parameter, jacobian in zip(fixed.parameters, fixed.jacobians, strict=True):
            parameter.jac = jacobian  # type: ignore[attr-defined]

    def run() -> None:
        autojac.jac_to_grad(fixed.parameters, aggregator, optimize_gramian_computation=gramian)

    return Candidate(run, prepare)


def pytorch_optimizer(fixed: FixedGradients) -> Candidate:
    """pytorch-optimizer's PCGrad wrapper; by default it takes the mean, here the sum."""
    package = importlib.import_module("pytorch_optimizer")
    optimizer = package.PCGrad(torch.optim.SGD(fixed.named), reduction="sum")
    losses = fixed_losses(fixed)
    return Candidate(lambda: optimizer.pc_backward(losses), prepare=fixed.clear)


def libmtl(fixed: FixedGradients, method: str) -> Candidate:
    """LibMTL's weighting class ``method``, without its trainer."""
    weighting = libmtl_weighting(method, fixed.parameters, len(fixed.grads), zero=False)
    losses = fixed_losses(fixed)
    return Candidate(lambda: weighting.backward(losses, beta=BETA), prepare=fixed.clear)


def libmtl_weighting(method: str, shared: Sequence[nn.Parameter], tasks: int, zero: bool) -> Any:
    """Return a LibMTL weighting over ``shared``, with the few attributes its trainer would add.

    With ``zero`` its call to zero the gradients zeroes them, in place: it goes on to write into
    them, so that torch's later habit of dropping them would break it.
    """

    class Weighting(_libmtl_class(method)):  # type: ignore[misc]
        task_num, rep_grad, device = tasks, False, shared[0].device

        def get_share_params(self) -> Iterator[nn.Parameter]:
            return iter(shared)

        def zero_grad_share_params(self) -> None:
            for parameter in shared if zero else ():
                assert parameter.grad is not None
                parameter.grad.zero_()

    return Weighting()


def _libmtl_class(method: str) -> Any:
    """Import one weighting; LibMTL as a whole needs torchvision modules that no longer exist."""
    spec = importlib.util.find_spec("LibMTL")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'LibMTL'", name="LibMTL")
    [root] = spec.submodule_search_locations
    hollow = {name: ModuleType(name) for name in ("LibMTL", "LibMTL.weighting")}
    hollow["LibMTL"].__path__ = [root]
    hollow["LibMTL.weighting"].__path__ = [f"{root}/weighting"]
    with mock.patch.dict(sys.modules, hollow):
        return getattr(importlib.import_module(f"LibMTL.weighting.{method}"), method)


def vaccine() -> Method:
    """Return GradVac as LibMTL has it."""
    return GradVac(BETA, update="on_alter")


PEERS: list[Peer[FixedGradients, Candidate]] = [
    Peer(OURS, partial(ours, method=PCGrad), same_as=None),
    Peer("gradsurgery GradVac", partial(ours, method=vaccine), same_as=None),
    Peer("plain sum", plain_sum, same_as=None, note="no surgery: adds the gradients up"),
    Peer(
        "torchjd, as it comes",
        partial(torchjd, gramian=False),
        "torchjd",
        note="jac_to_grad with PCGrad; it is handed the gradients stacked, untimed, as its "
        "backward would leave them",
    ),
    Peer(
        "torchjd, gramian path",
        partial(torchjd, gramian=True),
        "torchjd",
        note="the same with optimize_gramian_computation=True",
    ),
    Peer(
        "pytorch-optimizer PCGrad",
        pytorch_optimizer,
        "pytorch_optimizer",
        note="reduction='sum' instead of its 'mean'; a task also visits itself, which changes "
        "nothing unless projections have turned it against itself",
    ),
    Peer(
        "LibMTL PCGrad",
        partial(libmtl, method="PCGrad"),
        "LibMTL",
        note="its trainer needs a CUDA device and modules that torchvision no longer has, so its "
        "weighting class runs on a stub, which zeroes nothing; a task also visits itself",
    ),
    Peer(
        "LibMTL GradVac",
        partial(libmtl, method="GradVac"),
        "LibMTL",
        same_as=vaccine,
        note="as LibMTL PCGrad; departs from the paper: a target moves only when the gradient was "
        f"altered, so it is compared with GradVac({BETA}, update='on_alter')",
    ),
    Peer(
        "flatten and loop",
        partial(loop, masks=False),
        note="written here as most repositories do it: flattened copies, torch.dot pair by pair",
    ),
    Peer(
        "flatten and loop, with masks",
        partial(loop, masks=True),
        note="the same with the masks of what each task reaches that most of them carry",
    ),
]
