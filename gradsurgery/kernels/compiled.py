"""Pairwise dot products of K vectors on the CPU, in C, compiled once with the system's compiler.

Torch has no operation that reads K vectors once for all their dot products: K (K + 1) / 2 calls of
``torch.dot`` take about twice the time of the memory traffic (docs/log.md). ``native.c`` does,
without dependencies. It is compiled on first use (a few seconds), kept in the user's cache folder,
called through ctypes, and runs on torch's own threads.

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
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-shared", "-fPIC", "-march=native")
#: Threads; and PLAIN code for one processor type where there are no function clones.
OPTIONAL = (("-fopenmp",), ("-fopenmp", "-DPLAIN"), ("-DPLAIN",))

#: What ``native.c`` reads.
DTYPES = (torch.float32, torch.bfloat16)

#: Vectors that are multiplied with each other at a time; its ``TILE``.
TILE = 4

#: Elements that are worth a thread: handing them over costs what some ten thousand do.
SHARE = 1 << 18

_log = logging.getLogger(__name__)


def available() -> bool:
    """Whether the compiled code can be used; the first call compiles it."""
    return os.environ.get("GRADSURGERY_NATIVE", "1") != "0" and library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        _log.info("no C compiler: dot products are taken by torch.dot, which is slower")
        return None
    try:
        _lend_threads()
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # also: no home folder
        _log.info("compiling %s failed, torch.dot is used instead: %s", SOURCE.name, error)
        return None


def _compiled(compiler: str) -> Path:
    """Return the shared library, compiled if it is not in the cache folder yet."""
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join([compiler, *FLAGS]).encode()).hexdigest()
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradsurgery"
    target = root / f"native-{platform.machine()}-{key[:16]}.so"
    if not target.exists():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as folder:
            fresh = Path(folder) / target.name
            _compile(compiler, fresh)
            fresh.replace(target)  # at once: other processes may be compiling too
    return target


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
