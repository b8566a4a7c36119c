"""Data for the stages before the tasks: plain texts, inference pairs, extra paraphrases.

They come from the same three sources as the tasks, through the same gate: each kind is a task of
its own here, one that is trained on and never scored, so that bad rows are met in the same way.

    kind        a directory has                                  the hub has
    texts       imdb-reviews.txt, one text a line                stanfordnlp/imdb, unsupervised
    inference   nli.csv (sentence1, sentence2, label)            sentence-transformers/all-nli
    positives   quora-extra-positives.csv, if it wants to        none

The sample has none of them. Its own train sentences stand in for texts, and its paraphrases for
inference: a paraphrase as an entailment, any other pair as a contradiction.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bert_mtl_demo.data.directory import (
    LAYOUTS,
    Layout,
    UnreadableError,
    decoded,
    physical_lines,
    refuse_no_directory,
    table_rows,
)
from bert_mtl_demo.data.examples import Examples, Skipped
from bert_mtl_demo.data.hub import HubData, fetch, rows_of
from bert_mtl_demo.data.sample import load_sample
from bert_mtl_demo.data.validation import Gate
from bert_mtl_demo.tasks import TASKS, Task

Loaded = tuple[Examples, list[Skipped]]

TEXTS = Task("texts", "plain text", False, 1, 0.0, 0.0, "accuracy", ("text",))
INFERENCE = Task(
    "inference", "inference", True, 2, 0.0, 1.0, "accuracy", ("contradiction", "entailment")
)
# Only paraphrases: every label is 1.
POSITIVES = replace(TASKS["para"], name="positives", low=1.0)

TEXTS_FILE = "imdb-reviews.txt"
INFERENCE_TABLE = Layout("nli.csv", ("sentence1", "sentence2"), "label")
POSITIVES_TABLE = replace(LAYOUTS["para"], file="quora-extra-positives.csv")

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
        gate = Gate(TEXTS, TEXTS_HUB.of("unsupervised"), refuse)
        for number, texts, _ in rows_of(fetch(TEXTS_HUB), TEXTS_HUB, "unsupervised"):
            gate.offer(number, texts, 0)
        return gate.close(), gate.skipped
    return _read_texts(_in(source, TEXTS_FILE), refuse)


def load_inference(source: str | Path, *, refuse: bool = False) -> Loaded:
    """Pairs of which the first sentence entails (1) or contradicts (0) the second.

    Neutral pairs are another class of such data, not bad rows, and are passed over without a word.

    Raises:
        DataError: as `bert_mtl_demo.data.load` does.

    >>> load_inference("sample")[0].task.label_names[1]
    'entailment'
    """
    if source == "sample":
        para = load_sample([TASKS["para"]])["para"].train
        return replace(para, task=INFERENCE), []
    if source == "hub":
        gate = Gate(INFERENCE, INFERENCE_HUB.of("train"), refuse)
        for number, texts, label in rows_of(fetch(INFERENCE_HUB), INFERENCE_HUB, "train"):
            _offer_inference(gate, number, texts, _HUB_LABELS.get(str(label), label))
        return gate.close(), gate.skipped
    path = _in(source, INFERENCE_TABLE.file)
    gate = Gate(INFERENCE, path.name, refuse)
    for number, row in table_rows(path, INFERENCE_TABLE, _WITHOUT):
        if isinstance(row, str):
            gate.reject(number, row)
        else:
            _offer_inference(gate, number, *row)
    return gate.close(), gate.skipped


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
    gate = Gate(POSITIVES, path.name, refuse)
    for number, row in table_rows(path, POSITIVES_TABLE):
        if isinstance(row, str):
            gate.reject(number, row)
        else:
            gate.offer(number, *row)
    return gate.close(), gate.skipped


def _in(source: str | Path, file: str) -> Path:
    refuse_no_directory(Path(source), file)
    return Path(source) / file


def _sample_texts() -> Examples:
    splits = load_sample(tuple(TASKS.values())).values()
    # A dict keeps the order and drops what two tasks share.
    texts = list(
        dict.fromkeys(text for split in splits for row in split.train.texts() for text in row)
    )
    return Examples(TEXTS, texts, None, [0] * len(texts))


def _read_texts(path: Path, refuse: bool) -> Loaded:
    gate = Gate(TEXTS, path.name, refuse)
    lines = physical_lines(path, _WITHOUT, needs="one text per line")
    for number, line in enumerate(lines, start=1):
        try:
            gate.offer(number, (decoded(line).strip(),), 0)
        except UnreadableError as error:
            gate.reject(number, str(error))
    return gate.close(), gate.skipped


def _offer_inference(gate: Gate, line: int, texts: tuple[object, ...], label: object) -> None:
    """Offer one row whose label is a word."""
    word = str(label).strip()
    if word == "neutral":
        return
    if word in INFERENCE.label_names:
        gate.offer(line, texts, INFERENCE.label_names.index(word))
    else:
        gate.reject(
            line, f"the label {word!r} is none of {', '.join(sorted(_HUB_LABELS.values()))}"
        )
