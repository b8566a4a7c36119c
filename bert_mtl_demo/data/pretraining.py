"""Data for the stages before the tasks: plain texts, inference pairs, extra paraphrases.

They come from the same three sources as the tasks, through the same validation: each kind is a task
of its own here, one that is trained on and never scored, so that bad rows are met in the same way.

    kind        a directory has                                  the hub has
    texts       imdb-reviews.txt, one text a line                stanfordnlp/imdb, unsupervised
    inference   nli.csv (sentence1, sentence2, label)            sentence-transformers/all-nli
    positives   quora-extra-positives.csv, if it wants to        none

The sample has none of them. Its own train sentences stand in for texts, and its paraphrases for
inference: a paraphrase as an entailment, any other pair as a contradiction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from bert_mtl_demo.data.directory import (
    SAMPLE,
    layout_of,
    read_table,
    refuse_no_directory,
    table_rows,
)
from bert_mtl_demo.data.examples import Examples, Skipped
from bert_mtl_demo.data.hub import fetch, rows_of
from bert_mtl_demo.data.records import UnreadableError, decoded, physical_lines
from bert_mtl_demo.data.validation import Row, validated
from bert_mtl_demo.tasks import TASKS, HubData, Layout, Task

Loaded = tuple[Examples, list[Skipped]]

TEXTS = Task("texts", "plain text", False, 1, 0.0, 0.0, "accuracy", ("text",))
INFERENCE = Task(
    "inference", "inference", True, 2, 0.0, 1.0, "accuracy", ("contradiction", "entailment")
)
# Only paraphrases: every label is 1.
POSITIVES = replace(TASKS["para"], name="positives", low=1.0)

TEXTS_FILE = "imdb-reviews.txt"
INFERENCE_TABLE = Layout("nli.csv", ("sentence1", "sentence2"), "label")
POSITIVES_TABLE = replace(layout_of(TASKS["para"]), file="quora-extra-positives.csv")

TEXTS_HUB = HubData(("stanfordnlp/imdb",), ("text",), None)
INFERENCE_HUB = HubData(
    ("sentence-transformers/all-nli", "pair-class"), ("premise", "hypothesis"), "label"
)
_HUB_LABELS = {"0": "entailment", "1": "neutral", "2": "contradiction"}

_WITHOUT = "take the stage out of --pretrain"


def load_texts(source: str | Path, *, refuse: bool = False) -> Loaded:
    """Plain texts, for masked language modelling; each has the label 0, which means nothing.

    Raises:
        DataError: as `bert_mtl_demo.data.load` does.

    >>> texts, skipped = load_texts("sample")
    >>> texts.task.name, len(texts) > 5000, skipped
    ('texts', True, [])
    """
    if source == "sample":
        return _sample_texts(), []
    if source == "hub":
        rows = rows_of(fetch(TEXTS_HUB), TEXTS_HUB, "unsupervised")
        return validated(TEXTS, TEXTS_HUB.of("unsupervised"), rows, refuse=refuse)
    path = _in(source, TEXTS_FILE)
    return validated(TEXTS, path.name, _text_rows(path), refuse=refuse)


def load_inference(source: str | Path, *, refuse: bool = False) -> Loaded:
    """Pairs of which the first sentence entails (1) or contradicts (0) the second.

    Neutral pairs are another class of such data, not bad rows, and are left out silently.

    Raises:
        DataError: as `bert_mtl_demo.data.load` does.

    >>> load_inference("sample")[0].task.label_names[1]
    'entailment'
    """
    if source == "sample":
        return replace(_sample(TASKS["para"]), task=INFERENCE), []
    if source == "hub":
        rows = _inference_rows(rows_of(fetch(INFERENCE_HUB), INFERENCE_HUB, "train"), _HUB_LABELS)
        return validated(INFERENCE, INFERENCE_HUB.of("train"), rows, refuse=refuse)
    path = _in(source, INFERENCE_TABLE.file)
    rows = _inference_rows(table_rows(path, INFERENCE_TABLE, _WITHOUT), {})
    return validated(INFERENCE, path.name, rows, refuse=refuse)


def load_positives(source: str | Path, *, refuse: bool = False) -> Loaded:
    """Extra paraphrases beside those of the task, where the source has any: every label is 1.

    Raises:
        DataError: when there is such a file and it cannot be used.

    >>> len(load_positives("sample")[0])
    0
    """
    nothing = Examples(POSITIVES, [], [], [])
    if source in ("sample", "hub"):
        return nothing, []
    path = _in(source, POSITIVES_TABLE.file)
    if not path.exists():
        return nothing, []
    return validated(POSITIVES, path.name, table_rows(path, POSITIVES_TABLE), refuse=refuse)


def _in(source: str | Path, file: str) -> Path:
    refuse_no_directory(Path(source), file)
    return Path(source) / file


def _sample(task: Task) -> Examples:
    """The embedded train examples of a task."""
    return read_table(SAMPLE / layout_of(task).of("train"), task)[0]


def _sample_texts() -> Examples:
    rows = (row for task in TASKS.values() for row in _sample(task).texts())
    # A dict keeps the order and drops what two tasks share.
    texts = list(dict.fromkeys(text for row in rows for text in row))
    return Examples(TEXTS, texts, None, [0] * len(texts))


def _text_rows(path: Path) -> Iterator[Row]:
    lines = physical_lines(path, _WITHOUT, needs="one text per line")
    for number, line in enumerate(lines, start=1):
        try:
            yield number, ((decoded(line).strip(),), 0)
        except UnreadableError as error:
            yield number, str(error)


def _inference_rows(rows: Iterable[Row], words: Mapping[str, str]) -> Iterator[Row]:
    """Rows whose labels, as they are or as keys of `words`, are words: with a class instead."""
    for number, row in rows:
        if isinstance(row, str):
            yield number, row
            continue
        texts, label = row
        word = words.get(str(label), str(label)).strip()
        if word in INFERENCE.label_names:
            yield number, (texts, INFERENCE.label_names.index(word))
        elif word != "neutral":
            known = ", ".join(sorted(_HUB_LABELS.values()))
            yield number, f"the label {word!r} is none of {known}"
