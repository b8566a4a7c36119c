"""Labels: what is said of them, and which tables are refused for them."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from bert_mtl_demo.data import DataError, Examples, Splits, load, load_dev
from bert_mtl_demo.data.directory import layout_of
from bert_mtl_demo.data.distribution import announce, concerns, described, refuse_other_labels
from bert_mtl_demo.tasks import TASKS, Task, resolve
from bert_mtl_demo.user_tasks import user_tasks


def labelled(task: Task, labels: list[float] | list[int]) -> Examples:
    """Examples of different sentences with these labels."""
    texts = [f"text {number}" for number in range(len(labels))]
    return Examples(task, texts, list(texts) if task.pair else None, labels)


OTHERS = {
    "two classes of five": ("sst", [0, 1], "from 0 to 1", "0 (very negative) to 4 (very positive)"),
    "three classes of five": ("sst", [0, 1, 2], "from 0 to 2", "0 (very negative) to 4"),
    "four classes of five": ("sst", [0, 1, 2, 3], "from 0 to 3", "0 (very negative) to 4"),
    "counted from one": ("sst", [1, 2, 3], "from 1 to 3", "0 (very negative) to 4"),
    "one class": ("para", [1], "are 1", "0 (different) to 1 (paraphrase)"),
    "one polarity": ("cfimdb", [0], "are 0", "0 (negative) to 1 (positive)"),
    "scores up to 1": ("sts", [0.0, 0.3, 1.0], "from 0 to 1", "scores from 0 to 5"),
    "one score": ("sts", [2.5], "are 2.5", "scores from 0 to 5"),
}


@pytest.mark.parametrize(("name", "labels", "used", "wanted"), OTHERS.values(), ids=list(OTHERS))
def test_labels_of_another_meaning_are_refused_with_both_meanings(
    name: str, labels: list[float], used: str, wanted: str
) -> None:
    task = TASKS[name]
    with pytest.raises(DataError) as caught:
        refuse_other_labels("some.csv", labelled(task, 1200 * labels))
    for part in ("some.csv: ", used, wanted, f"task {name!r}", "--task NAME=KIND:FILE"):
        assert part in str(caught.value)
    refuse_other_labels("some.csv", labelled(task, 4 * labels))  # a few may be so by chance


# What the real tables hold, and where their order is farthest from chance.
REAL = {
    "sst": [0.128, 0.260, 0.190, 0.272, 0.151],
    "para": [0.625, 0.375],
    "cfimdb": [0.501, 0.499],
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("size", [1, 10, 50, 138, 242, 319, 433, 991, 2000])
def test_small_tables_of_real_labels_are_never_refused(name: str, size: int) -> None:
    draw = random.Random(f"{name} {size}")
    for _ in range(50):
        labels = draw.choices(range(len(REAL[name])), REAL[name], k=size)
        refuse_other_labels("some.csv", labelled(TASKS[name], labels))


@pytest.mark.parametrize(
    ("rows", "labels"), [(22, [0, 1]), (33, [3, 4]), (122, [0, 1, 2]), (450, [1, 2, 3, 4])]
)
def test_the_longest_one_sided_stretches_of_a_real_table_are_not_refused(
    rows: int, labels: list[int]
) -> None:
    refuse_other_labels("some.csv", labelled(TASKS["sst"], (rows * labels)[:rows]))


def test_a_scale_that_is_not_used_up_is_not_another_one() -> None:
    draw = random.Random(1)
    scores = [round(draw.uniform(0.4, 4.6), 1) for _ in range(6000)]
    refuse_other_labels("some.csv", labelled(TASKS["sts"], scores))


def test_a_users_labels_are_what_they_are() -> None:
    task = {"kind": "classification", "file": "{split}.csv", "labels": ["a", "b", "c"]}
    (mood,) = user_tasks({"mood": task})
    refuse_other_labels("some.csv", labelled(mood, [0, 1] * 1000))


def test_a_directory_is_refused_by_the_file_whatever_the_limit(tmp_path: Path) -> None:
    for split, labels in (("train", range(5)), ("dev", range(2))):
        rows = [f"text {n}\t{labels[n % len(labels)]}" for n in range(300)]
        path = tmp_path / layout_of(TASKS["sst"]).of(split)
        path.write_text("\n".join(["sentence\tsentiment", *rows]))
    with pytest.raises(DataError, match=r"^ids-sst-dev\.csv: all 300 labels are from 0 to 1"):
        load(tmp_path, resolve(["sst"]))


def test_dev_is_read_where_there_is_no_train(tmp_path: Path) -> None:
    path = tmp_path / layout_of(TASKS["sts"]).of("dev")
    path.write_text("sentence1\tsentence2\tsimilarity\na\tb\t5\nc\td\t9\n" + 20 * "e\tf\t1\n")
    dev, skipped = load_dev(tmp_path, resolve(["sts"]))
    assert len(dev["sts"]) == 21
    assert [row.line for row in skipped] == [3]
    with pytest.raises(DataError, match=r"sts-train\.csv is missing"):
        load(tmp_path, resolve(["sts"]))
    with pytest.raises(DataError, match=r"does not exist.*sts-dev\.csv"):
        load_dev(tmp_path / "nowhere", resolve(["sts"]))


def test_every_task_has_a_short_line(capsys: pytest.CaptureFixture[str]) -> None:
    splits, _ = load("sample", resolve(list(TASKS)))
    announce({name: parts.limited(50, 20) for name, parts in splits.items()})
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert re.findall(r"^(\w+): 50\s", text, re.MULTILINE) == list(TASKS)
    assert len(re.findall(r",\s20\sdev$", text, re.MULTILINE)) == len(TASKS)


def test_one_score_has_no_quartiles() -> None:
    few = labelled(TASKS["sts"], [2.5])
    assert described(Splits(few, few)) == "sts: 1 train (2.5 to 2.5), 1 dev"


def test_dev_that_is_train_is_told() -> None:
    rows = labelled(TASKS["sst"], [0, 1, 2, 3, 4] * 4)
    assert concerns({"sst": Splits(rows, rows)}) == [
        "sst: 20 of 20 dev examples are also in train, so its scores say nothing about new text"
    ]
    few = Examples(TASKS["sst"], ["text 3", "a", "b", "c"], None, [0, 1, 2, 3])
    assert concerns({"sst": Splits(rows, few)}) == ["sst: 1 of 4 dev examples is also in train"]
    assert concerns({"sst": Splits(rows, few.take([1, 2, 3]))}) == []


def test_labels_that_few_rows_would_hardly_have_are_told() -> None:
    rows = labelled(TASKS["sst"], [0, 1] * 20)
    dev = Examples(TASKS["sst"], ["a"], None, [4])
    assert concerns({"sst": Splits(rows, dev)}) == [
        "sst: all 40 labels are from 0 to 1, but those of task 'sst' are 0 (very negative) to 4 "
        "(very positive); if they mean something else, so do the scores"
    ]
