"""The LightningModules of the tests: automatic and manual optimization of the same problem."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from torch import Tensor

from tests.integration.by_hand import distance, fresh_model
from tests.integration.lightning_problem import (
    Batch,
    decay,
    losses_of,
    surgery,
)


class Averaged(L.LightningModule):
    """A module whose gradients DDP or, with ``averages``, gradsurgery averages."""

    averages = False

    def unsynced(self) -> AbstractContextManager[None]:
        """Keep DDP from averaging; one process has nothing to keep from it."""
        if self.averages:
            return self.trainer.strategy.block_backward_sync()
        return nullcontext()

    @property
    def group(self) -> dist.ProcessGroup | None:
        return dist.group.WORLD if self.averages else None


class Automatic(Averaged):
    """The recipe: ``training_step`` returns the joined loss."""

    def __init__(self, averages: bool = False) -> None:
        super().__init__()
        self.averages = averages
        self.model = fresh_model()
        self.rates: list[float] = []
        self.window: dict[str, Any] | None = None  # of the statistics, when resumed

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        optimizer = self.optimizers(use_pl_optimizer=False)
        complete = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        last = complete or self.trainer.is_last_batch
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.log_dict(optimizer.conflicts.scalars())
        return optimizer.join(losses_of(self.model, batch), combine=last)

    def on_train_start(self) -> None:
        self.whole_training = ExitStack()  # Lightning calls DDP's forward and the backward itself
        self.whole_training.enter_context(self.unsynced())

    def on_train_end(self) -> None:
        self.whole_training.close()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        checkpoint["conflicts"] = optimizer.conflicts.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.window = checkpoint["conflicts"]

    def configure_optimizers(self) -> Any:
        optimizer = surgery(self.model, process_group=self.group)
        if self.window:
            optimizer.conflicts.load_state_dict(self.window)
        schedule = {"scheduler": decay(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Manual(Averaged):
    """The recipe: each task's own ``manual_backward``, or that of the joined loss."""

    def __init__(
        self,
        accumulate: int = 1,
        joins: bool = False,
        clip: float | None = None,
        averages: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.averages = averages
        self.model = fresh_model()
        self.accumulate, self.joins, self.clip = accumulate, joins, clip

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer = self.optimizers()
        complete = (batch_idx + 1) % self.accumulate == 0
        last = complete or self.trainer.is_last_batch
        with self.unsynced():
            if self.joins:
                joined = optimizer.join(losses_of(self.model, batch), combine=last)
                self.manual_backward(joined / self.accumulate)
            else:
                for task, x in batch.items():
                    with optimizer.task(task, sync=last):
                        self.manual_backward(distance(self.model(x, task), task) / self.accumulate)
        if not last:
            return
        if not self.joins:
            optimizer.combine()
        if self.clip:
            self.clip_gradients(optimizer, self.clip, "norm")
        optimizer.step()
        self.lr_schedulers().step()
        optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        optimizer = surgery(self.model, process_group=self.group)
        return {"optimizer": optimizer, "lr_scheduler": decay(optimizer)}


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return L.Trainer(**{**quiet, **options})
