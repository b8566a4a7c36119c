"""One directory, one run: who claims it, what a dead process leaves, and what a live one keeps."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import CheckpointError, ConfigError, DemoError, StorageError
from bert_mtl_demo.training.claim import LOCK, delete, existing_directory, new_directory
from bert_mtl_demo.training.run import continue_run, start_run

Settings = Callable[..., Config]

HOLD = """
import sys, time
from pathlib import Path
from bert_mtl_demo.training.claim import existing_directory
with existing_directory(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that holds a run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_runs_that_start_together_get_a_directory_each(tmp_path: Path) -> None:
    path, together = tmp_path / "runs" / "now", threading.Barrier(8)

    def begin(_: int) -> str:
        together.wait()
        with new_directory(path, chosen=False) as directory:
            (directory / "last.pt").touch()
            together.wait()
            return directory.name

    with ThreadPoolExecutor(8) as pool:
        names = sorted(pool.map(begin, range(8)))
    assert names == ["now", *(f"now-{n}" for n in range(2, 9))]


def test_two_runs_of_one_second_have_two_names(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bert_mtl_demo.training.run.output_of", lambda _: tmp_path / "now")
    config = Config.from_mapping({**settings(max_steps=1).to_dict(), "output": None})
    paths = [start_run(config).path for _ in range(2)]
    assert [path.name for path in paths] == ["now", "now-2"]


def test_of_two_runs_with_one_output_one_is_refused(tmp_path: Path) -> None:
    path, together = tmp_path / "run", threading.Barrier(6)

    def begin(_: int) -> str:
        together.wait()
        try:
            with new_directory(path, chosen=True) as directory:
                (directory / "last.pt").touch()
                return "begun"
        except DemoError as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(begin, range(6)))
    assert answers.count("begun") == 1
    for answer in answers:
        assert answer == "begun" or "--output" in answer
    assert sorted(entry.name for entry in path.iterdir()) == [LOCK, "last.pt"]


def test_a_live_run_is_not_continued_and_a_dead_one_is(settings: Settings) -> None:
    path = start_run(settings(epochs=1, max_steps=1)).path
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    process = holder(path)
    try:
        with pytest.raises(CheckpointError, match=f"process {process.pid} on .* is writing"):
            continue_run(path, {})
        with pytest.raises(CheckpointError, match="is writing"):
            delete(path)
        del before[LOCK]
        for name, content in before.items():
            assert (path / name).read_bytes() == content
    finally:
        process.kill()
        process.communicate()
    assert (path / LOCK).exists()
    assert continue_run(path, {}).done
    delete(path)
    assert not path.exists()


def test_what_killed_processes_left_is_deleted_and_nothing_else(settings: Settings) -> None:
    path = start_run(settings(epochs=1, max_steps=1)).path
    left = [
        ".last.pt.4711.tmp",
        ".last.pt.node7-4711.tmp",
        f".best.safetensors.a-{os.getpid()}.tmp",
    ]
    others = ["notes.tmp", ".last.pt.copy", "last.pt.bak"]
    for name in left + others:
        (path / name).write_bytes(b"half")
    continue_run(path, {})
    assert not [name for name in left if (path / name).exists()]
    assert all((path / name).exists() for name in others)


def test_a_directory_in_use_is_refused_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with (
        pytest.raises(ConfigError, match="exists and is not empty"),
        new_directory(tmp_path, chosen=True),
    ):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"

    def interrupted() -> None:
        with new_directory(path, chosen=True):
            (path / "encoder").mkdir()
            (path / "config.json").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not path.exists()


def test_without_locks_a_run_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: FileLock) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with existing_directory(tmp_path):
        pass
    assert "without locks" in capsys.readouterr().out


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_run_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(self: FileLock) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(StorageError, match=r"Use a directory"), existing_directory(tmp_path):
        pass
