"""Training in processes that can be ended: forked, so that torch is loaded once for all of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401  # what takes seconds to load is loaded once, here
import torch
import torch.utils.tensorboard
import transformers  # noqa: F401

from bert_mtl_demo import train
from bert_mtl_demo.reporting import plots, run_report
from bert_mtl_demo.training.checkpoint import load_state
from tests.tiny_runs import CLOCK, SHAPE, VOCABULARY

SETTINGS = (
    *("--device", "cpu", "--batch-size", "4", "--steps-per-epoch", "6", "--log-every", "1"),
    *("--max-length", "64", "--train-limit", "44", "--dev-limit", "24", "--lr", "1e-3"),
    *("--checkpoint-every", "1", "--method", "gradvac", "--epochs", "2"),
)
LOGS = ("metrics.jsonl", "conflicts.jsonl")


@dataclass(frozen=True)
class Ended:
    """The end of a process: its exit code, negative for a signal, and what it printed."""

    code: int
    output: str
    seconds: float


def small_encoder(path: Path) -> Path:
    """A directory with a random BERT and its tokenizer; a checkpoint of it takes 10 MB."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    shape = {**SHAPE, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    BertModel(BertConfig(**shape)).save_pretrained(path)
    BertTokenizerFast.from_pretrained(path).save_pretrained(path)
    return path


def leave_out_pictures() -> None:
    """Reports without pictures in this process and those it starts: they take most of the time."""
    plots.save = lambda figure, path: path
    run_report.surgery.draw = lambda lines, directory: []


def command(
    arguments: list[str],
    log: Path,
    *,
    end: tuple[int, float] | None = None,
    before: Callable[[], None] = lambda: None,
) -> Ended:
    """`python -m bert_mtl_demo.train` with these arguments, in a process.

    Args:
        arguments: the flags.
        log: where its output goes.
        end: a signal, and the seconds after which it is sent; twice, if they are negative.
        before: called in the process first.
    """
    begun = time.monotonic()
    process = os.fork()
    if process == 0:
        code = 70
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            before()
            code = train.main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if end is not None:
        number, seconds = end
        time.sleep(abs(seconds))
        os.kill(process, number)
        if seconds < 0:
            os.kill(process, number)
    _, status = os.waitpid(process, 0)
    seconds = time.monotonic() - begun
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    return Ended(os.waitstatus_to_exitcode(status), text, seconds)


def difference(one: Path, other: Path) -> str:
    """Where two finished runs differ; empty if they are the same to the bit, but for the clock."""
    files = [sorted(path.name for path in run.iterdir()) for run in (one, other)]
    if files[0] != files[1]:
        return f"files: {files[0]} and {files[1]}"
    for name in LOGS:
        if _rows(one / name) != _rows(other / name):
            return name
    if (one / "best.safetensors").read_bytes() != (other / "best.safetensors").read_bytes():
        return "best.safetensors"
    states = [load_state(run / "last.pt") for run in (one, other)]
    for state in states:
        del state["logs"]  # bytes; the clock's digits may differ in number
    return _unequal(*states)


def _rows(log: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def _unequal(one: Any, other: Any, where: str = "last.pt") -> str:
    if isinstance(one, torch.Tensor):
        return "" if torch.equal(one, other) else where
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return where
        return next(filter(None, (_unequal(one[k], other[k], f"{where}:{k}") for k in one)), "")
    if isinstance(one, list | tuple) and len(one) == len(other):
        return next(
            filter(None, (_unequal(*pair, where) for pair in zip(one, other, strict=True))), ""
        )
    return "" if one == other else where
