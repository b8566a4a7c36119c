"""Tables: every way a file can be wrong, named by file and physical line."""

from __future__ import annotations

from pathlib import Path

import pytest

from bert_mtl_demo.data import DataError, load
from bert_mtl_demo.data.directory import layout_of, read_table
from bert_mtl_demo.data.records import MAX_SPAN
from bert_mtl_demo.tasks import TASKS, resolve

SST, PARA, STS = TASKS["sst"], TASKS["para"], TASKS["sts"]
HEAD = {
    "sst": b"\tid\tsentence\tsentiment\n",
    "para": b"\tid\tsentence1\tsentence2\tis_duplicate\n",
    "sts": b"\tid\tsentence1\tsentence2\tsimilarity\n",
    "cfimdb": b"\tid\tsentence\tsentiment\n",
}
GOOD = {
    "sst": b"0\tabc\tA slow but moving walk through fog.\t3\n",
    "para": b"0\tabc\tWhere do owls sleep?\tDo owls sleep in trees?\t0.0\n",
    "sts": b"0\tabc\tA cat naps.\tA cat is napping.\t4.8\n",
    "cfimdb": b"0\tabc\tIt begins well . It ends better .\t1\n",
}


# The same, with sentences that are quoted because they hold quotes.
QUOTED = {
    "sst": b'0\tabc\t"A ""slow"" but moving walk."\t3\n',
    "para": b'0\tabc\t"Where do ""owls"" sleep?"\t"Do owls ""sleep""?"\t0.0\n',
    "sts": b'0\tabc\t"A ""cat"" naps."\tA cat is napping.\t4.8\n',
    "cfimdb": b'0\tabc\t"It begins ""well"" ."\t1\n',
}


def table(
    folder: Path, name: str, body: bytes, rows_before: int = 30, good: dict[str, bytes] = GOOD
) -> Path:
    """A table of `name` with good rows on lines 2..rows_before + 1, and `body` after them."""
    path = folder / layout_of(TASKS[name]).of("train")
    path.write_bytes(HEAD[name] + rows_before * good[name] + body)
    return path


def test_columns_are_found_by_name_and_others_ignored(tmp_path: Path) -> None:
    path = tmp_path / "any.csv"
    path.write_text("similarity\tnote\tsentence2\tsentence1\n2.25\tx\tsecond\tfirst\n")
    examples, skipped = read_table(path, STS)
    assert (examples.first, examples.second, examples.labels) == (["first"], ["second"], [2.25])
    assert skipped == []


def test_labels_of_classes_are_ints_also_when_written_as_floats(tmp_path: Path) -> None:
    body = b"1\tx\ta\tb\t1.0\n2\tx\tc\td\t0\n"
    examples, _ = read_table(table(tmp_path, "para", body, 0), PARA)
    assert examples.labels == [1, 0]
    assert all(type(label) is int for label in examples.labels)


# body -> the sentences that come out
FINE = {
    "doubled quotes": (b'1\tx\t"He said ""go"" twice."\t2\n', 'He said "go" twice.'),
    "quote inside an unquoted field": (b'1\tx\tA 12" pizza\t2\n', 'A 12" pizza'),
    "two physical lines": (b'1\tx\t"One line,\nand another."\t2\n', "One line,\nand another."),
    "carriage returns": (b"1\tx\tFrom elsewhere.\t2\r\n", "From elsewhere."),
    "no newline at the end": (b"1\tx\tThe end.\t2", "The end."),
    "blank lines at the end": (b"1\tx\tThe end.\t2\n\n \r\n\n", "The end."),
    "mojibake": ("1\tx\tA cafÃ© scene\t2\n".encode(), "A cafÃ© scene"),
    "words for nothing": (b"1\tx\tNA\t2\n", "NA"),
    "spaces around": (b"1\tx\t Spaced . \t 2 \n", " Spaced . "),
    "a line separator that is no newline": ("1\tx\tA\u2028B\x0cC\t2\n".encode(), "A\u2028B\x0cC"),
    "quoted label": (b'1\tx\tQuoted\t"2"\n', "Quoted"),
}


@pytest.mark.parametrize(("body", "text"), FINE.values(), ids=list(FINE))
def test_rows_that_only_look_odd_are_read_as_they_are(
    tmp_path: Path, body: bytes, text: str
) -> None:
    examples, skipped = read_table(table(tmp_path, "sst", body, 1), SST, refuse=True)
    assert (examples.first[1:], examples.labels[1:], skipped) == ([text], [2], [])


def test_a_byte_order_mark_does_not_hide_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "bom.csv"
    path.write_bytes(b"\xef\xbb\xbfsentence\tsentiment\nFine.\t4\n")
    assert read_table(path, SST)[0].first == ["Fine."]


# task, the bad line, what the message says of it
BAD = {
    "label missing": ("para", b"1\tx\ta\tb\t\n", "the label is empty"),
    "label blank": ("sst", b"1\tx\ta\t  \n", "the label is empty"),
    "label a word": ("sst", b"1\tx\ta\tgood\n", "the label 'good' is not a number"),
    "label nan": ("sts", b"1\tx\ta\tb\tnan\n", "the label 'nan' is not a number"),
    "label inf": ("sts", b"1\tx\ta\tb\tinf\n", "the label 'inf' is not a number"),
    "label with underscore": ("sst", b"1\tx\ta\t0_1\n", "the label '0_1' is not a number"),
    "label in other digits": ("sst", "1\tx\ta\t٣\n".encode(), "the label '٣' is not a number"),
    "label too high": ("sst", b"1\tx\ta\t5\n", "the label 5 is outside 0..4"),
    "label too low": ("para", b"1\tx\ta\tb\t-1\n", "the label -1 is outside 0..1"),
    "similarity too high": ("sts", b"1\tx\ta\tb\t5.01\n", "the label 5.01 is outside 0..5"),
    "class and a half": ("sst", b"1\tx\ta\t1.5\n", "1.5 is not a whole number, and task 'sst' has"),
    "sentence empty": ("sst", b"1\tx\t\t1\n", "the sentence is empty"),
    "first blank": ("sts", b"1\tx\t  \tb\t1\n", "the first sentence is empty"),
    "a third polarity": ("cfimdb", b"1\tx\ta\t2\n", "the label 2 is outside 0..1"),
    "second empty": ("sts", b'1\tx\ta\t""\t1\n', "the second sentence is empty"),
    "two things": ("para", b"1\tx\ta\t\t\n", "the second sentence is empty, the label is empty"),
    "a field short": ("para", b"1\tx\ta\t1.0\n", "4 fields where the header has 5"),
    "a field more": ("sst", b"1\tx\ta\tb\t1\n", "5 fields where the header has 4"),
    "blank line": ("sst", b"\n", "a blank line"),
    "invalid UTF-8": ("sst", b"1\tx\tcaf\xe9\t1\n", "byte 0xe9 at column 8 is not UTF-8"),
    "NUL": ("sst", b"1\tx\ta\0b\t1\n", "a NUL byte"),
    "text after a quote": ("sst", b'1\tx\t"Heat" is hot\t1\n', "broken quoting"),
    "carriage return within": ("sst", b"1\tx\ta\rb\t1\n", "broken quoting"),
    "open quote": ("sst", b'1\tx\t"No end\t1\n', "a quote is opened and not closed"),
    "open quote, pair": ("para", b'1\tx\t"No end\tb\t1\n', "a quote is opened and not closed"),
}


@pytest.mark.parametrize(("name", "line", "reason"), BAD.values(), ids=list(BAD))
class TestOneBadRow:
    def test_is_skipped_and_named_and_costs_no_other(
        self, tmp_path: Path, name: str, line: bytes, reason: str
    ) -> None:
        path = table(tmp_path, name, line + 2 * QUOTED[name], good=QUOTED)
        examples, skipped = read_table(path, TASKS[name])
        assert len(examples) == 32
        assert len(set(examples.first)) == 1
        assert [row.line for row in skipped] == [32]
        assert reason in skipped[0].reason
        assert str(skipped[0]) == f"{path.name}:32: {skipped[0].reason}"

    def test_is_refused_by_file_and_line(
        self, tmp_path: Path, name: str, line: bytes, reason: str
    ) -> None:
        path = table(tmp_path, name, line + GOOD[name], good=QUOTED)
        with pytest.raises(DataError) as caught:
            read_table(path, TASKS[name], refuse=True)
        message = str(caught.value)
        assert message.startswith(f"{path.name}:32: ")
        assert reason in message
        assert 'bad_rows="skip"' in message


def test_lines_are_physical_also_after_a_sentence_of_several(tmp_path: Path) -> None:
    body = b'1\tx\t"a\nb\nc"\t2\n' + GOOD["sst"] + b"2\tx\tbad\tlabel\n"
    examples, skipped = read_table(table(tmp_path, "sst", body), SST)
    assert "a\nb\nc" in examples.first
    assert [row.line for row in skipped] == [36]  # 1 header, 30 rows, 3 lines, 1 row, then this


OPEN = b'1\tx\t"Never closed\t2\n'
SWALLOWING = {
    "to the end of the file": OPEN,
    "up to a field in quotes": OPEN + 5 * GOOD["sst"] + b'2\tx\t"Closed."\t2\n',
    "up to an inch sign": OPEN + 5 * GOOD["sst"] + b'2\tx\tA pizza of 12"\t2\n',
    "up to the very next row": OPEN + b'2\tx\tA pizza of 12"\t2\n',
    "up to a second open quote": OPEN + b'2\tx\tfine\t2\n3\tx\t"Never\t1\n',
    "through a row with a field missing": OPEN + b'2\tx 12"\t2\n',
}


@pytest.mark.parametrize("body", SWALLOWING.values(), ids=list(SWALLOWING))
def test_an_open_quote_swallows_nothing(tmp_path: Path, body: bytes) -> None:
    path = table(tmp_path, "sst", body + 40 * GOOD["sst"], good=QUOTED)
    examples, skipped = read_table(path, SST)
    assert skipped[0].line == 32
    assert skipped[0].reason == "a quote is opened and not closed"
    assert len(examples) + len(skipped) == 30 + body.count(b"\n") + 40
    assert max(map(len, examples.first)) < 50


# Sentences as tables without quoting hold them, each in a field of its own.
STRAY = (
    '"It is huge , " said the man .',
    '" Never closed',
    'never opened "',
    '"All of it in quotes ."',
    'A 12" pizza',
    '"A", "B" and "C"',
    '""',
    '"',
    "No quote at all .",
)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_without_quoting_is_read_as_it_is(tmp_path: Path, end: str) -> None:
    rows = [f"{n}\tx\t{text}\t{n % 5}{end}" for n, text in enumerate(3 * STRAY)]
    path = table(tmp_path, "sst", "".join(rows).encode(), 0)
    examples, skipped = read_table(path, SST, refuse=True)
    assert tuple(examples.first) == 3 * STRAY
    assert examples.labels == [n % 5 for n in range(len(rows))]
    assert skipped == []


def test_a_table_without_quoting_still_names_its_bad_rows(tmp_path: Path) -> None:
    stray = "".join(f"{n}\tx\t{text}\t1\n" for n, text in enumerate(9 * STRAY))
    bad = b'1\tx\t" A\tb\t1\n\n1\tx\tcaf\xe9\t1\n1\tx\t"\t9\n'
    _, skipped = read_table(table(tmp_path, "sst", stray.encode() + bad, 0), SST)
    assert [(row.line - 9 * len(STRAY), row.reason[:9]) for row in skipped] == [
        (2, "5 fields "),
        (3, "a blank l"),
        (4, "byte 0xe9"),
        (5, "the label"),
    ]


def test_pairs_without_quoting_are_read_as_they_are(tmp_path: Path) -> None:
    rows = [f"{n}\tx\t{u}\t{v}\t1.5\n" for n, u in enumerate(STRAY) for v in STRAY]
    examples, _ = read_table(table(tmp_path, "sts", "".join(rows).encode(), 0), STS, refuse=True)
    assert examples.texts() == [(u, v) for u in STRAY for v in STRAY]


def test_a_quoted_table_stays_one_with_fewer_broken_rows_than_quoted_ones(tmp_path: Path) -> None:
    path = table(tmp_path, "sst", 2 * OPEN + 20 * GOOD["sst"], 3, good=QUOTED)
    examples, skipped = read_table(path, SST)
    assert examples.first[0] == 'A "slow" but moving walk.'
    assert len(skipped) == 2


def test_a_header_in_quotes_is_of_a_quoted_table(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    rows = 30 * b'"Fine."\t"4"\n' + b'"Never closed\t"1"\n'
    path.write_bytes(b'"sentence"\t"sentiment"\n' + rows)
    examples, skipped = read_table(path, SST)
    assert set(examples.first) == {"Fine."}
    assert len(skipped) == 1


def test_a_quote_over_too_many_lines_is_open(tmp_path: Path) -> None:
    for lines, good in ((MAX_SPAN, True), (MAX_SPAN + 1, False)):
        body = b'1\tx\t"' + (lines - 1) * b"more\n" + b'end"\t2\n'
        path = table(tmp_path, "sst", body, 2000)
        examples, skipped = read_table(path, SST)
        assert (examples.first[-1].count("\n") == MAX_SPAN - 1) is good
        assert (not skipped) is good


WRONG_FILES = {
    "empty": (b"", ["is empty", "header line"]),
    "only blank lines": (b"\n\n  \n", ["is empty"]),
    "header only": (HEAD["sst"], ["no usable row for task 'sst'", "nothing after the header"]),
    "no row usable": (HEAD["sst"] + b"0\tx\ty\tz\n", ["no usable row", "'z' is not a number"]),
    "commas": (b"id,sentence,sentiment\n", [":1:", "no column 'sentence'", "a tab between"]),
    "column missing": (b"\tid\tsentence\tlabel\n", [":1:", "no column 'sentiment'", "'label'"]),
    "column twice": (b"sentence\tsentence\tsentiment\n", ["more than one column 'sentence'"]),
    "no header": (GOOD["sst"], [":1:", "no column 'sentence'", "moving walk"]),
    "UTF-16": ("sentence\tsentiment\n".encode("utf-16"), [":1:", "NUL byte", "UTF-8"]),
    "binary": (b"\x89PNG\r\n", [":1:", "byte 0x89 at column 1 is not UTF-8"]),
    "open quote in the header": (b'"sentence\tsentiment\nA.\t1\n', [":1:", "a quote is opened"]),
    "another task's": (HEAD["sts"] + GOOD["sts"], [":1:", "no column 'sentence'"]),
}


@pytest.mark.parametrize(("content", "parts"), WRONG_FILES.values(), ids=list(WRONG_FILES))
@pytest.mark.parametrize("refuse", [False, True])
def test_a_wrong_file_is_refused_whatever_is_asked(
    tmp_path: Path, content: bytes, parts: list[str], refuse: bool
) -> None:
    path = tmp_path / "ids-sst-dev.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(path, SST, refuse=refuse and "usable" not in parts[0])
    for part in ("ids-sst-dev.csv", *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("good", "bad", "accepted"), [(9, 1, True), (90, 10, True), (89, 11, False)]
)
def test_a_tenth_of_bad_rows_is_the_limit(
    tmp_path: Path, good: int, bad: int, accepted: bool
) -> None:
    path = table(tmp_path, "sst", bad * b"1\tx\ta\t9\n", good)
    if accepted:
        assert len(read_table(path, SST)[1]) == bad
        return
    with pytest.raises(DataError) as caught:
        read_table(path, SST)
    for part in (path.name, "11 of 100 rows", "more than 10%", "line 91: the label 9 is outside"):
        assert part in str(caught.value)


def write_all(folder: Path) -> None:
    for name, task in TASKS.items():
        for split in ("train", "dev"):
            (folder / layout_of(task).of(split)).write_bytes(HEAD[name] + 12 * GOOD[name])


def test_a_directory_is_read_task_by_task_and_no_further(tmp_path: Path) -> None:
    write_all(tmp_path)
    with (tmp_path / "sts-dev.csv").open("ab") as file:
        file.write(b"1\tx\ta\tb\t\n")
    (tmp_path / "quora-train.csv").unlink()
    splits, skipped = load(tmp_path, resolve(["sts", "sst"]))
    assert list(splits) == ["sts", "sst"]
    assert [len(splits[name].dev) for name in splits] == [12, 12]
    assert [str(row) for row in skipped] == ["sts-dev.csv:14: the label is empty"]
    with pytest.raises(DataError, match=r"sts-dev\.csv:14: the label is empty"):
        load(str(tmp_path), [STS], bad_rows="refuse")
    with pytest.raises(DataError, match=r"quora-train\.csv is missing in .*leave its task out"):
        load(tmp_path, [PARA])


def test_a_directory_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere' does not exist") as caught:
        load(tmp_path / "nowhere", [STS])
    for part in ("sts-train.csv", '"sample"', '"hub"'):
        assert part in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file' is a file"):
        load(tmp_path / "file", [STS])
    (tmp_path / "sts-train.csv").mkdir()
    with pytest.raises(DataError, match=r"sts-train\.csv in .* cannot be read"):
        load(tmp_path, [STS])
