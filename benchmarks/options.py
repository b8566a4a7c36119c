"""Options of one run: device, effort, deadline, and where the results go."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.roofline import MIN_PROBE_BYTES
from benchmarks.timing import Effort


@dataclass(frozen=True)
class Options:
    """Options of the command line.

    Attributes:
        device: where to measure.
        results: directory of the result files.
        quick: smoke run: tiny shapes, two rounds, figures without meaning.
        everything: also run the cases that take long.
        threads: number of threads of the CPU's operators.
        deadline: ``time.monotonic()`` after which no further case is started.
    """

    device: torch.device
    results: Path
    quick: bool = False
    everything: bool = False
    threads: int = 1
    deadline: float = math.inf

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self.deadline

    @property
    def probe_bytes(self) -> int:
        """Minimum size of a bandwidth probe."""
        return 1 << 20 if self.quick else MIN_PROBE_BYTES

    def effort(self, rounds: int, *, cpu: float, cuda: float, warmup: int = 2) -> Effort:
        """Return the effort for one comparison: ``rounds`` within ``cpu`` or ``cuda`` seconds."""
        if self.quick:
            return Effort(2, 2, 0.0, warmup=1)
        return Effort(rounds, 5, cuda if self.cuda else cpu, warmup)
