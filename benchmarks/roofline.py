"""The floor: the time that the same bytes take when nothing is computed, from the same rounds.

Three probes run in turn with the candidates: a pure read (``sum`` of a float32 vector), a copy
(``copy_``, as many bytes read as written) and a fill (for information). On the CPU reads and writes
cost differently, so the floor takes them apart; on CUDA it is all bytes at the copy's bandwidth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from benchmarks.timing import Candidate, Sample, Times, spread

#: Minimum size of a probe, so that no cache holds it.
MIN_PROBE_BYTES = 64 << 20

READ, COPY, FILL = "probe: read", "probe: copy", "probe: fill"

FORMULA = {
    "cpu": "floor = bytes read x r + bytes written x w, where r is the time of a pure read (sum) "
    "per byte, and w that of a copy per byte copied less r, at least 0",
    "cuda": "floor = (bytes read + bytes written) / bandwidth of a device-to-device copy",
}


class Traffic(NamedTuple):
    """Bytes that a computation has to move."""

    read: int
    written: int


def gram_traffic(tasks: int, elements: int, bytes_each: int) -> Traffic:
    """Return what the Gram pass moves: it reads K gradients of N elements."""
    return Traffic(tasks * elements * bytes_each, 0)


def combine_traffic(tasks: int, elements: int, bytes_each: int) -> Traffic:
    """Return what the combination moves: it reads K gradients and writes one."""
    return Traffic(tasks * elements * bytes_each, elements * bytes_each)


def whole_traffic(tasks: int, elements: int, bytes_each: int) -> Traffic:
    """Return what both passes move: 2KN elements read, N written."""
    return Traffic(2 * tasks * elements * bytes_each, elements * bytes_each)


class Probes:
    """Vectors of one device to read, copy and fill.

    Args:
        elements: of the float32 vectors, unless ``min_bytes`` asks for more.
        device: of the vectors.
        min_bytes: minimum size of a vector.
    """

    def __init__(
        self, elements: int, device: torch.device, min_bytes: int = MIN_PROBE_BYTES
    ) -> None:
        count = max(elements, min_bytes // 4)
        self.device, self.bytes = device, 4 * count
        self._source = torch.ones(count, device=device)
        self._target = torch.empty(count, device=device).fill_(0)  # touched once, before the clock

    def candidates(self) -> dict[str, Candidate]:
        """Return the probes as candidates that take turns with the others."""
        return {
            READ: Candidate(self._source.sum),
            COPY: Candidate(lambda: self._target.copy_(self._source)),
            FILL: Candidate(lambda: self._target.fill_(1.0)),
        }

    def floor(self, times: Times, traffic: Traffic, after: str | None = None) -> list[float]:
        """Return the least seconds that ``traffic`` takes after another candidate, by round."""
        before = times.seconds(after) if after else [0.0] * len(times[READ])
        per_byte = [self._per_byte(*pair) for pair in zip(times[READ], times[COPY], strict=True)]
        return [
            seconds + traffic.read * read + traffic.written * write
            for seconds, (read, write) in zip(before, per_byte, strict=True)
        ]

    def _per_byte(self, read: Sample, copy: Sample) -> tuple[float, float]:
        """Return seconds per byte read and per byte written."""
        if self.device.type == "cuda":
            both = copy.seconds / (2 * self.bytes)
            return both, both
        return read.seconds / self.bytes, max(copy.seconds - read.seconds, 0) / self.bytes

    def bandwidths(self, times: Times) -> dict[str, float]:
        """Return the median bandwidths in GB/s; the copy's counts bytes read and written."""
        moved = {READ: self.bytes, COPY: 2 * self.bytes, FILL: self.bytes}
        rates = {name: n / spread(times.seconds(name))["median"] for name, n in moved.items()}
        return {name.removeprefix("probe: "): round(r / 1e9, 2) for name, r in rates.items()}
