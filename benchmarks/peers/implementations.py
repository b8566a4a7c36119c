"""Other implementations behind one interface: given gradients in, ``.grad`` out.

No peer is a dependency: each is imported when it is used. Each works in its own way, through its
public functions, and keeps what it was given; where its way does not fit, the adapter favours the
peer, and its note says how.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.harness import Candidate
from benchmarks.peers.fixed_gradients import Given, GivenLoss
from benchmarks.peers.naive_pcgrad import flatten_and_loop
from gradsurgery import GradientSurgery, GradVac, Method, PCGrad

#: LibMTL's GradVac has no rate of its own; this is what its trainer passes unless told otherwise.
BETA = 0.5

INSTALL = {
    "torchjd": "pip install torchjd==0.18.0",
    "pytorch_optimizer": "pip install pytorch-optimizer==4.1.0",
    # Its requirement torchvision is for models that the comparison does not touch.
    "LibMTL": "pip install --no-deps LibMTL==1.1.5",
}


def ours(given: Given, method: Callable[[], Method]) -> Candidate:
    """Capture and combine, on a first gradient of its own, since it is overwritten."""
    tasks = [f"task {k}" for k in range(len(given.grads))]
    optimizer = GradientSurgery(torch.optim.SGD(given.named), method(), tasks=tasks)
    mine = [grad.clone() for grad in given.grads[0]]
    grads = [mine, *given.grads[1:]]

    def run() -> None:
        for name, task in zip(tasks, grads, strict=True):
            with optimizer.task(name):
                given.deliver(task)
        optimizer.combine()

    return Candidate(run, partial(_restore, given, mine))


def plain_sum(given: Given) -> Candidate:
    """What autograd does: the first gradient is kept, the others are added to it."""
    mine = [grad.clone() for grad in given.grads[0]]

    def run() -> None:
        for column in zip(mine, *given.grads[1:], strict=True):
            for other in column[1:]:
                column[0].add_(other)
        given.deliver(mine)

    return Candidate(run, partial(_restore, given, mine))


def _restore(given: Given, mine: Sequence[Tensor]) -> None:
    given.clear()
    for grad, first in zip(mine, given.grads[0], strict=True):
        grad.copy_(first)


def loop(given: Given, masks: bool) -> Candidate:
    """Flatten and loop."""
    return Candidate(
        lambda: given.deliver(flatten_and_loop(given.grads, masks)), prepare=given.clear
    )


def torchjd(given: Given, gramian: bool) -> Candidate:
    """torchjd's ``jac_to_grad`` with its PCGrad, as it comes or on Gramians."""
    aggregation = importlib.import_module("torchjd.aggregation")
    autojac = importlib.import_module("torchjd.autojac")
    aggregator = aggregation.PCGrad()

    def prepare() -> None:
        given.clear()
        for parameter, jacobian in zip(given.parameters, given.jacobians, strict=True):
            parameter.jac = jacobian  # type: ignore[attr-defined]

    def run() -> None:
        autojac.jac_to_grad(given.parameters, aggregator, optimize_gramian_computation=gramian)

    return Candidate(run, prepare)


def pytorch_optimizer(given: Given) -> Candidate:
    """pytorch-optimizer's PCGrad wrapper; by default it takes the mean, here the sum."""
    package = importlib.import_module("pytorch_optimizer")
    optimizer = package.PCGrad(torch.optim.SGD(given.named), reduction="sum")
    losses = [GivenLoss(given, task) for task in range(len(given.grads))]
    return Candidate(lambda: optimizer.pc_backward(losses), prepare=given.clear)


def libmtl(given: Given, method: str) -> Candidate:
    """LibMTL's weighting class ``method``, without its trainer."""
    weighting = libmtl_weighting(method, given.parameters, len(given.grads), zero=False)
    losses = [GivenLoss(given, task) for task in range(len(given.grads))]
    return Candidate(lambda: weighting.backward(losses, beta=BETA), prepare=given.clear)


def libmtl_weighting(method: str, shared: Sequence[nn.Parameter], tasks: int, zero: bool) -> Any:
    """Return a LibMTL weighting over ``shared``, with the few attributes its trainer would add.

    Args:
        method: the class and module name in ``LibMTL.weighting``.
        shared: the parameters that all tasks use.
        tasks: K.
        zero: whether its call to zero the gradients zeroes them, in place: it goes on to write into
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


class Peer(NamedTuple):
    """One row of the table.

    Attributes:
        name: in the table.
        build: makes the candidate; raises ImportError where the package is missing.
        package: what is imported; empty for code of this repository.
        same_as: the method whose update it has to deliver, None for a row that is no surgery or
            is what the others are compared with.
        note: what differs.
    """

    name: str
    build: Callable[[Given], Candidate]
    package: str = ""
    same_as: Callable[[], Method] | None = PCGrad
    note: str = ""


def vaccine() -> Method:
    """Return GradVac as LibMTL has it."""
    return GradVac(BETA, update="on_alter")


OURS = "gradsurgery PCGrad"

PEERS = [
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
