"""The door: which source is opened, and what examples are; with real files if there are any."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bert_mtl_demo.data import DataError, Examples, Splits, load
from bert_mtl_demo.errors import DemoError
from bert_mtl_demo.tasks import TASKS, resolve

SST, STS = TASKS["sst"], TASKS["sts"]


@pytest.mark.parametrize(
    ("tasks", "bad_rows", "parts"),
    [
        ([SST], "guess", ["bad_rows is 'guess'", "'skip', 'refuse'"]),
        ([], "skip", ["tasks to load are []", "at least one"]),
        ([SST, STS, SST], "skip", ["['sst', 'sts', 'sst']", "each once"]),
    ],
    ids=["bad_rows", "no task", "duplicate"],
)
def test_arguments_that_make_no_sense_are_named(
    tasks: list[object], bad_rows: str, parts: list[str]
) -> None:
    with pytest.raises(ValueError, match=re.escape(parts[0])) as caught:
        load("sample", tasks, bad_rows=bad_rows)  # type: ignore[arg-type]
    for part in parts:
        assert part in str(caught.value)


def test_a_path_is_always_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in (Path("sample"), "./sample", "sampel"):
        with pytest.raises(DataError, match="does not exist"):
            load(source, [SST])


def test_data_errors_are_for_people() -> None:
    assert issubclass(DataError, DemoError)
    assert issubclass(DataError, ValueError)


def test_nothing_heavy_is_imported_for_the_sample() -> None:
    code = (
        "import sys; from bert_mtl_demo import data, tasks;"
        "data.load('sample', tasks.resolve(['sts']));"
        "print(sorted({'torch', 'datasets', 'pandas', 'transformers'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        check=True,
        text=True,
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((STS, ["a"], None, [1.0]), "'sts' takes two sentences per example, got one"),
        ((SST, ["a"], ["b"], [1]), "'sst' takes one sentence per example, got two"),
        ((SST, ["a", "b"], None, [1]), r"'sst' have \[2, 1\] entries"),
        ((STS, ["a"], ["b", "c"], [1.0]), r"'sts' have \[1, 2, 1\] entries"),
    ],
)
def test_examples_that_do_not_fit_together_are_refused(
    arguments: tuple[object, ...], part: str
) -> None:
    with pytest.raises(ValueError, match=part):
        Examples(*arguments)  # type: ignore[arg-type]


def test_overlap_counts_dev_examples_in_either_order() -> None:
    train = Examples(STS, ["a", "b"], ["x", "y"], [1.0, 2.0])
    dev = Examples(STS, ["x", "b", "b", "a"], ["a", "y", "y", "y"], [1.0, 2.0, 3.0, 0.0])
    assert Splits(train, dev).overlap() == 3
    assert Splits(train, Examples(STS, ["a"], ["b"], [0.0])).overlap() == 0


def test_texts_are_the_sentences_example_by_example() -> None:
    assert Examples(SST, ["a", "b"], None, [0, 1]).texts() == [("a",), ("b",)]
    assert Examples(STS, ["a"], ["b"], [1.0]).texts() == [("a", "b")]


REAL = os.environ.get("BERT_MTL_DATA")


@pytest.mark.skipif(not REAL, reason="BERT_MTL_DATA names no directory with the real tables")
def test_the_real_tables_are_read_whole() -> None:
    splits, skipped = load(str(REAL), resolve(list(TASKS)))
    dev = {name: len(split.dev) for name, split in splits.items()}
    assert dev == {"sst": 1101, "para": 20_212, "sts": 863}
    assert (len(splits["sst"].train), len(splits["sts"].train)) == (8544, 6040)
    # Quora's official dev set has two rows that end early.
    assert [(row.file, row.line) for row in skipped] == [
        ("quora-dev.csv", 2577),
        ("quora-dev.csv", 14_222),
    ]
    assert all("the label is empty" in row.reason for row in skipped)
    with pytest.raises(DataError, match=r"quora-dev\.csv:2577"):
        load(str(REAL), resolve(["para"]), bad_rows="refuse")
