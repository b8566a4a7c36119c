"""Frameworks that own the loop (HF Trainer, Lightning), one step at a time.

Such a loop runs in a thread of its own and asks its data loader for batches. A batch is handed out
when the benchmark says so, and a step lasts from then until the loop asks for the next one. So all
that the framework does in a step is inside, and the loops of one comparison take turns step by
step, like everything else. (A loader that fetches one batch ahead asks for batch n + 1 before step
n: its steps come one turn late, and last as long.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

#: By task, tokens ``[batch, length]``.
Batch = dict[str, Tensor]

#: Maximum seconds of a step.
STEP_TIMEOUT = 300


class NoMoreBatchesError(Exception):
    """Ends a loop; an end of the data would only begin the next epoch."""


class Turns(IterableDataset[Batch]):
    """The same batch, handed out once per :meth:`PausedLoop.__call__`.

    Args:
        batch: of every step.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch, self.over = batch, False
        self.go, self.asked = threading.Semaphore(0), threading.Semaphore(0)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.asked.release()
            self.go.acquire()
            if self.over:
                raise NoMoreBatchesError
            yield self.batch


class PausedLoop:
    """A loop in its thread, standing still between steps; a call runs one step.

    Args:
        loop: trains for ever.
        batch: of every step.
        threads: number of threads of the CPU's operators.
    """

    def __init__(self, loop: Callable[[Turns], object], batch: Batch, threads: int) -> None:
        self._turns, self._loop, self._threads = Turns(batch), loop, threads
        self._error: BaseException | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._wait()

    def __call__(self) -> None:
        """Run a step.

        Raises:
            RuntimeError: from the loop's own error, or when it ended by itself.
        """
        self._turns.go.release()
        self._wait()

    def close(self) -> None:
        """End the loop."""
        self._turns.over = True
        self._turns.go.release()
        self._thread.join(STEP_TIMEOUT)

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            self._loop(self._turns)
        except NoMoreBatchesError:
            pass
        except BaseException as error:  # raised again in the thread that waits
            self._error = error
        finally:
            self._ended = True
            self._turns.asked.release()

    def _wait(self) -> None:
        if not self._turns.asked.acquire(timeout=STEP_TIMEOUT):
            raise TimeoutError(f"the loop asked for no batch within {STEP_TIMEOUT} s")
        if self._ended:
            raise RuntimeError("the loop ended by itself") from self._error
