"""HF Trainer and Lightning: the loops of their recipes in the docs, and the plain ones beside."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from benchmarks.integrations_manual import CLIP, JOIN, SUM, TASK, Bench, adamw, optimizer
from benchmarks.paused_loop import Batch, Fit, Turns


def trainer(bench: Bench) -> dict[str, Fit]:
    """HF Trainer: ``compute_loss`` sums or joins; or ``training_step`` goes task by task."""
    from transformers import Trainer

    class Plain(Trainer):
        def compute_loss(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> Tensor:
            return _sum(_losses(model, inputs))

    class Joined(Trainer):
        def compute_loss(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> Tensor:
            prepared: Any = self.optimizer
            return _joined(prepared.optimizer, _losses(model, inputs))

    class Apart(Trainer):
        def training_step(self, model: Any, inputs: Batch, *_: Any) -> Tensor:
            model.train()
            prepared: Any = self.optimizer
            surgeon, total = prepared.optimizer, torch.zeros((), device=self.args.device)
            for task, tokens in self._prepare_inputs(inputs).items():
                with surgeon.task(task):
                    loss = model(task, tokens)
                    self.accelerator.backward(loss)
                total += loss.detach()
            surgeon.combine()
            return total

    problem = bench.problem()
    found = {}
    for kind, made in {SUM: Plain, JOIN: Joined, TASK: Apart}.items():
        loop = _trainer_loop(bench, made, problem.model, optimizer(kind, adamw(problem.model)))
        found[kind] = Fit(loop, problem.batches, bench.threads)
    return found


def _trainer_loop(bench: Bench, kind: Any, model: Any, made: Optimizer) -> Callable[[Turns], None]:
    from transformers import TrainingArguments

    def run(turns: Turns) -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
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
                use_cpu=bench.device.type == "cpu",
            )
            kind(
                model=model,
                args=arguments,
                train_dataset=turns,
                data_collator=lambda rows: rows[0],
                optimizers=(made, None),
            ).train()

    return run


def lightning(bench: Bench) -> dict[str, Fit]:
    """Lightning's automatic optimization: ``training_step`` returns the sum, or the joined loss."""
    from lightning import LightningModule

    class Plain(LightningModule):
        def __init__(self, model: Any, made: Optimizer) -> None:
            super().__init__()
            self.model, self._made = model, made

        def configure_optimizers(self) -> Optimizer:
            return self._made

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return _sum(_losses(self.model, batch))

    class Joined(Plain):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            surgeon = self.optimizers(use_pl_optimizer=False)
            return _joined(surgeon, _losses(self.model, batch))

    return _lightning_fits(bench, {SUM: Plain, JOIN: Joined}, clip=CLIP)


def lightning_by_hand(bench: Bench) -> dict[str, Fit]:
    """Lightning's manual optimization: a backward of the sum, or one per task."""
    from lightning import LightningModule

    class Plain(LightningModule):
        def __init__(self, model: Any, made: Optimizer) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.model, self._made = model, made

        def configure_optimizers(self) -> Optimizer:
            return self._made

        def training_step(self, batch: Batch, batch_idx: int) -> None:
            prepared: Any = self.optimizers()
            self.passes(prepared, batch)
            self.clip_gradients(prepared, CLIP, "norm")
            prepared.step()
            prepared.zero_grad()

        def passes(self, prepared: Any, batch: Batch) -> None:
            self.manual_backward(_sum(_losses(self.model, batch)))

    class Apart(Plain):
        def passes(self, prepared: Any, batch: Batch) -> None:
            for task, tokens in batch.items():
                with prepared.task(task):
                    self.manual_backward(self.model(task, tokens))
            prepared.combine()

    return _lightning_fits(bench, {SUM: Plain, TASK: Apart}, clip=None)


def _lightning_fits(bench: Bench, modules: dict[str, Any], clip: float | None) -> dict[str, Fit]:
    from lightning import Trainer

    def loop(module: Any) -> Callable[[Turns], None]:
        def run(turns: Turns) -> None:
            Trainer(
                max_epochs=1,
                accelerator=bench.accelerator,
                devices=1,
                gradient_clip_val=clip,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            ).fit(module, DataLoader(turns, batch_size=None))

        return run

    problem = bench.problem()
    found = {}
    for kind, module in modules.items():
        made = optimizer(kind, adamw(problem.model))
        found[kind] = Fit(loop(module(problem.model, made)), problem.batches, bench.threads)
    return found


def _losses(model: Any, batch: Batch) -> dict[str, Tensor]:
    return {task: model(task, tokens) for task, tokens in batch.items()}


def _sum(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _joined(surgeon: Any, losses: dict[str, Tensor]) -> Tensor:
    joined: Tensor = surgeon.join(losses)
    return joined
