"""The errors a user can cause, so that a command can print one line instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DemoError(ValueError):
    """Base of every error whose message is meant for the person at the keyboard.

    >>> issubclass(ConfigError, DemoError) and issubclass(CheckpointError, DemoError)
    True
    """


class ConfigError(DemoError):
    """A setting has an invalid value, or does not go with another one."""


class EncoderError(DemoError):
    """The encoder is missing, damaged, or not a BERT."""


class CheckpointError(DemoError):
    """A run directory is missing, unfinished, damaged, or belongs to other settings."""


class DivergedError(DemoError):
    """Training met more consecutive non-finite steps than `max_nonfinite` allows."""


class StorageError(DemoError, OSError):
    """The system refuses to write: a full disk, a quota, a read-only directory.

    >>> issubclass(StorageError, OSError)
    True
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for an unknown name, with the nearest known one.

    >>> unknown("method", "pcgard", ["sum", "pcgrad"])
    "unknown method 'pcgard': did you mean 'pcgrad'? Known: sum, pcgrad"
    """
    names = list(known)
    return f"unknown {kind} {name!r}{nearest(name, names) or ':'} Known: {', '.join(names)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A question for the known name that is nearest to this one; empty if none is near.

    >>> nearest("--epoch", ["--epochs", "--lr"]), nearest("--epoch", ["--lr"])
    (": did you mean '--epochs'?", '')
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else ""
