"""The door: which source is opened, and what examples are; with real files if there are any."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bert_mtl_demo.data import (
    DataError,
    Examples,
    Splits,
    load,
    load_inference,
    load_positives,
    load_texts,
)
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
    root = Path(__file__).parents[3]
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


def numbered(size: int, task: str = "sst") -> Examples:
    texts = [f"text {row}" for row in range(size)]
    return Examples(TASKS[task], texts, None if task == "sst" else texts, [0] * size)


def test_a_limit_keeps_the_order_and_nests() -> None:
    whole = numbered(50)
    kept = {limit: whole.limited(limit).first for limit in (1, 7, 20, 50)}
    for limit, texts in kept.items():
        assert len(texts) == limit
        assert texts == sorted(texts, key=lambda text: int(text.split()[1]))
    assert set(kept[1]) < set(kept[7]) < set(kept[20]) < set(kept[50])
    assert kept[20] != whole.first[:20]  # no file is shuffled for us


def test_a_limit_is_the_same_in_every_run_whatever_was_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import random

    before = numbered(30).limited(5)
    random.seed(3)
    state = random.getstate()
    assert numbered(30).limited(5) == before
    assert random.getstate() == state


def test_a_limit_cuts_all_columns_alike() -> None:
    few = numbered(30, "para").limited(4)
    assert few.first == few.second
    assert len(few.labels) == 4


def test_no_limit_and_a_large_one_change_nothing() -> None:
    whole = numbered(5)
    assert whole.limited(None) is whole
    assert whole.limited(5) is whole
    assert whole.limited(99) is whole
    both = Splits(numbered(9), numbered(8)).limited(None, 3)
    assert (len(both.train), len(both.dev)) == (9, 3)


def test_a_fingerprint_is_of_sentences_labels_and_order() -> None:
    base = Examples(STS, ["a", "b"], ["x", "y"], [1.0, 2.0])
    others = [
        Examples(STS, ["b", "a"], ["y", "x"], [2.0, 1.0]),
        Examples(STS, ["a", "b"], ["x", "y"], [1.0, 2.5]),
        Examples(STS, ["a", "b"], ["x", "z"], [1.0, 2.0]),
        Examples(STS, ["a"], ["x"], [1.0]),
    ]
    assert base.take([0, 1]).fingerprint() == base.fingerprint()
    assert len({each.fingerprint() for each in (base, *others)}) == 5


NLI_HEAD = b"\tid\tsentence1\tsentence2\tlabel\n"
QUORA_HEAD = b"\tid\tsentence1\tsentence2\tis_duplicate\n"


def test_texts_are_lines(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfFirst film .\r\n" + 20 * b'A "quoted" line\twith a tab\n' + b"\n"
    (tmp_path / "imdb-reviews.txt").write_bytes(content + b"caf\xe9\n" + b"Last\n\n\n")
    texts, skipped = load_texts(tmp_path)
    assert texts.first == ["First film .", *['A "quoted" line\twith a tab'] * 20, "Last"]
    assert [str(row) for row in skipped] == [
        "imdb-reviews.txt:22: the sentence is empty",
        "imdb-reviews.txt:23: byte 0xe9 at column 4 is not UTF-8",
    ]
    with pytest.raises(DataError, match=r"imdb-reviews\.txt:22"):
        load_texts(tmp_path, refuse=True)


def test_inference_labels_are_words_and_neutral_pairs_are_passed_over(tmp_path: Path) -> None:
    rows = [b"0\tx\ta\tb\tentailment\n", b"1\tx\tc\td\tneutral\n", b"2\tx\te\tf\tcontradiction\n"]
    body = b"".join(8 * rows) + b"9\tx\tg\th\tmaybe\n"
    (tmp_path / "nli.csv").write_bytes(NLI_HEAD + body)
    pairs, skipped = load_inference(tmp_path)
    assert pairs.texts()[:2] == [("a", "b"), ("e", "f")]
    assert pairs.labels == 8 * [1, 0]
    assert [row.line for row in skipped] == [26]
    assert "'maybe' is none of contradiction, entailment, neutral" in skipped[0].reason


def test_extra_positives_are_optional_and_positive(tmp_path: Path) -> None:
    assert load_positives(tmp_path) == (load_positives("sample")[0], [])
    rows = 20 * b"0\tx\ta\tb\t1.0\n" + b"1\tx\tc\td\t0.0\n"
    (tmp_path / "quora-extra-positives.csv").write_bytes(QUORA_HEAD + rows)
    extra, skipped = load_positives(tmp_path)
    assert (len(extra), set(extra.labels)) == (20, {1})
    assert [str(row) for row in skipped] == [
        "quora-extra-positives.csv:22: the label 0.0 is outside 1..1"
    ]


@pytest.mark.parametrize(
    ("loader", "file"), [(load_texts, "imdb-reviews.txt"), (load_inference, "nli.csv")]
)
def test_a_missing_file_of_a_stage_is_named_with_the_remedy(
    tmp_path: Path, loader: Callable[..., object], file: str
) -> None:
    with pytest.raises(DataError, match=f"{file} is missing in .*stage out of --pretrain"):
        loader(tmp_path)
    with pytest.raises(DataError, match=f"does not exist.*{file}"):
        loader(tmp_path / "nowhere")
    (tmp_path / file).touch()
    with pytest.raises(DataError, match=f"{file} is empty"):
        loader(tmp_path)


def test_the_sample_stands_in_for_what_it_lacks() -> None:
    splits = load("sample", resolve(list(TASKS)))[0]
    texts = set(load_texts("sample")[0].first)
    for split in splits.values():
        assert texts >= {text for row in split.train.texts() for text in row}
        assert not texts & set(split.dev.first) or split.dev.task.pair
    pairs = load_inference("sample")[0]
    assert (pairs.first, pairs.labels) == (splits["para"].train.first, splits["para"].train.labels)


REAL = os.environ.get("BERT_MTL_DATA")


@pytest.mark.skipif(not REAL, reason="BERT_MTL_DATA names no directory with the real tables")
def test_the_real_tables_are_read_whole() -> None:
    splits, skipped = load(str(REAL), resolve(list(TASKS)))
    dev = {name: len(split.dev) for name, split in splits.items()}
    assert dev == {"sst": 1101, "para": 20_212, "sts": 863, "cfimdb": 245}
    assert (len(splits["sst"].train), len(splits["sts"].train)) == (8544, 6040)
    # Quora's official dev set has two rows that end early.
    assert [(row.file, row.line) for row in skipped] == [
        ("quora-dev.csv", 2577),
        ("quora-dev.csv", 14_222),
    ]
    assert all("the label is empty" in row.reason for row in skipped)
    with pytest.raises(DataError, match=r"quora-dev\.csv:2577"):
        load(str(REAL), resolve(["para"]), bad_rows="refuse")


@pytest.mark.skipif(not REAL, reason="BERT_MTL_DATA names no directory with the real tables")
def test_the_real_files_of_the_stages_are_read_whole() -> None:
    for loader, size in ((load_texts, 10_000), (load_inference, 55_120), (load_positives, 60_150)):
        found, skipped = loader(str(REAL))
        assert (len(found), skipped) == (size, [])
