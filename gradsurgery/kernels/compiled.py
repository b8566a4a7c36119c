"""``native.c`` as a library: compiled once by the system's compiler, kept where no one else writes.

The file's name says what it was made from (source, flags, compiler, processor) and what is in it (a
checksum). It is loaded from a folder that belongs to this user and that nobody else may write; a
file that is not what its name says is never loaded, but removed and made anew. Where there is no
such folder, each process compiles for itself, into a temporary one.

Without a compiler, or with ``GRADSURGERY_NATIVE=0``, :func:`available` is False and the callers do
without.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-shared", "-fPIC")

#: This processor's own instructions, and threads: both, or what the compiler knows of them.
OPTIONAL = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())

#: What the library has to offer.
FUNCTIONS = ("gram", "combine")

_log = logging.getLogger(__name__)


def available() -> bool:
    """Whether the compiled code can be used; the first call compiles it."""
    return os.environ.get("GRADSURGERY_NATIVE", "1") != "0" and library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, compiled if it is not kept yet; None where that is not possible."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        _log.info("no C compiler: the CPU's passes are taken in plain torch, which is slower")
        return None
    try:
        _lend_threads()
        name = f"native-{platform.machine()}-{_key(compiler)}"
        try:
            folder = _private(cache())
            return _kept(folder, name) or _fresh(compiler, folder, name, f"kept in {folder}")
        except (OSError, RuntimeError) as error:  # read-only, somebody else's; no home folder
            with tempfile.TemporaryDirectory(prefix="gradsurgery-") as temporary:
                return _fresh(compiler, Path(temporary), name, f"for this process only: {error}")
    except (OSError, subprocess.SubprocessError) as error:
        _say(f"compiling failed, so plain torch is used, which is slower: {error}")
        return None


def cache() -> Path:
    """Return the folder that compiled code is kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradsurgery"


def _private(folder: Path) -> Path:
    """Return ``folder``, made if need be.

    Raises:
        PermissionError: where somebody else may write in it, or put another in its place.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = folder.resolve()
    _refuse_writers(folder, {_user()}, stat.S_IWGRP | stat.S_IWOTH)
    for place in folder.parents:
        if not place.stat().st_mode & stat.S_ISVTX:  # in /tmp nobody moves what is another's
            _refuse_writers(place, {_user(), 0}, stat.S_IWOTH)
    return folder


def _refuse_writers(path: Path, owners: set[int], others: int) -> None:
    """Refuse what somebody else may write.

    Raises:
        PermissionError: unless it is one of ``owners``', and its mode has none of ``others``.
    """
    status = path.lstat()
    if sys.platform == "win32":  # a user's folders are private there, and modes say nothing
        return
    if status.st_uid not in owners:
        raise PermissionError(f"{path} belongs to another user, of number {status.st_uid}")
    if status.st_mode & others:
        raise PermissionError(
            f"others may write {path} (mode {stat.S_IMODE(status.st_mode):o}): "
            f"chmod go-w {shlex.quote(str(path))}"
        )


def _user() -> int:
    return 0 if sys.platform == "win32" else os.geteuid()


def _kept(folder: Path, name: str) -> ctypes.CDLL | None:
    """Return the library that is kept under ``name``; what is not what it says is removed."""
    for path in sorted(folder.glob(f"{name}-*.so")):
        loaded = _loaded(path) if _intact(path, name) else None
        if loaded is not None:
            return loaded
        path.unlink(missing_ok=True)
    return None


def _intact(path: Path, name: str) -> bool:
    """Whether a file is this user's, and what its name says."""
    try:
        _refuse_writers(path, {_user()}, stat.S_IWGRP | stat.S_IWOTH)
    except PermissionError:
        return False
    return stat.S_ISREG(path.lstat().st_mode) and path.name == _full_name(name, path.read_bytes())


def _fresh(compiler: str, folder: Path, name: str, where: str) -> ctypes.CDLL:
    """Compile, keep and return the library.

    Raises:
        OSError: when it cannot be written, or not be loaded.
        subprocess.SubprocessError: when the compiler fails.
    """
    _say(f"compiling its CPU kernels with {compiler}, which takes some seconds ({where})")
    with tempfile.TemporaryDirectory(dir=folder) as workshop:
        fresh = Path(workshop) / "native.so"
        _compile(compiler, fresh)
        fresh.chmod(0o700)
        path = folder / _full_name(name, fresh.read_bytes())
        fresh.replace(path)  # at once: other processes may be compiling too
    loaded = _loaded(path)
    if loaded is None:
        path.unlink(missing_ok=True)
        raise OSError(f"what {compiler} made of {SOURCE.name} cannot be used")
    return loaded


def _say(line: str) -> None:
    """Tell whoever waits: a line for people, not a warning, which may be an error."""
    print(f"gradsurgery: {line}", file=sys.stderr, flush=True)


def _loaded(path: Path) -> ctypes.CDLL | None:
    """Return the library at ``path`` if it can be loaded and has all functions."""
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        _log.info("%s", error)
        return None
    return loaded if all(hasattr(loaded, function) for function in FUNCTIONS) else None


def _full_name(name: str, content: bytes) -> str:
    return f"{name}-{hashlib.sha256(content).hexdigest()[:32]}.so"


def _key(compiler: str) -> str:
    """Return a hash of what the library is made from."""
    version = subprocess.run(
        [*shlex.split(compiler), "--version"], check=False, capture_output=True, timeout=20
    ).stdout
    recipe = repr((compiler, FLAGS, OPTIONAL, version, _processor()))
    return hashlib.sha256(SOURCE.read_bytes() + recipe.encode()).hexdigest()[:16]


def _processor() -> str:
    """Return what tells processors apart whose instructions differ; this machine, if need be."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.processor()} {platform.node()}"
    kinds = ("model name", "flags", "Features", "CPU part", "isa")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))


def _compile(compiler: str, target: Path) -> None:
    """Compile with all that helps, or else without what this compiler does not know."""
    command = [*shlex.split(compiler), *FLAGS, str(SOURCE), "-o", str(target)]
    for extras in OPTIONAL:
        try:
            subprocess.run([*command, *extras], check=True, capture_output=True, timeout=120)
            return
        except subprocess.CalledProcessError:
            if extras is OPTIONAL[-1]:
                raise


def _lend_threads() -> None:
    """Let the library use the threads of torch's own OpenMP: a second pool would spin beside it."""
    for runtime in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
        ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
