"""Other implementations in a training step: losses on a shared batch in, ``.grad`` out.

As :mod:`benchmarks.peers.implementations`, with real backward passes. Every peer works on the
encoder's parameters, which all tasks share; the heads have one task each.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, autograd, nn
from torch.optim import SGD

from benchmarks.peers.implementations import libmtl_weighting
from benchmarks.peers.naive_pcgrad import flatten_and_loop
from benchmarks.peers.peer import OURS, Peer
from benchmarks.problems.multitask import Problem
from benchmarks.steps.step import JOIN, SHARED, SUM, Step, adamw, step
from gradsurgery import GradVac, Method, PCGrad


def plain(problem: Problem) -> Step:
    """Run ``sum(losses).backward()``."""
    return step(SUM, problem, SHARED)


def ours(problem: Problem, method: Callable[[], Method]) -> Step:
    """Run ``optimizer.join(losses).backward()``."""
    return step(JOIN, problem, SHARED, method)


def torchjd(problem: Problem, gramian: bool) -> Step:
    """Run torchjd's ``mtl_backward`` and ``jac_to_grad``."""
    autojac = importlib.import_module("torchjd.autojac")
    aggregator = importlib.import_module("torchjd.aggregation").PCGrad()
    trunk, heads = problem.trunk, problem.model.heads

    def passes() -> None:
        features, losses = problem.shared()
        autojac.mtl_backward(
            list(losses.values()),
            features=features,
            shared_params=trunk,
            tasks_params=[heads[task].parameters() for task in problem.tasks],
        )
        autojac.jac_to_grad(trunk, aggregator, optimize_gramian_computation=gramian)

    return Step(passes, adamw(problem.model))


def autogram(problem: Problem) -> Step:
    """Run torchjd's engine: the Gramian first, then one backward of the weighted losses."""
    engine_class = importlib.import_module("torchjd.autogram").Engine
    weighting = importlib.import_module("torchjd.aggregation").PCGradWeighting()
    engine = engine_class(problem.model.encoder, batch_dim=None)

    def passes() -> None:
        losses = torch.stack(_losses(problem))
        autograd.backward(losses, weighting(engine.compute_gramian(losses)))

    return Step(passes, adamw(problem.model))


def pytorch_optimizer(problem: Problem) -> Step:
    """Run pytorch-optimizer's ``pc_backward``, on the encoder alone."""
    package = importlib.import_module("pytorch_optimizer")
    # SGD only tells it the parameters; the heads stay outside, where it would count their lengths.
    surgery = package.PCGrad(SGD(problem.trunk), reduction="sum")
    return Step(lambda: surgery.pc_backward(_losses(problem)), adamw(problem.model))


def libmtl(problem: Problem, method: str) -> Step:
    """Run LibMTL's weighting class, without its trainer."""
    weighting = libmtl_weighting(method, problem.trunk, len(problem.tasks), zero=True)
    return Step(lambda: weighting.backward(_losses(problem)), adamw(problem.model))


def loop(problem: Problem) -> Step:
    """Flatten and loop on what each loss's backward leaves."""
    trunk = problem.trunk

    def passes() -> None:
        losses, grads = _losses(problem), []
        for number, loss in enumerate(losses, start=1):
            for parameter in trunk:
                parameter.grad = None
            autograd.backward(loss, retain_graph=number < len(losses))
            grads.append([_grad(parameter) for parameter in trunk])
        for parameter, grad in zip(trunk, flatten_and_loop(grads), strict=True):
            parameter.grad = grad

    return Step(passes, adamw(problem.model))


def _losses(problem: Problem) -> list[Tensor]:
    return list(problem.shared().losses.values())


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


STEP_PEERS: list[Peer[Problem, Step]] = [
    Peer(SUM, plain, same_as=None, note="no surgery"),
    Peer(OURS, partial(ours, method=PCGrad), same_as=None),
    Peer("gradsurgery GradVac", partial(ours, method=GradVac), same_as=None),
    Peer(
        "torchjd, as it comes",
        partial(torchjd, gramian=False),
        "torchjd",
        note="mtl_backward and jac_to_grad; the former differentiates all tasks together under "
        "vmap, which has no rule for the CPU's attention kernel and loops over it",
    ),
    Peer(
        "torchjd, gramian path",
        partial(torchjd, gramian=True),
        "torchjd",
        note="the same with optimize_gramian_computation=True",
    ),
    Peer(
        "torchjd, autogram engine",
        autogram,
        "torchjd",
        note="compute_gramian with batch_dim=None, then one backward of the weighted losses; "
        "weighs the heads' gradients too; on a copy of the model",
        copies=True,
    ),
    Peer(
        "pytorch-optimizer PCGrad",
        pytorch_optimizer,
        "pytorch_optimizer",
        note="on the encoder's parameters alone; it would count the heads' lengths",
    ),
    Peer(
        "LibMTL PCGrad",
        partial(libmtl, method="PCGrad"),
        "LibMTL",
        note="its weighting class on a stub of its trainer, which zeroes gradients in place",
    ),
    Peer("flatten and loop", loop, note="written here, without masks"),
]
