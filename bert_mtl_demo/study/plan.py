"""Which runs a study needs: rows times seeds, and each set of settings only once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bert_mtl_demo.config import Config
from bert_mtl_demo.study.budget import Budget
from bert_mtl_demo.study.published import Row
from bert_mtl_demo.study.results import Result, merged, read_result

# What says where a run is kept, not what it is.
_BOOKKEEPING = ("output", "cache", "checkpoint_every", "log_every")


@dataclass(frozen=True)
class Job:
    """One run: its settings, and the folder that its result goes to.

    >>> Job(Config(), Path("study/runs/naive-0")).result.name
    'result.json'
    """

    config: Config
    place: Path

    @property
    def result(self) -> Path:
        """The file that says that the run is finished."""
        return self.place / "result.json"

    @property
    def settings(self) -> Path:
        """The file that the run reads its settings from."""
        return self.place / "settings.json"

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.place / "log.txt"


@dataclass
class Plan:
    """The runs of some rows; rows with the same settings share theirs.

    Args:
        directory: the study's.
        rows: to be run.
        seeds: for each.
        budget: for all.
    """

    directory: Path
    rows: Sequence[Row]
    seeds: Sequence[int]
    budget: Budget
    jobs: dict[str, Job] = field(default_factory=dict)  # key -> run
    _of: dict[tuple[str, str, int], list[str]] = field(default_factory=dict)
    _first: dict[str, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Seeds outside: after the first round every row has a result, if not yet an interval.
        for seed in self.seeds:
            for row in self.rows:
                keys = [self._add(row, config) for config in self.budget.configs(row, seed)]
                self._of[row.report, row.name, seed] = keys

    def _add(self, row: Row, config: Config) -> str:
        key = key_of(config)
        if key not in self.jobs:
            part = f"-{config.tasks[0]}" if row.separate else ""
            name = f"{row.slug[:40]}{part}-seed{config.seed}-{key}"
            self.jobs[key] = Job(config, self.directory / "runs" / row.report / name)
            self._first[key] = row
        return key

    def results(self, row: Row) -> dict[int, Result]:
        """The finished seeds of a row."""
        found: dict[int, Result] = {}
        for seed in self.seeds:
            jobs = [self.jobs[key] for key in self._of[row.report, row.name, seed]]
            if all(job.result.is_file() for job in jobs):
                parts = [read_result(job.result) for job in jobs]
                found[seed] = merged(parts) if row.separate else parts[0]
        return found

    def failures(self, row: Row, failed: dict[str, str]) -> list[str]:
        """Why seeds of a row have no result, of those that were tried."""
        keys = [key for seed in self.seeds for key in self._of[row.report, row.name, seed]]
        return [failed[key] for key in dict.fromkeys(keys) if key in failed]

    def shared(self) -> dict[str, str]:
        """Rows that are the very run of another row of their report: name -> that row's name."""
        found = {}
        for row in self.rows:
            keys = self._of[row.report, row.name, self.seeds[0]]
            owner = self._first[keys[0]]
            if len(keys) == 1 and owner.report == row.report and owner.name != row.name:
                found[row.name] = owner.name
        return found


def key_of(config: Config) -> str:
    """Ten digits that stand for everything that decides a run's outcome.

    >>> key_of(Config(lr=1e-4)) == key_of(Config(output="elsewhere", lr=1e-4))
    True
    """
    values = {k: v for k, v in config.to_dict().items() if k not in _BOOKKEEPING}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
