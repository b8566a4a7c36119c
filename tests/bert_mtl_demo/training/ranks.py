"""What test_processes.py has two processes do; run by torchrun, `ranks.py PLACE ENCODER`.

Each process leaves a JSON file of what it saw; runs lie under PLACE for the test to compare.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bert_mtl_demo import train
from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import DivergedError
from bert_mtl_demo.model.multitask import MultitaskModel
from bert_mtl_demo.store import writing
from bert_mtl_demo.training import trainer
from bert_mtl_demo.training.processes import Processes, joined
from bert_mtl_demo.training.run import continue_run, start_run
from bert_mtl_demo.training.trainer import Trainer
from gradsurgery import ConflictLog

SMALL: dict[str, Any] = {
    "device": "cpu",
    "amp": "off",
    "batch_size": 5,  # two processes: 3 and 2
    "epochs": 1,
    "steps_per_epoch": 6,
    "log_every": 1,
    "max_length": 64,
    "lr": 1e-3,
    "train_limit": 44,
    "dev_limit": 70,  # two batches of answers, one of them small
}
STILL = {**SMALL, "dropout": 0, "encoder_dropout": 0}


def flags(settings: dict[str, Any]) -> list[str]:
    """The settings as a user types them."""
    return [word for k, v in settings.items() for word in (f"--{k.replace('_', '-')}", str(v))]


def small(encoder: str, output: Path, **changes: Any) -> Config:
    return Config.from_mapping({**SMALL, "encoder": encoder, "output": str(output), **changes})


def still(encoder: str, output: Path, **changes: Any) -> Config:
    """Without dropout: so many processes, one curve."""
    return small(encoder, output, **{"dropout": 0, "encoder_dropout": 0, **changes})


def said(command: list[str]) -> dict[str, Any]:
    """What a command returned and printed in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = train.main(command)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


@contextlib.contextmanager
def after_step(step: int, act: Callable[[], None]) -> Iterator[None]:
    plain = Trainer.step

    def stepping(self: Trainer) -> None:
        plain(self)
        if self.progress.step == step:
            act()

    Trainer.step = stepping
    yield
    Trainer.step = plain


@contextlib.contextmanager
def spoiled_para(when: Callable[[int], bool]) -> Iterator[None]:
    """NaN in those losses of para, counted from 1, for which `when` holds."""
    plain, count = MultitaskModel.loss, iter(range(1, 1000))

    def loss(self: MultitaskModel, task: str, batch: Any, epoch: int = 1) -> Any:
        value = plain(self, task, batch, epoch)
        return value * float("nan") if task == "para" and when(next(count)) else value

    MultitaskModel.loss = loss
    yield
    MultitaskModel.loss = plain


def gives_up(encoder: str, place: Path, processes: Processes) -> str:
    with spoiled_para(lambda n: processes.rank == 1):
        try:
            start_run(still(encoder, place / "diverged", max_nonfinite=1), processes)
        except DivergedError as error:
            return str(error)
    return ""


def main(place: Path, encoder: str) -> None:
    seen: dict[str, Any] = {}
    with joined() as processes:
        second = processes.rank == 1
        seen["place"] = [processes.rank, processes.size, processes.local_rank]
        command = {"encoder": encoder, "output": place / "command", "method": "gradvac"}
        seen["command"] = said(flags({**STILL, **command}))

        changes = {"batch_size": 1, "weighting": "uncertainty", "batching": "uniform_partial"}
        start_run(still(encoder, place / "idle", **changes), processes)

        with spoiled_para(lambda n: n == 2 and second):
            start_run(still(encoder, place / "spoiled"), processes)
        seen["gave up"] = gives_up(encoder, place, processes)

        start_run(still(encoder, place / "begun by two", max_steps=3), processes)
        while not (place / "begun by one" / "ready").exists():
            time.sleep(0.05)
        continue_run(place / "begun by one", {"max_steps": "none"}, processes)

        start_run(small(encoder, place / "whole"), processes)
        with after_step(4, lambda: second and os.kill(os.getpid(), signal.SIGTERM)):
            halves = start_run(small(encoder, place / "halves"), processes)
        seen["stopped"] = [halves.done, halves.exit_code]
        continue_run(halves.path, {}, processes)

        used = {**STILL, "encoder": encoder, "output": place / "command"}
        fresh = {**STILL, "encoder": encoder, "output": place / "refused"}
        seen["refused"] = {
            "used": said(flags(used)),
            "comparing": said(flags({**fresh, "sts_loss": "simcse"})),
            "one has no data": said(
                flags({**fresh, "data": place / f"data{processes.rank}", "tasks": "sst"})
            ),
            "wrong": said(["--epochs", "0"]),
        }
        seen["pretrained"] = pretrained(encoder, place, processes)
        for part in ("checkpoint", "log"):
            with full_disk(part, place, processes):
                seen[f"full {part}"] = said(flags({**fresh, "output": place / f"full {part}"}))
    (place / f"{processes.rank}.json").write_text(json.dumps(seen))


@contextlib.contextmanager
def full_disk(part: str, place: Path, processes: Processes) -> Iterator[None]:
    """The second write of a checkpoint, or of a line of the log, finds the disk full."""
    owner, name = (trainer, "save_state") if part == "checkpoint" else (ConflictLog, "write")
    plain, count = getattr(owner, name), iter(range(1, 1000))

    def write(*args: Any, **keywords: Any) -> Any:
        if next(count) == 2:
            with writing(place / "file"):
                raise OSError(errno.ENOSPC, "No space left on device")
        return plain(*args, **keywords)

    if processes.is_main:
        setattr(owner, name, write)
    yield
    setattr(owner, name, plain)


def pretrained(encoder: str, place: Path, processes: Processes) -> bool:
    """A stage that main trains, in a cache that the other does not see; whether it did its work."""
    stage = {"pretrain": "nli", "pretrain_steps": 2, "cache": str(place / f"c{processes.rank}")}
    start_run(still(encoder, place / "pretrained", **stage, epochs=1), processes)
    return (place / f"c{processes.rank}").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
