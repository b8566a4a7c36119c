"""The hub, with a stand-in for `datasets.load_dataset`: no test here needs a network."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from bert_mtl_demo.data import DataError, load, load_inference, load_positives, load_texts
from bert_mtl_demo.tasks import TASKS, resolve


class Table:
    """As much of a `datasets.Dataset` as the loader uses."""

    def __init__(self, **columns: list[Any]) -> None:
        self._columns = columns

    @property
    def column_names(self) -> list[str]:
        return list(self._columns)

    def __getitem__(self, name: str) -> list[Any]:
        return self._columns[name]


def glue(first: str, second: str, labels: list[Any]) -> dict[str, Table]:
    """Three splits whose sentences carry the split's name; test labels are hidden, as in GLUE."""

    def split(name: str, values: list[Any]) -> Table:
        texts = [f"{name} {row}" for row in range(len(values))]
        again = [f"{text}, again" for text in texts]
        return Table(**{first: texts, second: again, "label": values, "idx": texts})

    hidden = [-1] * len(labels)
    rows = {"train": labels, "validation": labels[:2], "test": hidden}
    return {name: split(name, values) for name, values in rows.items()}


def hub() -> dict[tuple[str, ...], dict[str, Table]]:
    sst: dict[str, list[Any]] = {
        "text": ["Dire.", "So so.", "A joy."],
        "label": [0, 2, 4],
        "label_text": ["", "", ""],
    }
    return {
        ("SetFit/sst5",): {name: Table(**sst) for name in ("train", "validation", "test")},
        ("nyu-mll/glue", "qqp"): glue("question1", "question2", [1, 0, 1]),
        ("nyu-mll/glue", "stsb"): glue("sentence1", "sentence2", [3.799999952316284, 0.0, 5.0]),
    }


def install(monkeypatch: pytest.MonkeyPatch, load_dataset: Callable[..., Any]) -> None:
    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_the_validation_split_is_dev(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*path: str) -> dict[str, Table]:
        asked.append(path)
        return hub()[path]

    install(monkeypatch, load_dataset)
    splits, skipped = load("hub", resolve(["sst", "para", "sts"]))
    assert asked == [("SetFit/sst5",), ("nyu-mll/glue", "qqp"), ("nyu-mll/glue", "stsb")]
    assert skipped == []
    assert splits["sst"].train.first == ["Dire.", "So so.", "A joy."]
    assert splits["sst"].train.second is None
    assert splits["para"].train.labels == [1, 0, 1]
    assert splits["para"].dev.second == ["validation 0, again", "validation 1, again"]
    assert splits["sts"].dev.labels == [3.799999952316284, 0.0]
    assert {type(label) for label in splits["para"].dev.labels} == {int}


def test_only_what_is_asked_for_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*path: str) -> dict[str, Table]:
        assert path == ("nyu-mll/glue", "stsb")
        return hub()[path]

    install(monkeypatch, load_dataset)
    assert list(load("hub", resolve(["sts"]))[0]) == ["sts"]


def test_real_datasets_objects_are_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"text": ["Dull.", "Grand."], "label": [1, 4]})
    both = datasets.DatasetDict({"train": table, "validation": table})
    monkeypatch.setattr(datasets, "load_dataset", lambda *path: both)
    assert load("hub", resolve(["sst"]))[0]["sst"].dev.labels == [1, 4]


def test_bad_rows_are_named_by_data_set_split_and_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 20
    bad = Table(
        question1=["Why?"] * rows,
        question2=["How?"] * 7 + [None] + ["How?"] * (rows - 8),
        label=[0] * rows,
    )
    good = Table(question1=["Why?"], question2=["How?"], label=[0])
    install(monkeypatch, lambda *path: {"train": good, "validation": bad})
    splits, skipped = load("hub", resolve(["para"]))
    assert len(splits["para"].dev) == rows - 1
    assert [str(row) for row in skipped] == [
        "nyu-mll/glue/qqp[validation]:8: the second sentence is empty"
    ]
    with pytest.raises(DataError, match=r"qqp\[validation\]:8: the second sentence is empty"):
        load("hub", resolve(["para"]), bad_rows="refuse")


def test_without_datasets_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # makes the import fail
    with pytest.raises(DataError, match=r"pip install datasets.*\"sample\""):
        load("hub", resolve(["sst"]))


@pytest.mark.parametrize("error", [ConnectionError, OSError, RuntimeError, ValueError])
def test_an_unreachable_hub_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def load_dataset(*path: str) -> None:
        raise error("no route")

    install(monkeypatch, load_dataset)
    with pytest.raises(DataError) as caught:
        load("hub", resolve(["para"]))
    for part in ("nyu-mll/glue/qqp", f"{error.__name__}: no route", "HF_HUB_OFFLINE", '"sample"'):
        assert part in str(caught.value)
    assert isinstance(caught.value.__cause__, error)


@pytest.mark.parametrize(
    ("tables", "parts"),
    [
        ({"train": Table(text=["A."], label=[1])}, ["[validation]", "no such split", "['train']"]),
        ({"train": Table(sentence=["A."], label=[1])}, ["[train]", "no column 'text'", "sentence"]),
        ({"train": Table(text=["A."], label=[-1])}, ["[train]", "no usable row", "-1 is outside"]),
    ],
    ids=["split", "column", "hidden labels"],
)
def test_a_data_set_of_another_shape_is_refused(
    monkeypatch: pytest.MonkeyPatch, tables: dict[str, Table], parts: list[str]
) -> None:
    install(monkeypatch, lambda *path: tables)
    with pytest.raises(DataError) as caught:
        load("hub", resolve(["sst"]))
    for part in ("SetFit/sst5", *parts):
        assert part in str(caught.value)


def test_every_task_but_one_has_a_data_set() -> None:
    assert [task.name for task in TASKS.values() if task.hub is None] == ["cfimdb"]


def test_a_task_without_a_data_set_is_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_dataset(*path: str) -> None:
        raise AssertionError(f"fetched {path}")

    install(monkeypatch, load_dataset)
    with pytest.raises(DataError, match="Task 'cfimdb' has no data set on the hub") as caught:
        load("hub", resolve(["sst", "cfimdb"]))
    for part in ("ids-cfimdb-train.csv", "ids-cfimdb-dev.csv", '"sample"', "leave the task out"):
        assert part in str(caught.value)


def test_texts_are_the_unsupervised_reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*path: str) -> dict[str, Table]:
        assert path == ("stanfordnlp/imdb",)
        texts = ["A long one.", " ", *["Another."] * 20]
        return {"train": Table(text=["no"]), "unsupervised": Table(text=texts, label=[-1] * 22)}

    install(monkeypatch, load_dataset)
    texts, skipped = load_texts("hub")
    assert texts.first == ["A long one.", *["Another."] * 20]
    assert [str(row) for row in skipped] == [
        "stanfordnlp/imdb[unsupervised]:2: the sentence is empty"
    ]
    with pytest.raises(DataError, match=r"unsupervised\]:2"):
        load_texts("hub", refuse=True)


def test_inference_pairs_are_those_that_are_not_neutral(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*path: str) -> dict[str, Table]:
        assert path == ("sentence-transformers/all-nli", "pair-class")
        labels = [0, 1, 2, -1, *[2] * 20]
        rows = [str(row) for row in range(len(labels))]
        return {"train": Table(premise=rows, hypothesis=rows, label=labels)}

    install(monkeypatch, load_dataset)
    pairs, skipped = load_inference("hub")
    assert pairs.first[:3] == ["0", "2", "4"]
    assert pairs.labels == [1, 0, *[0] * 20]
    assert [row.line for row in skipped] == [4]
    assert "'-1' is none of contradiction, entailment, neutral" in skipped[0].reason


def test_the_hub_has_no_extra_positives() -> None:
    assert len(load_positives("hub")[0]) == 0


@pytest.mark.parametrize("loader", [load_texts, load_inference])
def test_an_unreachable_hub_is_one_clear_error_for_stages_too(
    monkeypatch: pytest.MonkeyPatch, loader: Callable[[str], object]
) -> None:
    def load_dataset(*path: str) -> None:
        raise ConnectionError("no route")

    install(monkeypatch, load_dataset)
    with pytest.raises(DataError, match="ConnectionError: no route"):
        loader("hub")
