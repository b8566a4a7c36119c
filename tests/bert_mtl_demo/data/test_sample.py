"""The embedded data: the same everywhere, balanced, clean, not to be solved by counting words."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict

import pytest

from bert_mtl_demo.data import Examples, Splits, load
from bert_mtl_demo.data.directory import SAMPLE
from bert_mtl_demo.tasks import TASKS, resolve

NAMES = list(TASKS)
TRAIN, DEV = 1200, 300


@pytest.fixture(scope="module")
def sample() -> dict[str, Splits]:
    splits, skipped = load("sample", resolve(NAMES))
    assert skipped == []
    return splits


def halves(splits: Splits) -> tuple[Examples, Examples]:
    return splits.train, splits.dev


@pytest.mark.parametrize("name", NAMES)
def test_sizes_types_and_ranges(sample: dict[str, Splits], name: str) -> None:
    task = TASKS[name]
    for examples, size in zip(halves(sample[name]), (TRAIN, DEV), strict=True):
        assert examples.task is task
        assert len(examples) == len(examples.first) == size
        assert all(type(label) is (int if task.classes else float) for label in examples.labels)
        assert all(task.low <= label <= task.high for label in examples.labels)


@pytest.mark.parametrize("name", NAMES)
def test_label_groups_are_balanced_and_shuffled(sample: dict[str, Splits], name: str) -> None:
    count = TASKS[name].classes or 5  # similarities in bins of width one, the last with its end
    for examples in halves(sample[name]):
        groups = [min(int(label), count - 1) for label in examples.labels]
        assert set(Counter(groups).values()) == {len(examples) // count}
        # Sorted or blocked data would show fewer groups at the ends.
        assert len(set(groups[:40])) == len(set(groups[-40:])) == count


def test_similarities_are_graded_in_fifths(sample: dict[str, Splits]) -> None:
    labels = sample["sts"].train.labels
    assert all(round(5 * label, 6).is_integer() for label in map(float, labels))
    assert len(set(labels)) == 26  # 0.0, 0.2, ..., 5.0: every step is used


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_dev_is_in_train_and_nothing_comes_twice(
    sample: dict[str, Splits], name: str
) -> None:
    assert sample[name].overlap() == 0
    for examples in halves(sample[name]):
        keys = {tuple(sorted(texts)) for texts in examples.texts()}
        assert len(keys) == len(examples)
        if TASKS[name].pair:
            assert all(first != second for first, second in examples.texts())


@pytest.mark.parametrize("name", NAMES)
def test_sentences_look_like_sentences(sample: dict[str, Splits], name: str) -> None:
    end = "?" if name == "para" else "."
    for examples in halves(sample[name]):
        for text in (text for texts in examples.texts() for text in texts):
            assert text[0].isupper(), text
            assert text.endswith(end), text
            assert not {"  ", " .", " ,", " ?"} & {text[i : i + 2] for i in range(len(text))}
            assert not set("{}") & set(text), text
            assert text.isascii(), text


# The first digits of the SHA-256 of each table: checkpoints of the sample know its examples.
DIGESTS = {
    "sst": ("18553e375f01", "a286a5cc09c2"),
    "para": ("d8b8ba7117b0", "ab9989c5e604"),
    "sts": ("9da3ab9c8dc1", "75654ff55b8c"),
    "cfimdb": ("05077948d907", "df2332719d9e"),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_are_those_that_checkpoints_know(name: str) -> None:
    layout = TASKS[name].layout
    assert layout is not None
    tables = [(SAMPLE / layout.of(split)).read_bytes() for split in ("train", "dev")]
    digests = tuple(hashlib.sha256(table).hexdigest()[:12] for table in tables)
    assert digests == DIGESTS[name]


def test_what_a_caller_does_to_its_copy_does_not_reach_the_next() -> None:
    once = load("sample", resolve(["sst"]))[0]["sst"].train
    once.labels.clear()
    assert len(load("sample", resolve(["sst"]))[0]["sst"].train) == TRAIN


def bag_of_words_accuracy(splits: Splits, classes: int) -> float:
    """Dev accuracy of naive Bayes on words: what can be had without reading how they combine."""

    def words(texts: tuple[str, ...]) -> set[str]:
        return {word.strip(",;.?") for text in texts for word in text.lower().split()}

    counts: dict[str, list[int]] = defaultdict(lambda: [1] * classes)
    for texts, label in zip(splits.train.texts(), splits.train.labels, strict=True):
        for word in words(texts):
            counts[word][int(label)] += 1
    right = 0
    for texts, label in zip(splits.dev.texts(), splits.dev.labels, strict=True):
        known = [counts[word] for word in words(texts) if word in counts]
        scores = [sum(math.log(count[grade]) for count in known) for grade in range(classes)]
        right += scores.index(max(scores)) == label
    return right / len(splits.dev)


@pytest.mark.parametrize(
    ("name", "chance", "ceiling"), [("sst", 0.2, 0.7), ("para", 0.5, 0.8)], ids=["sst", "para"]
)
def test_words_alone_help_and_do_not_settle(
    sample: dict[str, Splits], name: str, chance: float, ceiling: float
) -> None:
    classes = TASKS[name].classes
    assert classes is not None
    assert chance + 0.1 < bag_of_words_accuracy(sample[name], classes) < ceiling


def test_words_tell_more_of_a_long_review_than_of_a_sentence_and_not_all(
    sample: dict[str, Splits],
) -> None:
    assert 0.6 < bag_of_words_accuracy(sample["cfimdb"], 2) < 0.9


def test_shared_words_do_not_settle_the_paraphrases(sample: dict[str, Splits]) -> None:
    """Hard negatives share more words than duplicates do, so overlap points the wrong way."""
    examples = sample["para"].train
    shares: dict[int, list[float]] = {0: [], 1: []}
    for (one, two), label in zip(examples.texts(), examples.labels, strict=True):
        a, b = set(one.lower().split()), set(two.lower().split())
        shares[int(label)].append(len(a & b) / len(a | b))
    mean = {label: sum(values) / len(values) for label, values in shares.items()}
    assert mean[0] > mean[1]


def test_swapped_questions_are_among_the_negatives(sample: dict[str, Splits]) -> None:
    same_words = [
        label
        for texts, label in zip(
            sample["para"].train.texts(), sample["para"].train.labels, strict=True
        )
        if len({tuple(sorted(text.lower().rstrip("?").split())) for text in texts}) == 1
    ]
    assert len(same_words) >= 10
    assert set(same_words) == {0}
