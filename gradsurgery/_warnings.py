"""The category of this library's warnings, and how they are given."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

import torch

_INTERNAL = (
    *(str(Path(package).parent) for package in (__file__, torch.__file__)),
    contextlib.__file__,  # between a with statement and us
)


class SurgeryWarning(UserWarning):
    """Training goes on, but not as gradient surgery, or not as it seems.

    Python shows it once for each line of code that causes it. Make it an error with

    >>> import warnings
    >>> from gradsurgery import SurgeryWarning
    >>> warnings.simplefilter("error", SurgeryWarning)
    """


def warn(message: str) -> None:
    """Warn about the caller's code: the innermost frame that is neither this library's nor torch's.

    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn("no task was captured")
    >>> caught[0].category.__name__, str(caught[0].message)
    ('SurgeryWarning', 'no task was captured')
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INTERNAL):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, SurgeryWarning, stacklevel=level)
