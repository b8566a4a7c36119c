"""Integrations whose loop is the user's: the same step, with what each of them changes.

A step runs forward and backward of three tasks on batches of their own, clips, calls ``step()`` and
``zero_grad()``. ``sum(losses).backward()`` and "loss by loss" are plain; ``join`` is the drop-in
for the first, ``task()`` for the second.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn
from torch.autograd import backward
from torch.optim import Optimizer

from benchmarks.options import Options
from benchmarks.problems.multitask import Problem, problem
from benchmarks.steps import step
from benchmarks.steps.step import EACH, JOIN, SUM, TASK, Step, adamw, own_step, trained, wrapped

#: Largest norm of the gradient, in every step.
CLIP = 1.0


class Framework(NamedTuple):
    """A framework's wrappers of model and optimizer; by default none.

    Attributes:
        prepare: wraps both.
        backward: of a loss.
        clip: clips the gradients, given both.
    """

    prepare: Callable[[Any, Any], tuple[Any, Any]] = lambda model, optimizer: (model, optimizer)
    backward: Callable[[Any], object] = backward
    clip: Callable[[Any, Any], object] = lambda model, _: nn.utils.clip_grad_norm_(
        model.parameters(), CLIP
    )


def loop(
    change: Callable[[Any, Options], object] = lambda model, options: None,
    base: Callable[[nn.Module], Optimizer] = adamw,
    framework: Callable[[Options], Framework] = lambda options: Framework(),
    bf16: bool = False,
) -> Callable[[Options], dict[str, Step]]:
    """Return what builds the steps of all kinds on one model, which ``change`` changes in place."""

    def build(options: Options) -> dict[str, Step]:
        bare, wrap = problem(options, bf16=bf16), framework(options)
        change(bare.model, options)
        return {kind: _step(kind, bare, base, wrap) for kind in (SUM, EACH, JOIN, TASK)}

    return build


def _step(
    kind: str, problem: Problem, base: Callable[[nn.Module], Optimizer], framework: Framework
) -> Step:
    surgery = wrapped(kind, base(problem.model), problem)
    model, optimizer = framework.prepare(problem.model, surgery)
    return own_step(
        kind,
        problem._replace(model=model),
        optimizer,
        surgery=surgery,
        clip=lambda: framework.clip(model, optimizer),
        backward=framework.backward,
    )


def backend(options: Options) -> str:
    """Return the compiler's backend: inductor, unless the C++ compiler that it calls is missing."""
    complete = options.cuda or shutil.which("g++")
    return "inductor" if complete and not options.quick else "aot_eager"


def compile_encoder(model: Any, options: Options) -> None:
    """Compile the encoder in place."""
    model.encoder.compile(backend=backend(options))


def checkpoint(model: Any, options: Options) -> None:
    """Checkpoint activations layer by layer, not reentrant."""
    old = model.encoder.gradient_checkpointing_enable  # renamed in the course of transformers 5
    getattr(model.encoder, "activation_checkpointing_enable", old)({"use_reentrant": False})


def add_lora(model: Any, options: Options) -> None:
    """Add PEFT's LoRA of rank 8 to queries and values; only that and the heads are trained."""
    import peft

    config = peft.LoraConfig(r=8, target_modules=["query", "value"])
    model.encoder = peft.get_peft_model(model.encoder, config)


def accelerate(options: Options) -> Framework:
    """Accelerate's prepare, backward and clipping."""
    from accelerate import Accelerator  # type: ignore[import-untyped]

    accelerator = Accelerator(cpu=not options.cuda)
    return Framework(
        accelerator.prepare,
        accelerator.backward,
        lambda model, _: accelerator.clip_grad_norm_(model.parameters(), CLIP),
    )


def fabric(options: Options) -> Framework:
    """Fabric's setup, backward and clipping."""
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator=options.device.type, devices=1)
    return Framework(
        fabric.setup,
        fabric.backward,
        lambda model, optimizer: fabric.clip_gradients(model, optimizer, max_norm=CLIP),
    )


def adamw_8bit(model: nn.Module) -> Optimizer:
    """Return AdamW of bitsandbytes with 8-bit states."""
    from bitsandbytes.optim.adamw import AdamW8bit

    return _unnamed(AdamW8bit, model)


def adamw_schedule_free(model: nn.Module) -> Optimizer:
    """Return AdamW without a schedule."""
    from schedulefree import AdamWScheduleFree  # type: ignore[import-untyped]

    optimizer = _unnamed(AdamWScheduleFree, model)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def _unnamed(optimizer: Any, model: nn.Module) -> Optimizer:
    """Return an optimizer that takes no named parameters."""
    base: Optimizer = optimizer([parameter for _, parameter in trained(model)], lr=step.RATE)
    return base
