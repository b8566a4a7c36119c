"""Ranks: real processes that measure together, and fail together.

The parent waits for all of them, with a limit: a rank that raises or hangs ends the others and
raises here. What goes over the wire is read off the kernel's counter of the loopback device, so
nothing else may use it meanwhile.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.options import Options

#: Runs on every rank with its device and the arguments; its return value goes through JSON.
Work = Callable[..., Any]

#: Maximum seconds of one collective.
COLLECTIVE_TIMEOUT = 120

DEVICES = Path("/proc/net/dev")


def backend(options: Options, world: int) -> str:
    """Return "nccl" where each rank can have a GPU of its own, else "gloo"."""
    return "nccl" if options.cuda and torch.cuda.device_count() >= world else "gloo"


def start(
    work: Work, world: int, arguments: tuple[Any, ...], options: Options, limit: float
) -> list[Any]:
    """Run ``work(device, *arguments)`` on every rank of a process group.

    Args:
        work: a function of a module.
        world: ranks.
        arguments: can be pickled.
        options: for device and threads, which the ranks share.
        limit: maximum seconds for all ranks.

    Returns:
        The return values, by rank.

    Raises:
        TimeoutError: when they take longer; they are killed then.
        torch.multiprocessing.ProcessRaisedException: with the first rank's error.
    """
    end = time.monotonic() + limit
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        job = (work, world, arguments, options, directory)
        context = spawn(_main, job, nprocs=world, join=False)  # type: ignore[no-untyped-call]
        try:
            while not context.join(timeout=1):
                if time.monotonic() > end:
                    raise TimeoutError(f"{world} ranks were not done after {limit:.0f} s")
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(world)]


def _main(
    rank: int, work: Work, world: int, arguments: tuple[Any, ...], options: Options, directory: Path
) -> None:
    torch.set_num_threads(max(1, options.threads // world))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), TQDM_DISABLE="1")
    name, device = backend(options, world), torch.device("cpu")
    if name == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        name,
        init_method=f"file://{directory / 'meet'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT),
    )
    result = work(device, *arguments)
    dist.barrier()
    dist.destroy_process_group()
    (directory / f"{rank}.json").write_text(json.dumps(result))


def greatest(value: float, device: torch.device) -> float:
    """Return the greatest of the ranks' values, the same on all."""
    maximum = torch.tensor(value, device=device)
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return maximum.item()


class Wire:
    """Counter of the bytes that a rank sends, on average; all ranks have to build and use it."""

    def __init__(self) -> None:
        self.counts = dist.get_backend() == "gloo" and DEVICES.exists()
        self._barrier = 0.0
        if self.counts:
            # With the two around them these are twelve.
            self._barrier = 10 * self.sent(dist.barrier, 10) * dist.get_world_size() / 12

    def sent(self, work: Callable[[], object], times: int) -> float:
        """Return the bytes that ``work`` sends per run and rank, on average over ``times`` runs.

        Nobody sends anything while the counter is read: it lies between two barriers.
        """
        before = self._read()
        for _ in range(times):
            work()
        after = self._read()
        # Of the two barriers of each reading, one lies between the readings.
        moved = after - before - 2 * self._barrier
        return max(0.0, moved) / times / dist.get_world_size()

    def _read(self) -> int:
        dist.barrier()
        count = loopback_bytes()
        dist.barrier()
        return count


def loopback_bytes() -> int:
    """Return the bytes that this machine (this container) has sent to itself."""
    lines = (line.partition(":") for line in DEVICES.read_text().splitlines())
    return next(int(counts.split()[8]) for name, _, counts in lines if name.strip() == "lo")
