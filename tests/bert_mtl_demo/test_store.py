"""Finished work: there as a whole or not at all, and computed once."""

from __future__ import annotations

import ast
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bert_mtl_demo
from bert_mtl_demo import store
from bert_mtl_demo.errors import CheckpointError, StorageError


def write_file(path: Path) -> None:
    path.write_text("finished", encoding="utf-8")


def write_directory(path: Path) -> None:
    (path / "part").mkdir(parents=True)
    (path / "note.txt").write_text("finished", encoding="utf-8")
    (path / "part" / "weights").write_bytes(b"1")


KINDS = pytest.mark.parametrize("write", [write_file, write_directory], ids=["file", "directory"])
Write = Callable[[Path], None]


@KINDS
def test_an_entry_is_written_once(write: Write, tmp_path: Path) -> None:
    path, calls = tmp_path / "new" / "entry", []

    def counted(unfinished: Path) -> None:
        calls.append(unfinished)
        assert not path.exists()
        write(unfinished)

    for _ in range(2):
        assert store.get_or_write(path, counted) == path
    assert len(calls) == 1
    assert list(path.parent.iterdir()) == [path]


@KINDS
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError, SystemExit])
def test_an_interrupted_entry_leaves_nothing(
    write: Write, stop: type[BaseException], tmp_path: Path
) -> None:
    def interrupted(unfinished: Path) -> None:
        write(unfinished)
        raise stop

    with pytest.raises(stop):
        store.get_or_write(tmp_path / "entry", interrupted)
    assert list(tmp_path.iterdir()) == []
    store.get_or_write(tmp_path / "entry", write)


@KINDS
def test_what_a_killed_process_left_is_in_nobodys_way(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "entry"

    def killed(unfinished: Path) -> None:
        write(unfinished)
        unfinished.rename(tmp_path / unfinished.name.replace(".tmp", ".left"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get_or_write(path, killed)
    (left,) = tmp_path.iterdir()
    left.rename(left.with_suffix(".tmp"))  # of a process that had this one's number
    store.get_or_write(path, write)
    assert list(tmp_path.iterdir()) == [path]


@KINDS
def test_two_processes_may_write_the_same_entry(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "entry"

    def slower(unfinished: Path) -> None:
        write(path)  # meanwhile the other process is done
        write(unfinished)

    store.get_or_write(path, slower)
    assert list(tmp_path.iterdir()) == [path]


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_dead_processes_of_this_machine_are_cleaned_up_after(tmp_path: Path) -> None:
    """A number says nothing about the processes of another machine on the same disk."""
    path, dead = tmp_path / "entry", ended_process()
    machine = store._machine()
    alive = [f".entry.{machine}-{os.getppid()}.tmp", f".entry.elsewhere-{dead}.tmp"]
    alive += [f".entry.{dead}.tmp", f".entry.json.{machine}-{dead}.tmp"]
    for name in [*alive, f".entry.{machine}-{dead}.tmp"]:
        (tmp_path / name).mkdir()
    store.get_or_write(path, write_directory)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([*alive, "entry"])


@pytest.mark.parametrize("target", ["file", "directory", "nothing"])
def test_links_are_replaced_and_not_followed(tmp_path: Path, target: str) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    run.mkdir()
    if target == "file":
        outside.write_text("precious")
    elif target == "directory":
        outside.mkdir()
        (outside / "precious").touch()
    (run / "page.md").symlink_to(outside)
    (run / f".page.md.{store._machine()}-{os.getpid()}.tmp").symlink_to(outside)
    store.write_text(run / "page.md", "text")
    assert (run / "page.md").read_text() == "text"
    assert [entry.name for entry in run.iterdir()] == ["page.md"]
    if target == "file":
        assert outside.read_text() == "precious"
    elif target == "directory":
        assert [entry.name for entry in outside.iterdir()] == ["precious"]
    else:
        assert not outside.exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "full"), "No space left on device.*Free some space"),
        (OSError(errno.EDQUOT, "quota"), "quota"),
        (OSError(errno.EROFS, "read-only"), "Read-only file system"),
        (Exception("I/O error: File too large (os error 27)"), "File too large"),
        (PermissionError(errno.EACCES, "denied", "runs/x"), "Permission denied"),
    ],
)
def test_what_the_system_refuses_is_one_error(error: Exception, message: str) -> None:
    with pytest.raises(StorageError, match=message), store.writing(Path("runs/entry")):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "none", "runs/x"),
        PermissionError(errno.EACCES, "denied", "/elsewhere/data.csv"),
        RuntimeError("a bug"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_stay_what_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, store.writing(Path("runs/entry")):
        raise error
    assert caught.value is error


def test_json_replaces_json_and_holds_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for value in (1, 2):
        store.write_json(path, {"value": value})
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write_json(path, {"value": float("nan")})
    assert json.loads(path.read_text("utf-8")) == {"value": 2}
    path.write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"a\.json: cannot be read .* delete it"):
        store.read_json(path, remedy="delete it")


@pytest.mark.parametrize(
    ("values", "digits", "key"),
    [
        ({}, 10, "44136fa355"),
        ({"b": [1, None], "a": "\u00e9"}, 10, "8920de3941"),
        ({"b": [1, None], "a": "\u00e9"}, 32, "8920de3941419361f145cefba9aa462e"),
    ],
)
def test_keys_stay_as_they_are(values: dict[str, object], digits: int, key: str) -> None:
    """Whatever was kept is found again by them."""
    assert store.key_of(values, digits) == key


def test_the_store_stands_below_what_keeps_its_work_there() -> None:
    """And no module of the demo imports research but when its study is asked for."""
    root = Path(bert_mtl_demo.__file__).parent
    imports = {path: set(_imported(path)) for path in root.rglob("*.py")}
    demo = {name for name in imports[root / "store.py"] if name.startswith("bert_mtl_demo")}
    assert demo == {"bert_mtl_demo.errors"}
    assert not [path for path, names in imports.items() if any("research" in n for n in names)]


def _imported(path: Path) -> list[str]:
    """The modules that a module imports when it is imported itself."""
    names: list[str] = []
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names
