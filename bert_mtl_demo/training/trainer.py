"""The training loop: step, log, evaluate, checkpoint, and all of its state in one place.

The trainer is the loop only. It is given a model, data and settings, knows nothing of flags or
files of settings, and can be stopped after any step: `state_dict` holds everything that decides
what comes next, so that the run which continues from it is bitwise the run that never stopped.

In several processes each has a trainer. They take the same steps, each on its shard of the batches,
and whatever decides anything (losses, scores, a request to stop) is reduced over all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from bert_mtl_demo.batching import build_batches
from bert_mtl_demo.config import Config
from bert_mtl_demo.data import dev_halves
from bert_mtl_demo.data.tokenization import Batch, EncodedSet
from bert_mtl_demo.errors import DivergedError
from bert_mtl_demo.model.multitask import MultitaskModel
from bert_mtl_demo.model.vocabulary import TrimmedEmbedding
from bert_mtl_demo.runtime import Interrupts, Precision, peak_memory
from bert_mtl_demo.tasks import leaderboard_score, mean_score
from bert_mtl_demo.training.checkpoint import RunDirectory, save_state, save_weights
from bert_mtl_demo.training.data_parallel import Shard, begin_alike, random_states, restore_random
from bert_mtl_demo.training.display import Console, Display
from bert_mtl_demo.training.inference import Answers, score_all
from bert_mtl_demo.training.logs import Log
from bert_mtl_demo.training.optimizer import build_optimizer, build_scheduler
from bert_mtl_demo.training.processes import ALONE, Processes
from bert_mtl_demo.training.progress import Progress, Window, score_line
from bert_mtl_demo.training.run_settings import decisive, kept
from gradsurgery import Method

CHOOSING, REPORTED = 0, 1  # the halves of dev under `dev_half`


class Trainer:
    """One run in memory.

    Args:
        config: the settings.
        model: on its device.
        train, dev: the encoded sets of each task.
        run: where checkpoints go.
        log: where lines go.
        precision: autocast, scaler and device.
        display: what is shown of it while it runs; None: lines on stdout.
        processes: those that train together; the model gets the weights of the first.
        method: of surgery, in place of the one that the settings name.
    """

    def __init__(
        self,
        config: Config,
        model: MultitaskModel,
        train: Mapping[str, EncodedSet],
        dev: Mapping[str, EncodedSet],
        run: RunDirectory,
        log: Log,
        precision: Precision,
        display: Display | None = None,
        processes: Processes = ALONE,
        method: Method | None = None,
    ) -> None:
        self.config, self.model, self.train_sets, self.dev_sets = config, model, train, dev
        self.run, self.log, self.precision = run, log, precision
        self.display = Console() if display is None else display
        self.say = self.display.say
        self.processes = processes
        self.batches = build_batches(config, train)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.horizon = self.batches.horizon  # what the schedule is stretched over
        goal = self.horizon if config.max_steps is None else config.max_steps
        self.goal = min(self.horizon, goal)
        group = processes.gradients(precision.device)
        begin_alike(model, group)
        self.optimizer = build_optimizer(config, model, group, method)
        self.scheduler = build_scheduler(config, self.optimizer, self.horizon)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scored_sets = self.dev_sets
        if config.dev_sample:
            self.scored_sets = {name: d.spread(config.dev_sample) for name, d in dev.items()}
        self.halves = {}
        if config.dev_half:
            self.halves = {
                name: dev_halves(len(dev), name) for name, dev in self.scored_sets.items()
            }
        self.train_subsets = {}
        if config.train_scores:
            self.train_subsets = {
                name: examples.spread(config.train_scores) for name, examples in train.items()
            }
        self.progress = Progress()
        self.restored = False  # from a state, which may be that before the first step
        self.window = Window()
        self.files, self.data_file = run.digests(), run.data_digest()
        self.data = {
            f"{part}/{name}": examples.fingerprint()
            for part, sets in (("train", train), ("dev", dev))
            for name, examples in sets.items()
        }

    @property
    def epoch(self) -> int:
        """The epoch, from 1, that the last step taken belongs to."""
        return max(1, math.ceil(self.progress.step / self.steps_per_epoch))

    def described(self) -> str:
        """The sizes of model and run, the device and the precision, in a line."""
        trained = sum(parameter.numel() for parameter in self.trained)
        weights = sum(parameter.numel() for parameter in self.model.parameters())
        share = "" if trained == weights else f", {trained:,} trained"
        left = "" if self.progress.step == 0 else f", {self.progress.step:,} done"
        return (
            f"{weights:,} parameters{share}; {self.goal:,} steps{left}, "
            f"{self.steps_per_epoch:,} an epoch; {self.precision}"
        )

    def fit(self, stop: Interrupts) -> bool:
        """Train until done or told to stop; True when done."""
        self.model.train()
        self._restart_clock()
        if self.progress.step == 0 and not self.restored:
            self.processes.agree(self._log_size)
            self.save()  # from now on there is something to resume from
        while True:
            if self._evaluation_is_due():
                self.evaluate()
                self.save()
            if self.progress.step >= self.goal:
                return True
            self.step()
            self.display.tick()
            if self._told_to(stop):
                self.save()
                return False
            if self.progress.step % self.config.checkpoint_every == 0:
                self.save()

    def _told_to(self, stop: Interrupts) -> bool:
        """Whether any process was told to stop; all then know the signal."""
        told = self.processes.highest(stop.signal or 0)
        if told:  # else nothing is written: a signal may have come in the meantime
            stop.signal = told
        return told > 0

    def step(self) -> None:
        """One optimizer step: a batch and a backward pass per task, surgery, clipping, AdamW."""
        problem = self._backward()
        if problem is None:
            problem = self._update()
        self.progress.step += 1
        self.window.steps += 1
        self._count(problem)
        if self._window_is_full():
            self.processes.agree(self._write_window)  # a disk may be full for one of them

    def _backward(self) -> str | None:
        """Capture every task's gradient; the problem, if a loss is not finite."""
        step = self.progress.step
        batches = self._next_batches(step)
        sizes = {task: shard.batch_size for task, (shard, _) in batches.items()}
        for task, (shard, batch) in batches.items():
            with self.precision.autocast():
                loss = self.model.loss(task, batch, self.batches.epoch(step))
            value = self.processes.add(shard.fraction * loss.item())
            if not math.isfinite(value):
                return f"loss of task {task} is {value}"
            with self.optimizer.task(task):
                weighted = self.model.weighting(task, shard.weight * loss, sizes)
                self.precision.scaler.scale(weighted).backward()
            self.window.add_loss(task, value)
        return None

    def _next_batches(self, step: int) -> dict[str, tuple[Shard, Batch]]:
        """This process's shard of each task's batch, on the device; the clock runs meanwhile."""
        begun = time.perf_counter()
        batches = {}
        for task, indices in self.batches.at(step).items():
            shard = Shard.of(indices, self.processes)
            batch = self.train_sets[task].collate(shard.indices, self.precision.device)
            batches[task] = shard, batch
        self._data_seconds += time.perf_counter() - begun
        return batches

    def _update(self) -> str | None:
        """Combine, clip and step; the problem, if the gradient is not finite."""
        scaler = self.precision.scaler
        self.optimizer.combine()
        scaler.unscale_(self.optimizer)
        norm = self._clip().item()
        if not math.isfinite(norm) and not scaler.is_enabled():
            return f"norm of the gradient is {norm}"
        # With a scaler an infinite gradient is part of the plan: it skips the step and halves its
        # scale.
        scaler.step(self.optimizer)
        scaler.update()
        if not math.isfinite(norm):
            return f"norm of the gradient is {norm} (loss scale now {scaler.get_scale():g})"
        self.window.lr = float(self.scheduler.get_last_lr()[0])
        self.scheduler.step()
        self.window.norm[0] += norm
        self.window.norm[1] += 1
        return None

    def _clip(self) -> Tensor:
        """Clip the combined gradient, which is what AdamW will use; the norm before that."""
        # Without clipping the norm is still measured: it is logged, and it tells whether to step.
        return torch.nn.utils.clip_grad_norm_(self.trained, self.config.clip or math.inf)

    def _count(self, problem: str | None) -> None:
        """Drop the gradients; count and report a skipped step, give up after too many in a row."""
        self.optimizer.zero_grad()
        if problem is None:
            self.progress.in_a_row = 0
            return
        self.progress.nonfinite += 1
        self.progress.in_a_row += 1
        self.window.nonfinite += 1
        self.say(f"step {self.progress.step}: skipped, as the {problem}")
        if self.progress.in_a_row > self.config.max_nonfinite:
            raise DivergedError(
                f"gave up at step {self.progress.step}: the {problem}, and "
                f"{self.progress.in_a_row} steps in a row were not finite (max_nonfinite = "
                f"{self.config.max_nonfinite}). Lower --lr (now {self.config.lr:g}), clip harder "
                f"with --clip (now {self.config.clip:g}), or use --amp off; {self.run.last.name} "
                "holds the state at the last checkpoint."
            )

    def _window_is_full(self) -> bool:
        step = self.progress.step
        # A window ends with its epoch, so that conflicts can be added up by epoch.
        full = step % self.config.log_every == 0
        return full or step % self.steps_per_epoch == 0 or step == self.goal

    def _write_window(self) -> None:
        seconds, data_seconds = time.perf_counter() - self._clock, self._data_seconds
        self._restart_clock()
        row = {
            "kind": "train",
            "step": self.progress.step,
            "epoch": self.epoch,
            **self.window.summary(),
            **self._learned_weights(),
            "seconds": seconds,
            "steps_per_second": self.window.steps / seconds,
            "data_seconds": data_seconds,
        }
        self.log.write(row)
        self.display.window(row, self.goal)
        self.log.write_conflicts(self.optimizer.conflicts, self.progress.step, self.epoch)
        self.window = Window()

    def _learned_weights(self) -> dict[str, dict[str, float]]:
        """The log-variances of uncertainty weighting; nothing with any other."""
        variances = getattr(self.model.weighting, "log_variance", None)
        if variances is None:
            return {}
        return {"log_variance": {task: variances[task].item() for task in self.config.trained}}

    def _evaluation_is_due(self) -> bool:
        step = self.progress.step
        ends = step > 0 and step % self.steps_per_epoch == 0
        return step > self.progress.evaluated and (ends or step == self.goal)

    def evaluate(self) -> None:
        """Score dev, and keep the weights if they are the best so far."""
        begun = time.perf_counter()
        answers = score_all(
            self.model, self.scored_sets, self.precision, self.processes, self.display
        )
        scores = self._scores(answers, REPORTED)
        for name, dev in answers.items():
            if dev.is_constant():
                self.say(
                    f"task {name}: every prediction is {dev.values[0]:g}, so its r is counted as 0"
                )
        tasks = self.config.definitions
        mean, leaderboard = mean_score(scores, tasks), leaderboard_score(scores, tasks)
        chosen_by = self._selection(answers, scores)
        best = self.config.select == "last" or chosen_by > self.progress.best_score
        self.progress.evaluated = self.progress.step
        row = {
            "kind": "dev",
            "step": self.progress.step,
            "epoch": self.epoch,
            "scores": scores,
            "mean": mean,
            "leaderboard": leaderboard,
            "best": best,
            **self._extra_scores(chosen_by),
        }
        if best:
            self.progress.best_score, self.progress.best_epoch = chosen_by, self.epoch
            self.processes.agree(lambda: self._save_best(row))
        spent = {
            "seconds": time.perf_counter() - begun,
            "peak_memory": peak_memory(self.precision.device),
        }
        self.processes.agree(lambda: self.log.write({**row, **spent}))
        self._restart_clock()
        self.say(
            f"epoch {self.epoch}: "
            f"{score_line(scores, mean, leaderboard)}{'  (best)' if best else ''}"
        )

    def _save_best(self, row: Mapping[str, Any]) -> None:
        if self.processes.is_main:
            made_with = {"settings": decisive(self.config), "files": self.files}
            save_weights(self.run.best, self.model.state_dict(), row, made_with)

    def _scores(self, answers: Mapping[str, Answers], half: int) -> dict[str, float]:
        """The score of each task on one half of dev, or without `dev_half` on all of it."""
        scores = {}
        for name, dev in answers.items():
            labels = self.scored_sets[name].labels
            if self.config.dev_half:
                indices = self.halves[name][half]
                dev, labels = dev.take(indices), [labels[i] for i in indices]
            scores[name] = dev.score(labels)
        return scores

    def _selection(self, answers: Mapping[str, Answers], reported: Mapping[str, float]) -> float:
        """The overall score by which the best epoch is chosen."""
        scores = self._scores(answers, CHOOSING) if self.config.dev_half else reported
        overall = leaderboard_score if self.config.select == "leaderboard" else mean_score
        return overall(scores, self.config.definitions)

    def _extra_scores(self, chosen_by: float) -> dict[str, Any]:
        """What is logged where a setting asks for it: the selecting score, and scores on train."""
        extra: dict[str, Any] = {"chosen_by": chosen_by} if self.config.dev_half else {}
        if self.train_subsets:
            answers = score_all(
                self.model,
                self.train_subsets,
                self.precision,
                self.processes,
                self.display,
                "train",
            )
            extra["train_scores"] = {
                name: answer.score(self.train_subsets[name].labels)
                for name, answer in answers.items()
            }
        return extra

    def _restart_clock(self) -> None:
        """Begin to time a window."""
        self._clock, self._data_seconds = time.perf_counter(), 0.0

    def _log_size(self) -> None:
        size = sum(parameter.numel() for parameter in self.trained)
        for module in self.model.modules():  # whether it is all in memory or not
            if isinstance(module, TrimmedEmbedding) and module.weight.requires_grad:
                size += module.left_out
        self.log.write({"kind": "model", "step": 0, "trained_parameters": size})

    def save(self) -> None:
        """Write the state to resume from."""
        state = self.state_dict()
        self.processes.agree(lambda: self._save(state))

    def _save(self, state: Mapping[str, Any]) -> None:
        if self.processes.is_main:
            save_state(self.run.last, {**state, "logs": self.log.marks()})

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what the run does next; all processes ask together."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "conflicts": self.optimizer.conflicts.state_dict(),
            "batches": self.batches.state_dict(),
            **random_states(self.processes),
            "progress": asdict(self.progress),
            "window": asdict(self.window),
            "data": self.data,
            "settings": kept(self.config),
            "files": self.files,
            "data_file": self.data_file,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the run that the state was taken from."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.optimizer.conflicts.load_state_dict(state["conflicts"])
        self.batches.load_state_dict(state["batches"])
        self.progress = Progress.from_dict(state["progress"])
        self.window = Window(**state["window"])
        self.restored = True
        # Last: nothing after it may draw.
        restore_random(state, self.config, self.processes)
