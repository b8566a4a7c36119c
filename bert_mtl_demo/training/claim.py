"""A run's directory, claimed by one process: locked for the run's life, clear of what died in it.

The lock is the kernel's, so it ends with the process that holds it, however that ends, and a file
`.lock` that is left behind means nothing. File systems of a network take part as far as they know
locks (NFS does); where there are none, a run says so and trains all the same.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from bert_mtl_demo.errors import CheckpointError, ConfigError
from bert_mtl_demo.store import remove, writing

LOCK = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def new_directory(path: Path, *, chosen: bool) -> Iterator[Path]:
    """A directory for a new run, made and locked; without a checkpoint at the end it is deleted.

    Args:
        path: where; "-2", "-3", ... is added while there is one already, unless it was chosen.
        chosen: whether the user named it.

    Raises:
        ConfigError: when a directory that was chosen holds anything, is another run's, or cannot
            be made.

    >>> import tempfile
    >>> with new_directory(Path(tempfile.mkdtemp()), chosen=False) as first:
    ...     _ = (first / "last.pt").write_text("...")
    >>> first.name.endswith("-2")
    True
    """
    if chosen:
        _refuse_if_used(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path = _make_chosen(path) if chosen else _make(path)
    except OSError as error:
        raise ConfigError(f"output = {path}: cannot be made ({error.strerror})") from None
    with _locked(path):
        try:
            _refuse_if_used(path)  # another process may have begun, and ended, in the meantime
            yield path
        finally:
            if not (path / "last.pt").exists():
                _empty(path)


@contextmanager
def existing_directory(path: Path) -> Iterator[Path]:
    """The directory of a run, locked, to go on with it.

    Raises:
        CheckpointError: when another process is writing it.
        StorageError: when it cannot be written to.
    """
    with _locked(path):
        yield path


def delete(path: Path) -> None:
    """Delete a run, unless a process is writing it.

    Raises:
        CheckpointError: when one is.
    """
    if path.is_dir():
        with _locked(path):
            pass
        remove(path)


def _refuse_if_used(path: Path) -> None:
    """Refuse a directory that holds anything but a lock, so that no work is overwritten."""
    if path.exists() and (not path.is_dir() or any(p.name != LOCK for p in path.iterdir())):
        raise ConfigError(
            f"output = {path}: exists and is not empty. Name another one with --output, "
            f"or continue that run with --resume {path}."
        )


def _make_chosen(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _make(path: Path) -> Path:
    """Make a directory that no process has made yet."""
    for number in count(1):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("count ends")


def _empty(path: Path) -> None:
    """Delete what a run that never began has left, and its directory."""
    for entry in path.iterdir():
        if entry.name != LOCK:
            remove(entry)
    with suppress(OSError):  # a mount point; or Windows, which keeps what is open
        (path / LOCK).unlink(missing_ok=True)
        path.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path / LOCK, timeout=0)
    try:
        with writing(path / LOCK):
            lock.acquire()
    except Timeout:
        raise CheckpointError(
            f"{path}: {_holder(path)} is writing this run. Wait for it or stop it, or start "
            "another run with another --output."
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        print(
            f"warning: {path} is on a file system without locks ({error}): nothing keeps another "
            "process from writing the same run"
        )
    try:
        if lock.is_locked and type(lock) is FileLock:  # one without the kernel says it itself
            with suppress(OSError):  # Windows
                holder = f"process {os.getpid()} on {socket.gethostname()}\n"
                (path / LOCK).write_text(holder, encoding="utf-8")
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """The process that holds a lock, as it has written; for people only."""
    try:
        return (path / LOCK).read_text(encoding="utf-8").strip()[:100] or "another process"
    except (OSError, ValueError):  # locked, as on Windows; no text
        return "another process"
