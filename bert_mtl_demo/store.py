"""Finished work on disk: named by a hash of what decides it, and there as a whole or not at all.

Work that takes minutes or hours is an *entry*, a file or a directory: an encoder behind its
pre-training stages, the result of a run, a probe. It is written beside its path, flushed to the
disk and renamed, which is atomic, so an entry that exists is finished and is never computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bert_mtl_demo.errors import CheckpointError


def key_of(values: Mapping[str, Any], digits: int = 10) -> str:
    """The first hexadecimal digits of a hash of plain values, whatever their order.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:digits]


def get_or_write(path: Path, write: Callable[[Path], object]) -> Path:
    """The entry at `path`; if there is none, `write` is called with the path to write it to.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "runs" / "answer.txt"
    >>> get_or_write(path, lambda unfinished: unfinished.write_text("42")).read_text()
    '42'
    >>> get_or_write(path, lambda unfinished: unfinished.write_text("43")).read_text()
    '42'
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as unfinished:
            write(unfinished)
    return path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path for a file or directory that is renamed to `path` if the block succeeds.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with atomic(target) as unfinished:
    ...     _ = unfinished.write_text("whole")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('whole', 1)
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(unfinished)  # of a process with the same number that was killed
    try:
        yield unfinished
        _flush(unfinished)
        _publish(unfinished, path)
    finally:
        _remove(unfinished)


def _flush(entry: Path) -> None:
    # Without this a power cut may leave the new name on empty files.
    files = [path for path in entry.rglob("*") if path.is_file()] if entry.is_dir() else [entry]
    for path in files:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _publish(unfinished: Path, path: Path) -> None:
    try:
        unfinished.replace(path)
    except OSError:
        # A directory is not replaced: another process wrote this entry first, and just as well.
        if not (unfinished.is_dir() and path.is_dir()):
            raise


def _remove(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def write_json(path: Path, content: Any, indent: int | None = None) -> Path:
    """Write plain values as an entry, over the one that was there; NaN is refused.

    >>> import tempfile
    >>> read_json(write_json(Path(tempfile.mkdtemp()) / "runs" / "a.json", {"a": 1}), remedy="")
    {'a': 1}
    """
    text = json.dumps(content, indent=indent, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")
    return path


def read_json(path: Path, *, remedy: str) -> Any:
    """The content of an entry; an error that ends with `remedy` if it cannot be read.

    >>> read_json(Path("no-such.json"), remedy="run the study again")
    Traceback (most recent call last):
    bert_mtl_demo.errors.CheckpointError: no-such.json: cannot be read (FileNotFoundError); run \
the study again
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}); {remedy}"
        ) from None
