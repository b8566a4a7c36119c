"""Loading of the tasks' data, from the embedded sample, a directory of tables, or the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bert_mtl_demo.data.directory import SAMPLE, layout_of, read_table, refuse_no_directory
from bert_mtl_demo.data.distribution import refuse_other_labels
from bert_mtl_demo.data.examples import DataError, Examples, Skipped, Splits
from bert_mtl_demo.data.hub import load_hub, source_of
from bert_mtl_demo.tasks import Task

BAD_ROWS = ("skip", "refuse")
EVERY = 10  # of one table for train and dev, every tenth row is dev


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
    tables, skipped = _load(source, tasks, ("train", "dev"), bad_rows)
    return {name: Splits(train, dev) for name, (train, dev) in tables.items()}, skipped


def load_dev(
    source: str | Path, tasks: Sequence[Task], *, bad_rows: str = "skip", split: str = "dev"
) -> tuple[dict[str, Examples], list[Skipped]]:
    """Load the dev examples of some tasks, or another split; no table of train has to be there.

    Same arguments and errors as `load`.

    >>> from bert_mtl_demo.tasks import resolve
    >>> len(load_dev("sample", resolve(["sts"]))[0]["sts"])
    300
    """
    tables, skipped = _load(source, tasks, (split,), bad_rows)
    return {name: dev for name, (dev,) in tables.items()}, skipped


def _load(
    source: str | Path, tasks: Sequence[Task], splits: Sequence[str], bad_rows: str
) -> tuple[dict[str, list[Examples]], list[Skipped]]:
    if bad_rows not in BAD_ROWS:
        raise ValueError(
            f"bad_rows is {bad_rows!r}; it is one of {', '.join(map(repr, BAD_ROWS))}."
        )
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"The tasks to load are {names}; give at least one, and each once.")
    _check_source(source, [task for task in tasks if not task.elsewhere], splits[0])
    tables: dict[str, list[Examples]] = {}
    skipped: list[Skipped] = []
    for task in tasks:
        tables[task.name] = []
        for examples, rows in _read(source, task, splits, refuse=bad_rows == "refuse"):
            tables[task.name].append(examples)
            skipped += rows
    return tables, skipped


def _check_source(source: str | Path, tasks: Sequence[Task], split: str) -> None:
    """Refuse a source that lacks one of the built-in tasks before any of them is read."""
    if source == "hub":
        for task in tasks:
            source_of(task)
    elif source != "sample" and tasks:
        refuse_no_directory(Path(source), layout_of(tasks[0]).of(split))


def _read(
    source: str | Path, task: Task, splits: Sequence[str], *, refuse: bool
) -> Iterator[tuple[Examples, list[Skipped]]]:
    """The examples of each split, and the rows that are none."""
    if source == "hub" and not task.elsewhere:
        yield from load_hub(task, splits, refuse=refuse)
        return
    layout = layout_of(task)
    for split in splits:
        path = table_of(source, task, split)
        examples, skipped = read_table(path, task, refuse=refuse)
        if "{split}" not in layout.file and split in ("train", "dev"):
            examples = _held_out(path, examples, split)
        refuse_other_labels(path.name, examples)
        yield examples, skipped


def table_of(source: str | Path, task: Task, split: str) -> Path:
    """The table of a task's split, in the sample, a directory, or where the user has it.

    >>> from bert_mtl_demo.tasks import TASKS
    >>> table_of("data", TASKS["sst"], "test").as_posix()
    'data/ids-sst-test.csv'
    """
    # `directory /` leaves an absolute path, which a user's own table may have, as it is.
    directory = Path() if task.custom else SAMPLE if source == "sample" else Path(source)
    return directory / layout_of(task).of(split)


def _held_out(path: Path, examples: Examples, split: str) -> Examples:
    """A split of the one table that holds both: every tenth example is dev."""
    if len(examples) < EVERY:
        raise DataError(
            f"{path.name}: {len(examples)} usable rows are too few to hold out every tenth for "
            "dev. Give more, or two tables whose names differ in {split}."
        )
    last = EVERY - 1
    return examples.take(
        [row for row in range(len(examples)) if (row % EVERY == last) == (split == "dev")]
    )
