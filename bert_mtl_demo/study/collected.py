"""The finished runs of a paper in one file beside its page, from which a study goes on.

It holds no sentences and no directories, so it can be committed: a study that finds it repeats none
of its runs, and adds rows and seeds of the same budget.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bert_mtl_demo.errors import CheckpointError, ConfigError
from bert_mtl_demo.store import read_json, write_json
from bert_mtl_demo.study.results import Result, merged

COLLECTED = ".results.json"  # of a paper's rows, in one file beside its page
Seeds = Mapping[int, Result]


@dataclass(frozen=True)
class Collected:
    """The runs of some rows of a paper under one budget.

    Args:
        runs: key -> result.
        rows: row name -> seed -> the keys of its runs; of several, one for each task.
        shared: row name -> name of the row whose runs it shares.
        coinciding: pairs of rows whose designs are one.
        budget: in words, as on the page.

    >>> runs = {"a": Result({"sst": 0.5}, 0.5, 0.5), "b": Result({"sts": 0.3}, 0.3, 0.65)}
    >>> collected = Collected(runs, {"separate": {0: ("a", "b")}})
    >>> collected.results()["separate"][0].scores
    {'sst': 0.5, 'sts': 0.3}
    """

    runs: Mapping[str, Result] = field(default_factory=dict)
    rows: Mapping[str, Mapping[int, tuple[str, ...]]] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    coinciding: Collection[frozenset[str]] = ()
    budget: Mapping[str, str] = field(default_factory=dict)

    def results(self) -> dict[str, Seeds]:
        """Row name -> seed -> result; rows that share another's runs are left out."""
        return {
            name: {seed: self._result(keys) for seed, keys in sorted(seeds.items())}
            for name, seeds in self.rows.items()
            if name not in self.shared
        }

    def _result(self, keys: tuple[str, ...]) -> Result:
        parts = [self.runs[key] for key in keys]
        return merged(parts) if parts[1:] else parts[0]

    def with_(self, new: Collected) -> Collected:
        """These runs and those of `new`, whose shared and coinciding rows count."""
        names = dict.fromkeys([*self.rows, *new.rows])
        return Collected(
            {**self.runs, **new.runs},
            {name: {**self.rows.get(name, {}), **new.rows.get(name, {})} for name in names},
            {**self.shared, **new.shared},
            {*self.coinciding, *new.coinciding},
            new.budget,
        )


def write_collected(path: Path, collected: Collected) -> Path:
    """Write the runs as one file, without sentences and directories; `path` ends in `COLLECTED`.

    Answers of a regression keep five decimals, and the labels, which all runs of a dev set have in
    common, stand in it once.
    """
    runs = {key: anonymous(run).to_dict() for key, run in sorted(collected.runs.items())}
    labels: list[Any] = []
    for run in runs.values():
        for evaluation in run["evaluation"].values():
            if evaluation["truth"] not in labels:
                labels.append(evaluation["truth"])
            evaluation["truth"] = labels.index(evaluation["truth"])
    content = {
        "budget": dict(collected.budget),
        "rows": {
            name: {str(seed): list(keys) for seed, keys in sorted(seeds.items())}
            for name, seeds in collected.rows.items()
            if seeds
        },
        "shared": dict(collected.shared),
        "coinciding": sorted(sorted(pair) for pair in collected.coinciding),
        "labels": labels,
        "runs": runs,
    }
    return write_json(path, content)


def read_collected(path: Path) -> Collected:
    """What `write_collected` was given.

    Raises:
        CheckpointError: when it is damaged.
    """
    content = read_json(path, remedy="write it again with --page-only")
    try:
        for run in content["runs"].values():
            for evaluation in run["evaluation"].values():
                evaluation["truth"] = content["labels"][evaluation["truth"]]
        return Collected(
            {key: Result.from_dict(values) for key, values in content["runs"].items()},
            {
                name: {int(seed): tuple(keys) for seed, keys in seeds.items()}
                for name, seeds in content["rows"].items()
            },
            content["shared"],
            [frozenset(pair) for pair in content["coinciding"]],
            content["budget"],
        )
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: holds no results of a study ({type(error).__name__}); delete it and write "
            "it again with --page-only"
        ) from None


def collected_before(path: Path, budget: Mapping[str, str]) -> Collected:
    """The runs that a study of a budget goes on from; none if there is no file.

    Raises:
        ConfigError: when the file is of another budget: its rows would not be comparable.
    """
    if not path.exists():
        return Collected(budget=budget)
    before = read_collected(path)
    for name in {**before.budget, **budget}:
        old, new = before.budget.get(name, "none"), budget.get(name, "none")
        if old != new:
            raise ConfigError(
                f"output = {path.parent}: holds results of another budget ({name}: {old}, now "
                f"{new}), which would not be comparable. Give another --output."
            )
    return before


def anonymous(result: Result) -> Result:
    """A result without sentences and directories, answers at five decimals."""
    local = ("data", "output", "cache")
    return replace(
        result,
        settings={name: value for name, value in result.settings.items() if name not in local},
        evaluation={
            task: replace(e, mistakes=(), found=tuple(round(answer, 5) for answer in e.found))
            for task, e in result.evaluation.items()
        },
    )
