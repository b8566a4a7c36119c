"""A run that was stopped and continued is the run that never stopped, to the last bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from bert_mtl_demo.config import BATCHINGS, Config
from bert_mtl_demo.data import load
from bert_mtl_demo.errors import CheckpointError, DemoError
from bert_mtl_demo.tasks import resolve
from bert_mtl_demo.training.checkpoint import load_state
from bert_mtl_demo.training.run import continue_run, start_run
from bert_mtl_demo.training.run_settings import extended
from bert_mtl_demo.training.trainer import Trainer

LOGS = ("metrics.jsonl", "conflicts.jsonl")


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, act) -> None:
    """Have `act` happen once `step` steps are done."""
    original = Trainer.step

    def stepping(self: Trainer) -> None:
        original(self)
        if self.progress.step == step:
            act()

    monkeypatch.setattr(Trainer, "step", stepping)


def assert_same_state(one: object, other: object, where: str = "state") -> None:
    """Equal to the bit, whatever the nesting."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_state(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for n, pair in enumerate(zip(one, other, strict=True)):
            assert_same_state(*pair, f"{where}[{n}]")
    else:
        assert one == other, where


def assert_same_run(one: Path, other: Path, rows_of) -> None:
    for name in LOGS:
        assert rows_of(one, name) == rows_of(other, name)
    states = [load_state(path / "last.pt") for path in (one, other)]
    for state in states:
        del state["logs"]  # bytes; the clock's digits may differ in number
        state["settings"].pop("task", None)  # where its tables lie
    assert_same_state(*states)
    assert (one / "best.safetensors").read_bytes() == (other / "best.safetensors").read_bytes()


@pytest.mark.parametrize("step", [1, 3, 6, 8, 12])
@pytest.mark.parametrize("method", ["pcgrad", "gradvac"])
def test_interrupted_and_resumed_is_bitwise_uninterrupted(
    settings, rows_of, monkeypatch, method, step
):
    whole = start_run(settings("whole", method=method))

    with monkeypatch.context() as patch:
        stop_after(patch, step, lambda: signal.raise_signal(signal.SIGINT))
        halves = start_run(settings("halves", method=method))
    assert (halves.done, halves.exit_code) == (False, 130)
    assert load_state(halves.path / "last.pt")["progress"]["step"] == step

    torch.manual_seed(99)  # whatever the new process has done before
    assert continue_run(halves.path, {}).done
    assert_same_run(whole.path, halves.path, rows_of)


@pytest.mark.parametrize(
    "changes",
    [
        *({"batching": name} for name in BATCHINGS if name != "zipped"),
        {"sts_loss": "mnrl_one"},
        {"sts_loss": "mnrl_one", "batching": "uniform_partial", "weighting": "uncertainty"},
        {"batching": "method_1", "weighting": "inverse_share"},
    ],
    ids=lambda changes: " ".join(changes.values()),
)
def test_every_scheme_resumes_in_the_middle_of_an_epoch(settings, rows_of, monkeypatch, changes):
    changes = {**changes, "steps_per_epoch": 3, "log_every": 2}
    whole = start_run(settings("whole", **changes))
    with monkeypatch.context() as patch:
        stop_after(patch, 4, lambda: signal.raise_signal(signal.SIGINT))
        halves = start_run(settings("halves", **changes))
    assert not halves.done
    torch.manual_seed(99)
    continue_run(halves.path, {})
    assert_same_run(whole.path, halves.path, rows_of)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_resumes_too(settings, rows_of, monkeypatch, amp):
    whole = start_run(settings("whole", amp=amp))
    with monkeypatch.context() as patch:
        stop_after(patch, 5, lambda: signal.raise_signal(signal.SIGTERM))
        halves = start_run(settings("halves", amp=amp))
    assert halves.exit_code == 143
    continue_run(halves.path, {})
    assert_same_run(whole.path, halves.path, rows_of)


def test_a_killed_run_goes_on_from_its_last_checkpoint(settings, rows_of, monkeypatch):
    """What was logged after the checkpoint is cut, and comes back the same."""

    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    whole = start_run(settings("whole", checkpoint_every=5))
    with monkeypatch.context() as patch:
        stop_after(patch, 9, die)
        with pytest.raises(Killed):
            start_run(settings("killed", checkpoint_every=5))
    killed = Path(settings("killed").output)
    assert load_state(killed / "last.pt")["progress"]["step"] == 6  # the epoch's end
    assert rows_of(killed, "metrics.jsonl")[-1]["step"] == 8  # two steps past it
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # the line it was writing
    continue_run(killed, {})
    assert_same_run(whole.path, killed, rows_of)


def test_a_run_stopped_by_max_steps_can_be_taken_further(settings, rows_of):
    whole = start_run(settings("whole"))
    part = start_run(settings("part", max_steps=8))
    assert part.done
    continue_run(part.path, {"max_steps": "none"})

    def trained(path):
        return [row for row in rows_of(path, "metrics.jsonl") if row["kind"] == "train"]

    assert trained(whole.path) == trained(part.path)  # the schedule was never squeezed


def test_more_epochs_can_be_asked_for(settings, rows_of):
    path = start_run(settings()).path
    assert continue_run(path, {"epochs": 3}).done
    assert [r["epoch"] for r in rows_of(path, "metrics.jsonl") if r["kind"] == "dev"] == [1, 2, 3]
    assert continue_run(path, {}).done  # nothing left to do is no error


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"lr": "0.5"}, ["lr = 0.5 was given", "lr = 0.001", "without --resume"]),
        ({"method": "sum"}, ["method = sum", "method = pcgrad"]),
        ({"seed": 7}, ["seed = 7", "seed = 0"]),
        ({"output": "elsewhere"}, ["output = elsewhere"]),
        ({"max_steps": 3}, ["6 steps are done", "only 3"]),
        ({"epochs": 0}, ["epochs = 0", "at least 1"]),
    ],
    ids=str,
)
def test_a_contradiction_is_refused_naming_both_values(settings, changes, parts):
    path = start_run(settings(epochs=1)).path
    before = (path / "config.json").read_text()
    with pytest.raises(DemoError) as caught:
        continue_run(path, changes)
    for part in parts:
        assert part in str(caught.value)
    assert (path / "config.json").read_text() == before


def test_the_same_value_again_is_no_contradiction(settings):
    path = start_run(settings(epochs=1, max_steps=1)).path
    assert continue_run(path, {"lr": "1e-3", "output": str(path), "tasks": "sst para sts"}).done


def test_other_data_are_refused(settings, monkeypatch):
    path = start_run(settings(epochs=1, max_steps=2)).path
    whole = load("sample", resolve(("sst", "para", "sts")))  # and not its first rows
    monkeypatch.setattr("bert_mtl_demo.training.run.load", lambda *args, **kwargs: whole)
    with pytest.raises(ValueError, match="train/sst data are not the ones"):
        continue_run(path, {})


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda run: (run / "config.json").unlink(), "not a run directory"),
        (lambda run: (run / "config.json").write_text("{"), "cannot be read"),
        (lambda run: (run / "config.json").write_text('{"lrr": 1}'), "did you mean 'lr'"),
        (lambda run: (run / "last.pt").unlink(), "no last.pt"),
        (lambda run: (run / "last.pt").write_bytes(b"PK\x03\x04 half"), "damaged"),
        (
            lambda run: (run / "last.pt").write_bytes((run / "last.pt").read_bytes()[:5000]),
            "damaged",
        ),
        (lambda run: torch.save({"format": 99}, run / "last.pt"), "format 99"),
    ],
)
def test_a_damaged_run_is_refused(settings, damage, part):
    path = start_run(settings(epochs=1, max_steps=1)).path
    damage(path)
    with pytest.raises(ValueError, match=part):
        continue_run(path, {})


def test_a_crash_while_saving_leaves_the_old_checkpoint(settings, monkeypatch):
    path = start_run(settings(epochs=1, max_steps=1)).path
    before = (path / "last.pt").read_bytes()

    def full(state: object, file: BinaryIO) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bert_mtl_demo.training.checkpoint.torch.save", full)
    with pytest.raises(OSError, match="No space left"):
        continue_run(path, {"max_steps": 2})
    assert (path / "last.pt").read_bytes() == before
    assert not list(path.glob("*.tmp")) + list(path.glob(".*.tmp"))


def test_ctrl_c_leaves_a_run_that_resumes(tiny_encoder, tmp_path):
    """The real thing: a process of its own, a real signal, the command it prints."""
    run = tmp_path / "run"
    flags = [
        "--encoder",
        tiny_encoder,
        "--output",
        str(run),
        "--log-every",
        "1",
        "--max-length",
        "64",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "bert_mtl_demo.train", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    deadline = time.monotonic() + 60
    log = run / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"continue with: python -m bert_mtl_demo.train --resume {run}" in out
    assert "Traceback" not in err
    step = load_state(run / "last.pt")["progress"]["step"]
    assert step >= 1
    assert continue_run(run, {"max_steps": step + 1}).done


NOTHING_DRAWN = """
import random, sys
from bert_mtl_demo.config import Config
from bert_mtl_demo.training.checkpoint import load_state
from bert_mtl_demo.training.run import start_run
few = {"max_length": 64, "train_limit": 8, "dev_limit": 8, "device": "cpu", "max_steps": 1}
run = start_run(Config(encoder=sys.argv[1], output=sys.argv[2], **few)).path
random.seed(0)
assert load_state(run / "last.pt")["random"]["python"] == random.getstate()
"""


def test_nothing_that_a_run_imports_late_draws(tiny_encoder, tmp_path):
    """A resumed run imports it again, and would draw twice."""
    done = subprocess.run(
        [sys.executable, "-c", NOTHING_DRAWN, tiny_encoder, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("batching", ["sequential", "annealed"])
def test_a_plan_over_all_epochs_cannot_get_more_of_them(batching, tmp_path):
    saved = Config(batching=batching, method="sum", epochs=2)
    assert extended(saved, {"epochs": 2, "cache": "elsewhere"}, tmp_path).epochs == 2
    with pytest.raises(CheckpointError, match="laid out over 2 epochs"):
        extended(saved, {"epochs": 3}, tmp_path)
    assert extended(Config(epochs=2), {"epochs": 3}, tmp_path).epochs == 3
