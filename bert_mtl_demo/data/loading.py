"""Loading of the tasks' data, from the embedded sample, a directory of tables, or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bert_mtl_demo.data.directory import SAMPLE, layout_of, load_tables, refuse_no_directory
from bert_mtl_demo.data.examples import Skipped, Splits
from bert_mtl_demo.data.hub import load_hub, source_of
from bert_mtl_demo.tasks import Task

BAD_ROWS = ("skip", "refuse")


def load(
    source: str | Path, tasks: Sequence[Task], *, bad_rows: str = "skip"
) -> tuple[dict[str, Splits], list[Skipped]]:
    """Load train and dev examples of some tasks.

    Args:
        source: ``"sample"`` for the embedded sentences, ``"hub"`` for the public data sets (needs
            `datasets` and a network, and has no cfimdb), anything else for a directory with
            ids-sst-{train,dev}.csv, quora-{train,dev}.csv, sts-{train,dev}.csv and
            ids-cfimdb-{train,dev}.csv, of which only the files of `tasks` are read. A directory
            that is itself called sample or hub is ``"./sample"``, or a `Path`.
        tasks: what to load, e.g. ``resolve(["sst", "sts"])``; the result has this order. A user's
            tasks come from their own tables, whatever the source.
        bad_rows: ``"skip"`` leaves bad rows out and returns them, for the report to count;
            ``"refuse"`` raises at the first one.

    Returns:
        Task name -> Splits, and the skipped rows in reading order.

    Raises:
        DataError: for data that cannot be used, naming file and line where there is one: also when
            a file has no usable row or more than a tenth of its rows are bad.
        ValueError: for no task, a task given twice, or another `bad_rows`.

    >>> from bert_mtl_demo.tasks import resolve
    >>> splits, skipped = load("sample", resolve(["sts"]))
    >>> len(splits["sts"].train), len(splits["sts"].dev), skipped
    (1200, 300, [])
    """
    if bad_rows not in BAD_ROWS:
        raise ValueError(
            f"bad_rows is {bad_rows!r}; it is one of {', '.join(map(repr, BAD_ROWS))}."
        )
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"The tasks to load are {names}; give at least one, and each once.")
    _check_source(source, [task for task in tasks if not task.custom])
    splits: dict[str, Splits] = {}
    skipped: list[Skipped] = []
    for task in tasks:
        splits[task.name], rows = _load(source, task, refuse=bad_rows == "refuse")
        skipped += rows
    return splits, skipped


def _check_source(source: str | Path, tasks: Sequence[Task]) -> None:
    """Refuse a source that lacks one of the built-in tasks before any of them is read."""
    if source == "hub":
        for task in tasks:
            source_of(task)
    elif source != "sample" and tasks:
        refuse_no_directory(Path(source), layout_of(tasks[0]).of("train"))


def _load(source: str | Path, task: Task, *, refuse: bool) -> tuple[Splits, list[Skipped]]:
    if task.custom:
        return load_tables(Path(), task, refuse=refuse)
    if source == "hub":
        return load_hub(task, refuse=refuse)
    return load_tables(SAMPLE if source == "sample" else Path(source), task, refuse=refuse)
