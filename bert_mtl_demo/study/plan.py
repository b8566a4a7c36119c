"""The runs that a study needs: rows times seeds, and each set of settings only once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from bert_mtl_demo import store
from bert_mtl_demo.config import Config
from bert_mtl_demo.study.collected import Collected
from bert_mtl_demo.study.published import Row
from bert_mtl_demo.study.results import Result, merged, read_result
from bert_mtl_demo.study.runner import Job
from bert_mtl_demo.study.settings import StudySettings
from bert_mtl_demo.study.worker import KEEP

# Settings that say where a run is kept or how it is computed, not what it is.
_BOOKKEEPING = (
    *("output", "cache", "checkpoint_every", "log_every"),
    *("cache_features", "trim_vocabulary"),
)


class Plan:
    """The runs of some rows; rows with the same settings share theirs.

    Args:
        rows: to be run.
        settings: for all.
        kept: key -> result, of runs that need no directory of their own.
    """

    def __init__(
        self, rows: Sequence[Row], settings: StudySettings, kept: Mapping[str, Result] | None = None
    ) -> None:
        self.rows, self.settings, self.kept = rows, settings, kept or {}
        self.jobs: dict[str, Job] = {}  # key -> run
        self._keys: dict[tuple[str, int], list[str]] = {}  # row's name, seed -> its runs
        self._first: dict[str, Row] = {}
        # Seeds outside: after the first round every row has a result, if not yet an interval.
        for seed in settings.seeds:
            for row in rows:
                configs = settings.configs(row, seed)
                self._keys[row.name, seed] = [self._add(row, config) for config in configs]

    def _add(self, row: Row, config: Config) -> str:
        key = key_of(config)
        if key not in self.jobs:
            part = f"-{config.tasks[0]}" if row.separate else ""
            name = f"{row.slug[:40]}{part}-seed{config.seed}-{key}"
            directory = self.settings.directory / "runs" / row.paper / name
            flags = (KEEP,) if self.settings.keep_weights else ()
            self.jobs[key] = row_job(config, directory, flags)
            self._first[key] = row
        return key

    def results(self, row: Row) -> dict[int, Result]:
        """The finished seeds of a row."""
        results: dict[int, Result] = {}
        for seed in self.settings.seeds:
            keys = self._keys[row.name, seed]
            if all(self._finished(key) for key in keys):
                parts = [self._result(key) for key in keys]
                results[seed] = merged(parts) if row.separate else parts[0]
        return results

    @property
    def waiting(self) -> dict[str, Job]:
        """The runs that are not finished, in their order."""
        return {key: job for key, job in self.jobs.items() if not self._finished(key)}

    def collected(self, coinciding: Collection[frozenset[str]]) -> Collected:
        """The finished runs, to be kept in one file."""
        rows = {
            row.name: {
                seed: tuple(self._keys[row.name, seed])
                for seed in self.settings.seeds
                if all(self._finished(key) for key in self._keys[row.name, seed])
            }
            for row in self.rows
        }
        keys = {key for seeds in rows.values() for keys in seeds.values() for key in keys}
        runs = {key: self._result(key) for key in keys}
        return Collected(runs, rows, self.shared(), coinciding, self.settings.budget())

    def _finished(self, key: str) -> bool:
        return key in self.kept or self.jobs[key].finished

    def _result(self, key: str) -> Result:
        return self.kept[key] if key in self.kept else read_result(*self.jobs[key].results)

    def failures(self, row: Row, failed: Mapping[str, str]) -> list[str]:
        """Why seeds of a row have no result, of those that were tried."""
        keys = [key for seed in self.settings.seeds for key in self._keys[row.name, seed]]
        return [failed[key] for key in dict.fromkeys(keys) if key in failed]

    def shared(self) -> dict[str, str]:
        """Rows that are the very run of another row of their paper: name -> that row's name."""
        owners = {}
        for row in self.rows:
            keys = self._keys[row.name, self.settings.seeds[0]]
            owner = self._first[keys[0]].name
            if len(keys) == 1 and owner != row.name:
                owners[row.name] = owner
        return owners


def row_job(config: Config, directory: Path, flags: tuple[str, ...] = ()) -> Job:
    """The job that trains one run of a row.

    >>> row_job(Config(), Path("study/runs/naive-0")).results[0].name
    'result.json'
    """
    results = (directory / "result.json",)
    return Job(directory, config.to_dict(), results, "bert_mtl_demo.study.worker", flags)


def key_of(config: Config) -> str:
    """The key of a run: a hash of all settings that decide its outcome.

    >>> key_of(Config(lr=1e-4)) == key_of(Config(output="elsewhere", lr=1e-4))
    True
    """
    return store.key_of({k: v for k, v in config.key_values().items() if k not in _BOOKKEEPING})
