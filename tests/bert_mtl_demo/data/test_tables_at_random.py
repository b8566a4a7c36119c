"""Tables at random: whatever the bytes, no traceback, and no label that the file does not have.

``pytest --hypothesis-profile=long`` draws 3,000 tables for each test.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bert_mtl_demo.data import Examples, load_texts, with_labels
from bert_mtl_demo.data.directory import read_table
from bert_mtl_demo.errors import DemoError
from bert_mtl_demo.predict import read_examples
from bert_mtl_demo.tasks import TASKS, Task
from bert_mtl_demo.user_tasks import user_tasks

# The folder is the same for all examples of a test: each overwrites the table of the one before.
many = settings(
    max_examples=10 * settings().max_examples,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

T = TypeVar("T")

# Bytes that tables are made of, and what breaks them.
pieces = st.sampled_from(
    [b"\t", b"\n", b"\r", b'"', b'""', b",", b"\0", b"\xff", b"\xef\xbb\xbf", b" ", b"sentence"]
    + [b"sentence1", b"sentence2", b"label", b"sentiment", b"similarity", b"is_duplicate", b"id"]
    + [b"0", b"1", b"4.0", b"5", b"-1", b"1e309", b"nan", b"a word", "é\u2028".encode()]
)
soup = st.lists(pieces | st.binary(max_size=4), max_size=60).map(b"".join)
headers = {
    "sst": b"id\tsentence\tsentiment\n",
    "para": b"id\tsentence1\tsentence2\tis_duplicate\n",
    "sts": b"id\tsentence1\tsentence2\tsimilarity\n",
    "cfimdb": b"sentiment\tsentence\n",
}


def attempt(read: Callable[[], T]) -> tuple[T | None, str]:
    """What `read` returns and "", or None and the message meant for the person at the keyboard."""
    try:
        return read(), ""
    except DemoError as error:
        return None, str(error)


def check(task: Task, examples: Examples) -> None:
    """What holds for all examples, wherever they are from."""
    assert all(task.low <= label <= task.high for label in examples.labels)
    assert all(text.strip() for row in examples.texts() for text in row)


@many
@given(content=soup, name=st.sampled_from(list(TASKS)), titled=st.booleans())
def test_any_bytes_are_a_table_or_a_data_error(
    tmp_path: Path, content: bytes, name: str, titled: bool
) -> None:
    path = tmp_path / "some.csv"
    path.write_bytes((headers[name] if titled else b"") + content)
    table, message = attempt(lambda: read_table(path, TASKS[name]))
    if table is None:
        assert "some.csv" in message
        assert "\n" not in message
        return
    check(TASKS[name], table[0])
    assert len(table[0]) + len(table[1]) <= content.count(b"\n") + 1


@many
@given(content=soup, kind=st.sampled_from(["classification", "similarity", "regression"]))
def test_any_bytes_are_a_users_table_or_a_data_error(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    columns = "sentence1,sentence2" if kind == "similarity" else "sentence"
    for split in ("train", "dev"):
        (tmp_path / f"{split}.csv").write_bytes(f"{columns},label\n".encode() + content)
    (task,) = user_tasks(f"mood={kind}:{tmp_path / '{split}.csv'}")
    table, message = attempt(lambda: read_table(tmp_path / "train.csv", with_labels(task)))
    assert "\n" not in message
    if table is None:
        return
    examples, _ = table
    check(examples.task, examples)
    if task.classes is None:
        assert all(0 <= examples.task.scaled(label) <= 5.000001 for label in examples.labels)


@many
@given(content=soup, pair=st.booleans())
def test_any_bytes_are_examples_to_predict_or_an_error(content: bytes, pair: bool) -> None:
    examples, message = attempt(lambda: read_examples(content, pair=pair))
    if examples is None:
        assert message
        return
    assert examples
    texts = [row for _, row in examples]
    assert all(len(row) == 1 + pair and all(text.strip() for text in row) for row in texts)


@many
@given(content=soup)
def test_any_bytes_are_plain_texts_or_a_data_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "imdb-reviews.txt").write_bytes(content)
    loaded, message = attempt(lambda: load_texts(tmp_path))
    if loaded is None:
        assert "imdb-reviews.txt" in message
        return
    texts, skipped = loaded
    assert all(text.strip() for text in texts.first)
    assert len(texts) + len(skipped) <= content.count(b"\n") + 1


# Sentences with all that matters to a reader of tables, but for NUL, which no table may hold.
marks = st.lists(
    st.sampled_from(['"', '""', ",", "\t", "\n", "\r", " ", "a", "é", "\u2028"]), max_size=9
)
letters = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)
sentences = (marks.map("".join) | letters).filter(str.strip)
rows_of_text = st.lists(st.tuples(sentences, st.integers(0, 4)), min_size=1, max_size=12)


@many
@given(
    rows=rows_of_text,
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
    start=st.sampled_from(["", "\ufeff"]),
    label_first=st.booleans(),
)
def test_what_csv_writes_is_read_back(
    tmp_path: Path,
    rows: list[tuple[str, int]],
    quoting: int,
    end: str,
    start: str,
    label_first: bool,
) -> None:
    rows = [(re.sub(r"\r\n?", "\n", text), label) for text, label in rows]  # the reader's newline
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter="\t", quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
    turn = -1 if label_first else 1
    writer.writerow(["sentence", "sentiment"][::turn])
    writer.writerows([text, label][::turn] for text, label in rows)
    # A tab in a sentence of several lines is taken for one of a row that a quote swallowed.
    assume(not any("\t" in line for text, _ in rows if "\n" in text for line in text.split("\n")))
    path = tmp_path / "some.csv"
    path.write_text(start + buffer.getvalue(), encoding="utf-8", newline="")
    examples, skipped = read_table(path, TASKS["sst"], refuse=True)
    assert list(zip(examples.first, examples.labels, strict=True)) == rows
    assert skipped == []


@many
@given(rows=rows_of_text, end=st.sampled_from(["\n", "\r\n"]))
def test_a_table_without_quoting_loses_no_row_and_no_label(
    tmp_path: Path, rows: list[tuple[str, int]], end: str
) -> None:
    rows = [(re.sub(r"[\t\n\r]", " ", text), label) for text, label in rows]
    assume(all(text.strip() for text, _ in rows))
    # Quotes in the middle say that they are text; each field could as well be quoted without.
    rows += [('the " sign', 2)] * (len(rows) + 1)
    path = tmp_path / "some.csv"
    lines = ["sentence\tsentiment", *(f"{text}\t{label}" for text, label in rows)]
    path.write_text("".join(line + end for line in lines), encoding="utf-8", newline="")
    examples, skipped = read_table(path, TASKS["sst"], refuse=True)
    assert list(zip(examples.first, examples.labels, strict=True)) == rows
    assert skipped == []


damage = st.lists(
    st.tuples(
        st.integers(0, 10**6), st.sampled_from([b'"', b"\t", b"\n", b"\0", b"\xff", b"\r", b""])
    ),
    min_size=1,
    max_size=8,
)


@many
@given(damage=damage, quoted=st.booleans(), label_first=st.booleans(), size=st.integers(1, 30))
def test_damage_to_the_sentences_costs_rows_and_never_a_label(
    tmp_path: Path, damage: list[tuple[int, bytes]], quoted: bool, label_first: bool, size: int
) -> None:
    """Insert or delete bytes in the sentences; each sentence says which label is its own."""
    name = b'"the ""film"" %d has %d ."' if quoted else b"the film %d has %d ."
    texts = [name % (number, number % 5) for number in range(size)]
    for position, piece in damage:
        text = texts[position % size]
        at = position // size % len(text)
        texts[position % size] = text[:at] + piece + text[at + (not piece) :]
    lines = [b"sentiment\tsentence" if label_first else b"sentence\tsentiment"]
    for number, text in enumerate(texts):
        label = b"%d" % (number % 5)
        lines.append(label + b"\t" + text if label_first else text + b"\t" + label)
    path = tmp_path / "some.csv"
    path.write_bytes(b"\n".join(lines) + b"\n")
    table, message = attempt(lambda: read_table(path, TASKS["sst"]))
    if table is None:
        assert "some.csv" in message
        return
    examples, skipped = table
    assert len(examples) + len(skipped) >= size - sum(piece == b"\n" for _, piece in damage)
    for text, label in zip(examples.first, examples.labels, strict=True):
        named = re.findall(r"has (\d) \.", text)
        assert len(named) <= 1, "one row took in another"
        assert all(int(number) == label for number in named)


@pytest.mark.parametrize("mark", [b'"', b"\t", b"\n", b"\0", b"\xff", b"\r"])
def test_one_damaged_byte_costs_one_row(tmp_path: Path, mark: bytes) -> None:
    good = [b"the film %d .\t%d" % (number, number % 5) for number in range(40)]
    for at in range(len(good[20]) - 2):
        line = good[20][:at] + mark + good[20][at:]
        path = tmp_path / "some.csv"
        path.write_bytes(b"\n".join([b"sentence\tsentiment", *good[:20], line, *good[21:]]) + b"\n")
        examples, skipped = read_table(path, TASKS["sst"])
        assert len(examples) >= 39
        assert len(skipped) <= 2
