"""Integrations whose loop is the user's: the same step, with what each of them changes.

A step runs forward and backward of three tasks on batches of their own, clips, calls ``step()`` and
``zero_grad()``. ``sum(losses).backward()`` and "loss by loss" are plain; ``join`` is the drop-in
for the first, ``task()`` for the second.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import backward
from torch.optim import AdamW, Optimizer

from benchmarks import steps
from gradsurgery import GradientSurgery

SUM, EACH = steps.PLAIN, steps.EACH
JOIN, TASK = "pcgrad, join", "pcgrad, task()"
KINDS = (SUM, EACH, JOIN, TASK)

#: Largest norm of the gradient, in every step.
CLIP = 1.0

RATE = 1e-5


@dataclass(frozen=True)
class Bench:
    """What all integrations are built from.

    Attributes:
        size: of model and batches.
        device: where.
        threads: of the CPU's operators.
        quick: whether the figures mean nothing.
    """

    size: steps.Size
    device: torch.device
    threads: int
    quick: bool = False

    def problem(self, bf16: bool = False) -> steps.Problem:
        """Build model and batches."""
        return steps.problem(self.size, self.device, bf16)

    @property
    def accelerator(self) -> str:
        """What Lightning calls the device."""
        return "gpu" if self.device.type == "cuda" else self.device.type


class Parts(NamedTuple):
    """What an integration puts into the loop.

    Attributes:
        loss: of a task, on its own batch.
        optimizer: that steps, and perhaps joins; ``surgeon`` where a framework has wrapped it.
        clip: clips the gradients.
        backward: of a loss.
        surgeon: see ``optimizer``.
    """

    loss: Callable[[str], Tensor]
    optimizer: Any
    clip: Callable[[], object]
    backward: Callable[[Tensor], object] = backward
    surgeon: Any = None


def step(kind: str, parts: Parts) -> steps.Step:
    """Return a step of one of :data:`KINDS`."""
    surgeon = parts.surgeon or parts.optimizer

    def passes() -> None:
        if kind == SUM:
            parts.backward(torch.stack([parts.loss(task) for task in steps.TASKS]).sum())
        elif kind == EACH:
            for task in steps.TASKS:
                parts.backward(parts.loss(task))
        elif kind == JOIN:
            parts.backward(surgeon.join({task: parts.loss(task) for task in steps.TASKS}))
        else:
            for task in steps.TASKS:
                with surgeon.task(task):
                    parts.backward(parts.loss(task))
            surgeon.combine()

    def whole() -> None:
        passes()
        parts.clip()
        parts.optimizer.step()
        parts.optimizer.zero_grad()

    return whole


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the named parameters that are trained."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def optimizer(kind: str, base: Optimizer) -> Optimizer:
    """Return ``base``, wrapped where the kind is one with surgery."""
    if kind in (SUM, EACH):
        return base
    return GradientSurgery(base, steps.METHODS["pcgrad"](), tasks=steps.TASKS)


def adamw(model: nn.Module, **options: Any) -> Optimizer:
    """Return AdamW on what is trained."""
    return AdamW(trained(model), lr=RATE, **options)


def own(
    problem: steps.Problem, base: Callable[[nn.Module], Optimizer] = adamw
) -> dict[str, steps.Step]:
    """Return the steps of a loop without a framework, all on one model."""

    def clip() -> None:
        nn.utils.clip_grad_norm_(parameters, CLIP)

    parameters = [p for _, p in trained(problem.model)]
    return {
        kind: step(kind, Parts(problem.loss, optimizer(kind, base(problem.model)), clip))
        for kind in KINDS
    }


def plain(bench: Bench) -> dict[str, steps.Step]:
    """Nothing but torch."""
    return own(bench.problem())


def autocast(bench: Bench) -> dict[str, steps.Step]:
    """bf16 autocast around each forward; no scaler."""
    return own(bench.problem(bf16=True))


def backend(bench: Bench) -> str:
    """Return what compiles: the inductor, where there is a compiler for what it writes."""
    able = bench.device.type == "cuda" or shutil.which("g++")
    return "inductor" if able and not bench.quick else "aot_eager"


def compiled(bench: Bench) -> dict[str, steps.Step]:
    """torch.compile of the encoder."""
    problem = bench.problem()
    problem.model.encoder.compile(backend=backend(bench))
    return own(problem)


def checkpointed(bench: Bench) -> dict[str, steps.Step]:
    """Activation checkpointing, layer by layer, not reentrant."""
    problem = bench.problem()
    encoder = problem.model.encoder
    old = encoder.gradient_checkpointing_enable  # renamed in the course of transformers 5
    getattr(encoder, "activation_checkpointing_enable", old)({"use_reentrant": False})
    return own(problem)


def adapted(bench: Bench) -> dict[str, steps.Step]:
    """PEFT: LoRA of rank 8 on queries and values; only that and the heads are trained."""
    import peft

    problem = bench.problem()
    config = peft.LoraConfig(r=8, target_modules=["query", "value"])
    problem.model.encoder = peft.get_peft_model(problem.model.encoder, config)
    return own(problem)


def accelerated(bench: Bench) -> dict[str, steps.Step]:
    """Accelerate: its prepare, backward and clipping."""
    from accelerate import Accelerator  # type: ignore[import-untyped]

    accelerator = Accelerator(cpu=bench.device.type == "cpu")
    problem = bench.problem()

    def parts(kind: str) -> Parts:
        surgeon = optimizer(kind, adamw(problem.model))
        model, prepared = accelerator.prepare(problem.model, surgeon)
        return Parts(
            lambda task: model(task, problem.batches[task]),
            prepared,
            lambda: accelerator.clip_grad_norm_(model.parameters(), CLIP),
            accelerator.backward,
            surgeon,
        )

    return {kind: step(kind, parts(kind)) for kind in KINDS}


def fabric(bench: Bench) -> dict[str, steps.Step]:
    """Fabric: its setup, backward and clipping."""
    from lightning.fabric import Fabric

    made = Fabric(accelerator=bench.accelerator, devices=1)
    problem = bench.problem()

    def parts(kind: str) -> Parts:
        model, prepared = made.setup(problem.model, optimizer(kind, adamw(problem.model)))
        return Parts(
            lambda task: model(task, problem.batches[task]),
            prepared,
            lambda: made.clip_gradients(model, prepared, max_norm=CLIP),
            made.backward,
        )

    return {kind: step(kind, parts(kind)) for kind in KINDS}


def foreach(bench: Bench) -> dict[str, steps.Step]:
    """AdamW that goes through lists of tensors."""
    return own(bench.problem(), lambda model: adamw(model, foreach=True))


def fused(bench: Bench) -> dict[str, steps.Step]:
    """AdamW in one kernel."""
    return own(bench.problem(), lambda model: adamw(model, fused=True))


def eight_bit(bench: Bench) -> dict[str, steps.Step]:
    """AdamW of bitsandbytes with 8-bit states."""
    from bitsandbytes.optim.adamw import AdamW8bit

    return own(bench.problem(), lambda model: _unnamed(AdamW8bit, model))


def schedule_free(bench: Bench) -> dict[str, steps.Step]:
    """AdamW without a schedule."""
    from schedulefree import AdamWScheduleFree  # type: ignore[import-untyped]

    def base(model: nn.Module) -> Optimizer:
        made = _unnamed(AdamWScheduleFree, model)
        made.train()  # type: ignore[attr-defined]
        return made

    return own(bench.problem(), base)


def _unnamed(kind: Any, model: nn.Module) -> Optimizer:
    made: Optimizer = kind([p for _, p in trained(model)], lr=RATE)
    return made
