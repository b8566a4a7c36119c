"""Integrations that own the loop (HF Trainer, Lightning): as in the recipes, and plain."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from benchmarks.options import Options
from benchmarks.problems.multitask import Problem, problem
from benchmarks.steps.manual_loops import CLIP
from benchmarks.steps.paused_loop import Batch, PausedLoop, Turns
from benchmarks.steps.step import JOIN, SUM, TASK, adamw, total, wrapped

#: Trains for ever: kind of step, problem, optimizer, data.
Loop = Callable[[str, Problem, Optimizer, Turns], object]


def trainer(options: Options) -> dict[str, PausedLoop]:
    """HF Trainer: ``compute_loss`` sums or joins; or ``training_step`` goes task by task."""
    from transformers import Trainer, TrainingArguments

    class MultiTaskTrainer(Trainer):
        kind: str

        @property
        def surgery(self) -> Any:
            prepared: Any = self.optimizer
            return prepared.optimizer

        def compute_loss(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> Tensor:
            return _loss(self.kind, model, inputs, self.surgery)

        def training_step(self, model: Any, inputs: Batch, *rest: Any) -> Tensor:
            if self.kind != TASK:
                return super().training_step(model, inputs, *rest)
            model.train()
            losses = []
            for task, tokens in self._prepare_inputs(inputs).items():
                with self.surgery.task(task):
                    loss = model(task, tokens)
                    self.accelerator.backward(loss)
                losses.append(loss.detach())
            self.surgery.combine()
            return torch.stack(losses).sum()

    def train(kind: str, problem: Problem, optimizer: Optimizer, turns: Turns) -> None:
        with tempfile.TemporaryDirectory() as directory:
            arguments = TrainingArguments(
                directory,
                max_steps=1 << 30,
                per_device_train_batch_size=1,  # a row is a batch already
                lr_scheduler_type="constant",
                max_grad_norm=CLIP,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                use_cpu=not options.cuda,
            )
            trainer = MultiTaskTrainer(
                model=problem.model,
                args=arguments,
                train_dataset=turns,
                data_collator=lambda rows: rows[0],
                optimizers=(optimizer, None),
            )
            trainer.kind = kind
            trainer.train()

    return _paused(options, (SUM, JOIN, TASK), train)


def lightning(options: Options, automatic: bool) -> dict[str, PausedLoop]:
    """Lightning: automatic optimization of the sum or the joined loss; or manual, task by task."""
    from lightning import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self, kind: str, model: Any, optimizer: Optimizer) -> None:
            super().__init__()
            self.automatic_optimization = automatic
            self.kind, self.model, self.optimizer = kind, model, optimizer

        def configure_optimizers(self) -> Optimizer:
            return self.optimizer

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
            if automatic:
                surgery = self.optimizers(use_pl_optimizer=False)
                return _loss(self.kind, self.model, batch, surgery)
            optimizer: Any = self.optimizers()
            if self.kind == SUM:
                self.manual_backward(_loss(SUM, self.model, batch))
            else:
                for task, tokens in batch.items():
                    with optimizer.task(task):
                        self.manual_backward(self.model(task, tokens))
                optimizer.combine()
            self.clip_gradients(optimizer, CLIP, "norm")
            optimizer.step()
            optimizer.zero_grad()
            return None

    def train(kind: str, problem: Problem, optimizer: Optimizer, turns: Turns) -> None:
        Trainer(
            max_epochs=1,
            accelerator=options.device.type,
            devices=1,
            gradient_clip_val=CLIP if automatic else None,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Module(kind, problem.model, optimizer), DataLoader(turns, batch_size=None))

    return _paused(options, (SUM, JOIN if automatic else TASK), train)


def _paused(options: Options, kinds: Sequence[str], train: Loop) -> dict[str, PausedLoop]:
    """Start the loops of all kinds, on one model."""
    shared = problem(options)

    def start(kind: str) -> PausedLoop:
        optimizer = wrapped(kind, adamw(shared.model), shared)
        loop = partial(train, kind, shared, optimizer)
        return PausedLoop(loop, shared.batches, options.threads)

    return {kind: start(kind) for kind in kinds}


def _loss(kind: str, model: Any, batch: Batch, surgery: Any = None) -> Tensor:
    """Return the loss that the framework runs backward."""
    losses = {task: model(task, tokens) for task, tokens in batch.items()}
    loss: Tensor = total(losses) if kind == SUM else surgery.join(losses)
    return loss
