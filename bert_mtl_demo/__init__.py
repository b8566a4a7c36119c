"""bert_mtl_demo: one BERT, three tasks, and what gradient surgery does to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bert_mtl_demo.reporting.loaded_run import LoadedRun

__all__ = ["load_trained"]


def load_trained(run: str | Path, device: str | None = None, amp: str | None = None) -> LoadedRun:
    """The best weights of a run, to be asked: `load_trained(run).ask("sst", ["A fine film."])`.

    Args:
        run: its directory.
        device: `"cpu"`, `"cuda"`, ...; None: a GPU if there is one.
        amp: `"off"`, `"bf16"`, `"fp16"` or `"auto"`; None: as the run was trained.

    Raises:
        CheckpointError: when the run is missing, unfinished or damaged.

    >>> load_trained("no-such-run")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bert_mtl_demo.errors.CheckpointError: no-such-run: is not a run directory ...
    """
    from bert_mtl_demo.reporting.loaded_run import load_run

    return load_run(run, device, amp)
