"""Full disks, and signals that come twice: one line with a remedy, and a run that goes on."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bert_mtl_demo import train
from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import StorageError
from bert_mtl_demo.training.checkpoint import load_state
from bert_mtl_demo.training.run import continue_run, start_run
from bert_mtl_demo.training.trainer import Trainer
from tests.bert_mtl_demo.training.ranks import flags
from tests.bert_mtl_demo.training.test_resume import assert_same_run, stop_after

Settings = Callable[..., Config]


def command(config: Config) -> list[str]:
    """The settings of `config` that differ from the defaults, as a user types them."""
    return flags(config.changed())


@contextmanager
def file_size(limit: int) -> Iterator[None]:
    """No file may grow beyond that many bytes: the system refuses, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [1, 1_000, 20_000, 100_000, 200_000])
def test_a_limit_on_files_is_one_line(
    settings: Settings, limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever meets it first: the encoder's tokenizer, weights, a checkpoint, a log."""
    config = settings(epochs=1, max_steps=2)
    with file_size(limit):
        assert train.main(command(config)) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert "cannot be written (File too large). Raise the limit" in line
    run = Path(str(config.output))
    if (run / "last.pt").exists():
        assert f"continue with: python -m bert_mtl_demo.train --resume {run}" in line
    else:
        assert not run.exists()
    assert not list(Path(run.parent).rglob("*.tmp"))


@pytest.mark.parametrize(
    ("part", "number"),
    [
        ("log", errno.ENOSPC),
        ("conflict log", errno.EDQUOT),
        ("checkpoint", errno.EROFS),
        ("rename", errno.EIO),
    ],
)
def test_a_full_disk_loses_nothing(
    settings: Settings,
    rows_of: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    part: str,
    number: int,
) -> None:
    places = {
        "log": "bert_mtl_demo.training.logs.json.dumps",
        "conflict log": "gradsurgery.ConflictLog.write",
        "checkpoint": "bert_mtl_demo.training.checkpoint.torch.save",
        "rename": "bert_mtl_demo.store._publish",
    }
    whole = start_run(settings("whole", checkpoint_every=2))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    config = settings("full", checkpoint_every=2)
    with monkeypatch.context() as patch:
        stop_after(patch, 3, lambda: patch.setattr(places[part], refuse))
        assert train.main(command(config)) == 1
    error = capsys.readouterr().err
    assert os.strerror(number) in error
    assert f"--resume {config.output}" in error
    assert "Traceback" not in error
    run = continue_run(str(config.output), {}).path
    assert_same_run(whole.path, run, rows_of)


def test_a_system_error_behind_another_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch raises its own when its file fails to end after the system refused to write."""

    def save(state: object, file: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904

    monkeypatch.setattr("bert_mtl_demo.training.checkpoint.torch.save", save)
    with pytest.raises(StorageError, match=r"last\.pt: cannot be written \(No space left"):
        start_run(settings(max_steps=1))


def twice() -> None:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def test_a_second_interrupt_says_how_to_go_on(
    settings: Settings,
    rows_of: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = start_run(settings("whole"))
    config = settings("twice")
    with monkeypatch.context() as patch:
        stop_after(patch, 4, twice)
        assert train.main(command(config)) == 130
    error = capsys.readouterr().err
    assert (
        f"interrupted; continue with: python -m bert_mtl_demo.train --resume {config.output}"
        in (error)
    )
    assert load_state(Path(str(config.output)) / "last.pt")["progress"]["step"] == 0
    assert_same_run(whole.path, continue_run(str(config.output), {}).path, rows_of)


def test_an_interrupted_report_is_written_by_resuming(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(epochs=1, max_steps=1)

    def interrupted(directory: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bert_mtl_demo.reporting.run_report.write_report", interrupted)
        assert train.main(command(config)) == 130
    assert f"--resume {config.output}" in capsys.readouterr().err
    assert train.main(["--resume", str(config.output)]) == 0
    assert (Path(str(config.output)) / "report.md").exists()


def test_an_interrupt_while_loading_says_how_to_go_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = start_run(settings(epochs=1, max_steps=1)).path

    def interrupted(self: Trainer, state: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "load_state_dict", interrupted)
    assert train.main(["--resume", str(path)]) == 130
    assert f"--resume {path}" in capsys.readouterr().err
