"""The gradients that lie in this process, as a placement takes their Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gradsurgery.kernels import Columns


class LocalGradients(NamedTuple):
    """What this process has of some parameters' gradients.

    Attributes:
        columns: ``[P'][K]``, what lies here.
        segments: of the P' parameters.
        positions: of the P' among all parameters.
        segment_count: the number of segments S.
        tasks: the number of tasks K.
    """

    columns: Columns
    segments: Sequence[int]
    positions: Sequence[int]
    segment_count: int
    tasks: int
