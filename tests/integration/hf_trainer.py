"""The Trainer of docs/recipes/trainer.md, to the word, and what the tests need around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset, default_collate
from transformers import Trainer, TrainingArguments

from gradsurgery import GradientSurgery, GradVac, PCGrad, split
from tests.integration.hf_problem import CLIP, DECAY, LR, TASKS


class SurgeryTrainer(Trainer):
    tasks = ("a", "b")
    method = PCGrad(seed=0)

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        # Our losses are means: have the Trainer divide them by the accumulation steps.
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            base = super().create_optimizer(model)
            self.surgery = self.optimizer = GradientSurgery(
                base,
                self.method,
                tasks=self.tasks,
                process_group=dist.group.WORLD if dist.is_initialized() else None,
            )
        return self.optimizer

    def task_losses(self, model, inputs):
        return {
            task: (model(batch["x"], task=task) - batch["y"]).square().mean()
            for task, batch in inputs.items()
        }

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return sum(self.task_losses(model, inputs).values())
        with self.accelerator.no_sync(model):  # gradsurgery averages over the processes
            losses = self.task_losses(model, inputs)
        return self.surgery.join(losses, combine=self.accelerator.sync_gradients)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

    def log(self, logs, start_time=None):
        if "loss" in logs:  # of training, not of an evaluation
            logs = {**logs, **self.surgery.conflicts.scalars()}
            self.surgery.conflicts.reset()
        super().log(logs, start_time)


class MixedTrainer(SurgeryTrainer):
    def task_losses(self, model, inputs):
        out = model(inputs["x"])  # [B, K]: what each task's head says
        chosen = out.gather(1, inputs["task_ids"][:, None])[:, 0]
        errors = (chosen - inputs["labels"]).square()  # [B]
        return split(errors, inputs["task_ids"], self.tasks)


class FrugalTrainer(SurgeryTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        last, total = self.accelerator.sync_gradients, 0.0
        for task, batch in self._prepare_inputs(inputs).items():
            with self.surgery.task(task, sync=last):
                with self.accelerator.no_sync(model):
                    (loss,) = self.task_losses(model, {task: batch}).values()
                loss = loss / self.current_gradient_accumulation_steps
                self.accelerator.backward(loss)
            total += loss.detach()
        if last:
            self.surgery.combine()
        return total


class Recorded:
    """Over a trainer: the tests' method, and every batch that a loss was computed on."""

    tasks = TASKS
    method = GradVac(beta=0.3, seed=5)

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Any:
        if model.training:
            self.__dict__.setdefault("seen", []).append(inputs)
        return super().compute_loss(model, inputs, *args, **options)  # type: ignore[misc]


class TaskTrainer(Recorded, SurgeryTrainer):
    pass


class RowTrainer(Recorded, MixedTrainer):
    pass


class OneByOneTrainer(Recorded, FrugalTrainer):
    pass


def trainer(
    kind: type[Recorded], model: nn.Module, rows: Dataset, folder: Path, **options: Any
) -> Any:
    """A trainer on the CPU that clips, warms up and decays, quietly."""
    arguments = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": LR,
        "weight_decay": DECAY,
        "max_grad_norm": CLIP,
        "warmup_steps": 2,
        "optim": "adamw_torch",
        "save_strategy": "no",
        "logging_steps": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu": True,
        **options,
    }
    return kind(
        model=model,
        args=TrainingArguments(str(folder), **arguments),
        train_dataset=rows,
        data_collator=default_collate,
    )
