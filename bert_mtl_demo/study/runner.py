"""Runs the runs of a study, some at a time, each in a process of its own.

A finished run is one that has a result; it is never repeated. An interrupted one goes on from its
checkpoint. One that fails is reported with the last line it printed, and the others go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from bert_mtl_demo.runtime import Interrupts
from bert_mtl_demo.store import atomic
from bert_mtl_demo.study.plan import Job
from bert_mtl_demo.study.worker import KEEP
from bert_mtl_demo.training.logs import read_lines

POLL = 0.5  # seconds between two looks at the running processes


@dataclass(frozen=True)
class Ended:
    """How a round of runs ended.

    >>> Ended({}, 0).failed
    {}
    """

    failed: dict[str, str]  # key -> the last line that the run printed
    exit_code: int  # of the signal that stopped the round, else 0


def run_all(
    jobs: Mapping[str, Job],
    *,
    workers: int = 1,
    keep: bool = False,
    say: Callable[[str], None] = tqdm.write,
) -> Ended:
    """Run what has no result yet, `workers` at a time.

    >>> run_all({})
    Ended(failed={}, exit_code=0)
    """
    waiting = [key for key, job in jobs.items() if not job.result.exists()]
    if len(waiting) < len(jobs):
        say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished already")
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: dict[str, str] = {}
    bar = tqdm(
        total=float(len(waiting)), unit="run", disable=None, bar_format=_FORMAT if waiting else None
    )
    with Interrupts() as stop, bar, _ending(running):
        ended = 0
        bar.initial = sum(_share(jobs[key]) for key in waiting)  # of an earlier round: no speed
        while (waiting or running) and stop.signal is None:
            while waiting and len(running) < workers:
                key = waiting.pop(0)
                running[key] = _start(jobs[key], keep, workers)
            time.sleep(POLL)
            for key in [key for key, process in running.items() if process.poll() is not None]:
                code = running.pop(key).returncode
                ended += 1
                name = jobs[key].place.name
                if code:
                    failed[key] = _last_line(jobs[key].log)
                    say(f"{name}: failed with exit code {code}: {failed[key]}; see {jobs[key].log}")
                else:
                    say(f"{name}: {_summary(jobs[key])}")
            bar.n = ended + sum(_share(jobs[key]) for key in running)
            bar.refresh()
    return Ended(failed, stop.exit_code)


_FORMAT = "{percentage:3.0f}%|{bar}| {n:.1f}/{total:.0f} runs [{elapsed} gone, {remaining} left]"


def _start(job: Job, keep: bool, workers: int) -> subprocess.Popen[bytes]:
    """Begin, or go on with, a run."""
    job.place.mkdir(parents=True, exist_ok=True)
    with atomic(job.settings) as place:
        place.write_text(json.dumps(job.config.to_dict(), indent=1) + "\n", encoding="utf-8")
    environment = dict(os.environ)
    # Two runs that each take every core are slower than one after the other.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    command = [sys.executable, "-m", "bert_mtl_demo.study.worker", str(job.place)]
    with job.log.open("ab") as log:
        return subprocess.Popen(
            command + [KEEP] * keep,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process; it tells the runs to save
        )


@contextmanager
def _ending(running: Mapping[str, subprocess.Popen[bytes]]) -> Iterator[None]:
    """However it ends: tell what still runs to save and end, and wait until it has."""
    try:
        yield
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for process in running.values():
            process.wait()


def _share(job: Job) -> float:
    """How much of a run is done, as far as its log tells."""
    if job.config.steps_per_epoch is None:
        return 0.0
    try:
        rows = read_lines(job.place / "run" / "metrics.jsonl")
    except ValueError:  # a line that is just being written
        return 0.0
    done = max((row["step"] for row in rows), default=0)
    return min(1.0, float(done) / (job.config.epochs * job.config.steps_per_epoch))


def _summary(job: Job) -> str:
    from bert_mtl_demo.study.results import read_result
    from bert_mtl_demo.training.progress import score_line

    found = read_result(job.result)
    return score_line(found.scores, found.mean, found.leaderboard)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
