"""Runs the jobs of a study, some at a time, each in a process of its own.

A finished job is one that has its results; it is never repeated. An interrupted one goes on from
its checkpoint. One that fails is reported with the last line it printed, and the others go on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bert_mtl_demo.cli import EXIT_FAILED
from bert_mtl_demo.errors import CheckpointError
from bert_mtl_demo.runtime import Interrupts
from bert_mtl_demo.store import write_json
from bert_mtl_demo.training.logs import read_lines

POLL = 0.5  # seconds between two looks at the running processes


@dataclass(frozen=True)
class Job:
    """A process of a study: `python -m MODULE DIRECTORY FLAGS`.

    Args:
        directory: its own: settings.json, log.txt, and the run that it trains in run/.
        settings: what the process reads from settings.json; those of `Config` among them.
        results: the files that it leaves; it is finished when all of them exist.
        module: what kind of job it is.
        flags: of the command.
    """

    directory: Path
    settings: Mapping[str, Any]
    results: tuple[Path, ...]
    module: str
    flags: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether all results exist."""
        return all(path.exists() for path in self.results)

    @property
    def log(self) -> Path:
        """The output of the process."""
        return self.directory / "log.txt"


@dataclass(frozen=True)
class Ended:
    """The end of a round of jobs.

    >>> Ended({}, 0).failed
    {}
    """

    failed: dict[str, str]  # key -> the last line that the job printed
    exit_code: int  # of the signal that stopped the round, else 0


def run_all(
    jobs: Mapping[str, Job], *, workers: int = 1, say: Callable[[str], None] = tqdm.write
) -> Ended:
    """Run what is not finished, `workers` jobs at a time.

    >>> run_all({})
    Ended(failed={}, exit_code=0)
    """
    waiting = [key for key, job in jobs.items() if not job.finished]
    if len(waiting) < len(jobs):
        say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished already")
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: dict[str, str] = {}
    bar = tqdm(
        total=float(len(waiting)), unit="run", disable=None, bar_format=_FORMAT if waiting else None
    )
    with Interrupts() as stop, bar, _ending(running):
        ended = 0
        bar.initial = sum(_progress(jobs[key]) for key in waiting)  # of an earlier round: no speed
        while (waiting or running) and stop.signal is None:
            while waiting and len(running) < workers:
                key = waiting.pop(0)
                running[key] = _start(jobs[key], workers)
            time.sleep(POLL)
            for key in [key for key, process in running.items() if process.poll() is not None]:
                code = running.pop(key).returncode
                ended += 1
                if code:
                    failed[key] = _last_line(jobs[key])
                say(f"{jobs[key].directory.name}: {_outcome(jobs[key], code)}")
            bar.n = ended + sum(_progress(jobs[key]) for key in running)
            bar.refresh()
    return Ended(failed, stop.exit_code)


def run_for_page(study: str, jobs: Mapping[str, Job], *, workers: int, command: str) -> int:
    """Run the jobs of a page that needs them all, and say how it ended; 0 when all have results.

    Args:
        study: the name to print.
        jobs: key -> job.
        workers: jobs at a time.
        command: that goes on after an interruption.

    >>> run_for_page("some", {}, workers=1, command="")
    some: 0 runs
    0
    """
    print(f"{study}: {len(jobs)} runs")
    ended = run_all(jobs, workers=workers)
    if ended.exit_code:
        print(f"stopped; the same command goes on: {command}")
        return ended.exit_code
    if ended.failed:
        print(
            f"{len(ended.failed)} of {len(jobs)} runs failed, and the page needs them all; the "
            "same command tries them again"
        )
        return EXIT_FAILED
    return 0


_FORMAT = "{percentage:3.0f}%|{bar}| {n:.1f}/{total:.0f} runs [{elapsed} gone, {remaining} left]"


def threads_of(workers: int) -> int:
    """Threads of each of so many processes: two that each take every core slow each other down."""
    return max(1, (os.cpu_count() or 1) // workers)


def _start(job: Job, workers: int) -> subprocess.Popen[bytes]:
    """Begin, or go on with, a job."""
    write_json(job.directory / "settings.json", job.settings, indent=1)
    environment = {
        "OMP_NUM_THREADS": str(threads_of(workers)),
        **os.environ,
        "PYTHONUNBUFFERED": "1",  # or the log's last line is not what was printed last
    }
    with job.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", job.module, str(job.directory), *job.flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process; it tells the jobs to save
        )


@contextmanager
def _ending(running: Mapping[str, subprocess.Popen[bytes]]) -> Iterator[None]:
    """At the end of the block, tell the running processes to save and stop, and wait for them."""
    try:
        yield
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for process in running.values():
            process.wait()


def _progress(job: Job) -> float:
    """The part of a job's run that is done, as far as its log tells."""
    epochs, steps = (job.settings.get(name) for name in ("epochs", "steps_per_epoch"))
    if not epochs or not steps:
        return 0.0
    try:
        rows = read_lines(job.directory / "run" / "metrics.jsonl")
    except ValueError:  # a line that is just being written
        return 0.0
    step = max((row["step"] for row in rows), default=0)
    steps *= job.settings.get("fraction") or 1
    return min(1.0, float(step / (epochs * steps)))


def _outcome(job: Job, code: int) -> str:
    """The line that reports a job that ended: what it printed last, which is its scores."""
    if code:
        return f"failed with exit code {code}: {_last_line(job)}; see {job.log}"
    for path in job.results:
        if not path.exists():
            raise CheckpointError(f"{path}: is missing though its run ended well; see {job.log}")
    return _last_line(job)


def _last_line(job: Job) -> str:
    lines = []
    if job.log.exists():
        lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
