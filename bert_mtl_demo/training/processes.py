"""Several processes on one run: their ranks, and the collectives between them.

torchrun and `accelerate launch` start N copies of a command and tell each its place through the
environment. Every copy does the same, each with its shard of every batch; the first one, *main*,
also does what is done once: it prints, writes, and trains the stages before the tasks.

Their messages here are small (losses, answers, a request to stop) and go over gloo; the
gradients go over the device's own backend, which gradsurgery is given as `gradients(device)`. Every
method must be called by all processes in the same order. The exception is work under `agree`, which
may fail in one of them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bert_mtl_demo.errors import ConfigError, DemoError

if TYPE_CHECKING:  # a wrong flag is answered before torch is loaded
    import torch

T = TypeVar("T")

# How long one may wait for another: main may train a stage meanwhile. A process that died is
# noticed at once all the same, by its closed connections.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """One process's view of all of them.

    >>> ALONE.is_main, ALONE.gather("loss"), ALONE.add(0.5)
    (True, ['loss'], 0.5)
    """

    rank: int = 0  # of this process, from 0
    size: int = 1  # how many there are
    local_rank: int = 0  # of this process on its machine, from 0

    @property
    def is_main(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        self.gather(None)

    def gather(self, value: T) -> list[T]:
        """The value of each process, in their order."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: T) -> T:
        """Main's value."""
        return self.gather(value)[0]

    def add(self, value: float) -> float:
        """The sum over all processes, the same bits in each; not finite if any is not."""
        return self._reduced(value, "SUM")

    def highest(self, value: int) -> int:
        """The largest value of any process."""
        return int(self._reduced(value, "MAX"))

    def _reduced(self, value: float, how: str) -> float:
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total, getattr(dist.ReduceOp, how))
        return total.item()

    def agree(self, work: Callable[[], T]) -> T:
        """Do work that does not communicate; a user's error in one process is raised in all.

        Otherwise the others would wait forever for the one that gave up.
        """
        if self.size == 1:
            return work()
        done: list[T] = []
        problems: list[DemoError] = []
        try:
            done.append(work())
        except DemoError as error:
            problems.append(error)
        for errors in self.gather(problems):
            if errors:
                raise errors[0]
        return done[0]

    def device(self, name: str) -> torch.device:
        """The device of that name; of several GPUs, the one of this process.

        Raises:
            ConfigError: for a device that is not there, or that all processes would share.

        >>> ALONE.device("cpu")
        device(type='cpu')
        """
        import torch

        from bert_mtl_demo.runtime import choose_device

        chosen = choose_device(name)
        if self.size == 1 or chosen.type == "cpu":
            return chosen
        if chosen.type != "cuda":
            raise ConfigError(
                f"device = {name} in {self.size} processes: on {chosen.type} there is one. Use "
                "--device cpu, or start one process."
            )
        if ":" in name:
            raise ConfigError(
                f"device = {name} in {self.size} processes: all of them would share it. Use "
                "--device cuda, and each takes its own."
            )
        count = torch.cuda.device_count()
        if self.local_rank >= count:
            raise ConfigError(
                f"device = {name}: this machine has {count} CUDA devices, and process "
                f"{self.local_rank + 1} of those started here has none left. Start {count} "
                "processes on it (--nproc-per-node), or use --device cpu."
            )
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    def gradients(self, device: torch.device) -> Any:
        """The process group that averages gradients on that device; None alone. Ask once."""
        if self.size == 1:
            return None
        import torch.distributed as dist

        return dist.new_group(backend="nccl") if device.type == "cuda" else dist.group.WORLD


ALONE = Processes()


def from_environment(environment: Mapping[str, str]) -> Processes:
    """This process, from the launcher's environment variables.

    Raises:
        ConfigError: when some of them are missing.

    >>> from_environment({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "here"})
    Processes(rank=3, size=4, local_rank=1)
    >>> from_environment({}) == from_environment({"WORLD_SIZE": "1", "RANK": "0"}) == ALONE
    True
    """
    variables = {name: environment.get(name, "") for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    if variables["WORLD_SIZE"] in ("", "1"):
        return ALONE
    for name, value in variables.items():
        if not value.isdecimal():
            raise ConfigError(
                f"WORLD_SIZE = {variables['WORLD_SIZE']} in the environment, but {name} is "
                f"{value or 'not set'}: start several processes with torchrun or accelerate "
                "launch, or unset WORLD_SIZE for one."
            )
    return Processes(*(int(variables[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


@contextmanager
def joined(environment: Mapping[str, str] | None = None) -> Iterator[Processes]:
    """Join the launcher's processes; nothing happens if there is only one.

    They leave together: one that ended sooner would have the launcher stop the others before they
    have printed everything. One that crashes or is interrupted leaves at once, and the others find
    its connections closed. A group that was there before is used, and not left.

    >>> with joined({}) as processes:
    ...     processes.size
    1
    """
    processes = from_environment(os.environ if environment is None else environment)
    if processes.size == 1:
        yield processes
        return
    import torch.distributed as dist

    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield processes
    except (DemoError, SystemExit):  # what all of them meet, and none crashes of
        _leave(processes, ours)
        raise
    _leave(processes, ours)


def _leave(processes: Processes, ours: bool) -> None:
    import torch.distributed as dist

    sys.stdout.flush()  # or it would be lost with a process that the launcher stops
    processes.barrier()
    if ours:
        dist.destroy_process_group()
        # A launcher stops the others as soon as one has ended with an error. This one ends anyhow,
        # and with its own exit code.
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def only_main_speaks() -> Iterator[None]:
    """Silence the processes but main; a traceback is printed by Python itself, later."""
    with ExitStack() as stack:
        if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield
