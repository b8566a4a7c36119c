"""One run's setting: device, effort, time, and where the results go."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness import Effort
from benchmarks.roofline import LEAST_BYTES


@dataclass(frozen=True)
class Setting:
    """What the command line asked for.

    Attributes:
        device: where to measure.
        results: the folder of the result files.
        quick: a smoke run: tiny shapes, two rounds, figures that mean nothing.
        everything: also the cases that take long.
        threads: of the CPU's operators.
        deadline: ``time.monotonic()`` after which no further case is begun.
    """

    device: torch.device
    results: Path
    quick: bool = False
    everything: bool = False
    threads: int = 1
    deadline: float = math.inf

    def effort(self, rounds: int, seconds: float, warmup: int = 2) -> Effort:
        """Return the effort for one comparison, at most so many rounds or seconds (least: 5)."""
        if self.quick:
            return Effort(2, 2, 0.0, warmup=1)
        return Effort(rounds, 5, seconds, warmup)

    @property
    def late(self) -> bool:
        """Whether time is up."""
        return time.monotonic() > self.deadline

    @property
    def probe_bytes(self) -> int:
        """The least size of a bandwidth probe."""
        return 1 << 20 if self.quick else LEAST_BYTES
