"""Finished work on disk: named by a hash of what decides it, and there as a whole or not at all.

Work that takes minutes or hours is an *entry*, a file or a directory: an encoder behind its
pre-training stages, the result of a run, a probe. It is written beside its path, flushed to the
disk and renamed, which is atomic, so an entry that exists is finished and is never computed again.
A link at that path is replaced by the rename, never written through.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bert_mtl_demo.errors import CheckpointError, StorageError

# What a system says when it will not write, and what to do.
REMEDIES = {
    errno.ENOSPC: "Free some space on that disk.",
    errno.EDQUOT: "Free some of your quota there.",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f).",
    errno.EROFS: "Use a directory on a disk that can be written to.",
    errno.EACCES: "Use a directory that you may write to.",
    errno.EPERM: "Use a directory that you may write to.",
    errno.EIO: "The disk may be failing: use another one.",
}


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
    unfinished = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.tmp")
    for entry in leftovers(path):
        if entry == unfinished or not _may_be_written(entry):
            remove(entry)
    try:
        with writing(path):
            yield unfinished
            _flush(unfinished)
            _publish(unfinished, path)
    finally:
        remove(unfinished)


def leftovers(path: Path) -> list[Path]:
    """The unfinished writes of an entry: of processes that are writing it, and of killed ones.

    >>> leftovers(Path("no-such-directory/note.txt"))
    []
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.([^.]*-)?[0-9]+\.tmp")  # 0.1.0: no machine
    if not path.parent.is_dir():
        return []
    return [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]


def _machine() -> str:
    return socket.gethostname().partition(".")[0]


def _may_be_written(unfinished: Path) -> bool:
    """Whether the process that an unfinished write is named after may be alive.

    One of another machine may be; so may any on Windows, where signal 0 would end it.
    """
    machine, _, process = unfinished.name.split(".")[-2].rpartition("-")
    if os.name == "nt" or machine != _machine():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's; a number that no process has
    return True


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes `path`; a full disk and its like become one error with a remedy.

    Raises:
        StorageError: when the system refuses to write.

    >>> with writing(Path("last.pt")):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    bert_mtl_demo.errors.StorageError: last.pt: cannot be written (No space left on device). \
Free some space on that disk.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        number = _refusal(error, path.parent)
        if number is None:
            raise
        raise StorageError(
            f"{path}: cannot be written ({os.strerror(number)}). {REMEDIES[number]}"
        ) from error


def _refusal(error: BaseException | None, directory: Path) -> int | None:
    """The number of the system's refusal to write there; None if an error has another reason.

    torch raises its own error after the system's, and libraries in Rust have its number in a text.
    """
    while error is not None:
        number = None
        if named := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(named[1])
        elif (
            isinstance(error, OSError)
            and directory in Path(error.filename or directory / "x").parents
        ):
            number = error.errno
        if number in REMEDIES:
            return number
        error = error.__cause__ or error.__context__
    return None


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


def remove(entry: Path) -> None:
    """Delete a file, a directory with all that is in it, or a link; nothing if there is none."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write a text as an entry, over the one that was there.

    >>> import tempfile
    >>> write_text(Path(tempfile.mkdtemp()) / "page.md", "# Page").read_text()
    '# Page'
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: Any, indent: int | None = None) -> Path:
    """Write plain values as an entry, over the one that was there; NaN is refused.

    >>> import tempfile
    >>> read_json(write_json(Path(tempfile.mkdtemp()) / "runs" / "a.json", {"a": 1}), remedy="")
    {'a': 1}
    """
    return write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


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
