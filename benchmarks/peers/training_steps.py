"""Other implementations in a training step: losses on a shared batch in, ``.grad`` out.

As :mod:`benchmarks.peers.implementations`, with real backward passes. Every peer works on the
encoder's parameters, which all tasks share; the heads have one task each.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, autograd, nn
from torch.optim import SGD, Optimizer

from benchmarks.peers.implementations import OURS, libmtl_weighting
from benchmarks.peers.naive_pcgrad import flatten_and_loop
from benchmarks.steps import TASKS, MultiTask, Problem, adamw
from gradsurgery import GradientSurgery, GradVac, Method, PCGrad


class Trainer(NamedTuple):
    """What makes a step.

    Attributes:
        backward: forward and backward: fills ``.grad``.
        optimizer: steps on it.
        model: whose ``.grad``.
    """

    backward: Callable[[], object]
    optimizer: Optimizer
    model: MultiTask

    def step(self) -> None:
        """Make one training step."""
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class StepPeer(NamedTuple):
    """One row of the table; attributes as :class:`benchmarks.peers.implementations.Peer`."""

    name: str
    build: Callable[[Problem], Trainer]
    package: str = ""
    same_as: Callable[[], Method] | None = PCGrad
    note: str = ""


def shared(model: MultiTask) -> list[nn.Parameter]:
    """Return the parameters that all tasks use."""
    return list(model.encoder.parameters())


def plain(problem: Problem) -> Trainer:
    """``sum(losses).backward()``."""

    def backward() -> None:
        autograd.backward(torch.stack(list(problem.losses().values())).sum())

    return Trainer(backward, adamw(problem.model), problem.model)


def ours(problem: Problem, method: Callable[[], Method]) -> Trainer:
    """``optimizer.join(losses).backward()``."""
    optimizer = GradientSurgery(adamw(problem.model), method(), tasks=TASKS)
    return Trainer(
        lambda: autograd.backward(optimizer.join(problem.losses())), optimizer, problem.model
    )


def torchjd(problem: Problem, gramian: bool) -> Trainer:
    """torchjd's ``mtl_backward`` and ``jac_to_grad``."""
    autojac = importlib.import_module("torchjd.autojac")
    aggregator = importlib.import_module("torchjd.aggregation").PCGrad()
    model = problem.model
    parameters, heads = shared(model), [model.heads[task].parameters for task in TASKS]

    def backward() -> None:
        features = model.features(problem.tokens)
        autojac.mtl_backward(
            [model.loss(task, features) for task in TASKS],
            features=features,
            shared_params=parameters,
            tasks_params=[head() for head in heads],
        )
        autojac.jac_to_grad(parameters, aggregator, optimize_gramian_computation=gramian)

    return Trainer(backward, adamw(model), model)


def autogram(problem: Problem) -> Trainer:
    """torchjd's engine: the Gramian first, then one backward of the weighted losses.

    The engine hooks the encoder's modules and would slow down whoever runs them, so it has a copy.
    """
    engine_class = importlib.import_module("torchjd.autogram").Engine
    weighting = importlib.import_module("torchjd.aggregation").PCGradWeighting()
    model = copy.deepcopy(problem.model)
    engine = engine_class(model.encoder, batch_dim=None)

    def backward() -> None:
        losses = torch.stack(list(model.losses(problem.tokens).values()))
        autograd.backward(losses, weighting(engine.compute_gramian(losses)))

    return Trainer(backward, adamw(model), model)


def pytorch_optimizer(problem: Problem) -> Trainer:
    """pytorch-optimizer's ``pc_backward``, on the encoder alone."""
    package = importlib.import_module("pytorch_optimizer")
    # SGD only tells it the parameters; the heads stay outside, where it would count their lengths.
    surgeon = package.PCGrad(SGD(shared(problem.model)), reduction="sum")
    return Trainer(
        lambda: surgeon.pc_backward(list(problem.losses().values())),
        adamw(problem.model),
        problem.model,
    )


def libmtl(problem: Problem, method: str) -> Trainer:
    """LibMTL's weighting class, without its trainer."""
    weighting = libmtl_weighting(method, shared(problem.model), len(TASKS), zero=True)
    return Trainer(
        lambda: weighting.backward(list(problem.losses().values())),
        adamw(problem.model),
        problem.model,
    )


def loop(problem: Problem) -> Trainer:
    """Flatten and loop on what each loss's backward leaves."""
    parameters = shared(problem.model)

    def backward() -> None:
        losses, grads = list(problem.losses().values()), []
        for number, loss in enumerate(losses):
            for parameter in parameters:
                parameter.grad = None
            autograd.backward(loss, retain_graph=number + 1 < len(losses))
            grads.append([_grad(parameter) for parameter in parameters])
        for parameter, grad in zip(parameters, flatten_and_loop(grads), strict=True):
            parameter.grad = grad

    return Trainer(backward, adamw(problem.model), problem.model)


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


STEP_PEERS = [
    StepPeer("plain, sum(losses).backward()", plain, same_as=None, note="no surgery"),
    StepPeer(OURS, partial(ours, method=PCGrad), same_as=None),
    StepPeer("gradsurgery GradVac", partial(ours, method=GradVac), same_as=None),
    StepPeer(
        "torchjd, as it comes",
        partial(torchjd, gramian=False),
        "torchjd",
        note="mtl_backward and jac_to_grad; the former differentiates all tasks together under "
        "vmap, which has no rule for the CPU's attention kernel and loops over it",
    ),
    StepPeer(
        "torchjd, gramian path",
        partial(torchjd, gramian=True),
        "torchjd",
        note="the same with optimize_gramian_computation=True",
    ),
    StepPeer(
        "torchjd, autogram engine",
        autogram,
        "torchjd",
        note="compute_gramian with batch_dim=None, then one backward of the weighted losses; "
        "weighs the heads' gradients too; on a copy of the model",
    ),
    StepPeer(
        "pytorch-optimizer PCGrad",
        pytorch_optimizer,
        "pytorch_optimizer",
        note="on the encoder's parameters alone; it would count the heads' lengths",
    ),
    StepPeer(
        "LibMTL PCGrad",
        partial(libmtl, method="PCGrad"),
        "LibMTL",
        note="its weighting class on a stub of its trainer, which zeroes gradients in place",
    ),
    StepPeer("flatten and loop", loop, note="written here, without masks"),
]
