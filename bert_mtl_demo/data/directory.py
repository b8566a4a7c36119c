"""A directory of tab-separated tables in the layout of the CS224N default final project.

One header line, fields quoted as `csv` does (a quote inside a quoted field is doubled), UTF-8; a
user's own table may be separated by commas. Columns are found by name, others are ignored. Every
message counts *physical* lines, what an editor shows, also when a quoted sentence spans several of
them. Text is handed on byte for byte: the real files carry some mojibake, and so did the reports.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from bert_mtl_demo.data.examples import DataError, Examples, Skipped, Splits
from bert_mtl_demo.data.validation import Row, validated
from bert_mtl_demo.tasks import Layout, Task

# The embedded sample; its README says what is in it.
SAMPLE = Path(__file__).parent / "sample"

# No sentence runs over more lines; it also bounds the search behind a quote that is never closed.
MAX_SPAN = 100


def load_tables(directory: Path, task: Task, *, refuse: bool) -> tuple[Splits, list[Skipped]]:
    """Read the train and dev table of a task; see `bert_mtl_demo.data.load`."""
    # `directory /` leaves an absolute path, which a user's own table may have, as it is.
    paths = [directory / layout_of(task).of(split) for split in ("train", "dev")]
    (train, bad_train), (dev, bad_dev) = (read_table(path, task, refuse=refuse) for path in paths)
    return Splits(train, dev), bad_train + bad_dev


def layout_of(task: Task) -> Layout:
    """The table of a task: its file, and the columns that matter."""
    assert task.layout is not None, f"task {task.name!r} has no table"
    return task.layout


def refuse_no_directory(directory: Path, file: str) -> None:
    """Raise DataError unless there is such a directory, which should hold `file`."""
    if not directory.is_dir():
        problem = "is a file" if directory.exists() else "does not exist"
        raise DataError(
            f"The data directory {str(directory)!r} {problem}. Give a directory that holds "
            f'{file} and its like, or the word "sample" or "hub".'
        )


def read_table(path: Path, task: Task, *, refuse: bool = False) -> tuple[Examples, list[Skipped]]:
    r"""Read one table: its examples, and the rows that are not.

    Raises:
        DataError: when the file is missing, empty or lacks a column, when it has no usable row or
            too many bad ones, and with `refuse` for the first bad row.

    >>> import tempfile; from bert_mtl_demo.tasks import TASKS
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "some.csv"
    ...     _ = path.write_text('sentence\tsentiment\n"Quietly ""great""."\t4\n')
    ...     read_table(path, TASKS["sst"])[0].first
    ['Quietly "great".']
    """
    return validated(task, path.name, table_rows(path, layout_of(task)), refuse=refuse)


def table_rows(path: Path, layout: Layout, remedy: str = "leave its task out") -> Iterator[Row]:
    """Yield (line number, (texts, label)) for each row of a table, as it is written, and
    (line number, reason) for one that cannot be read.

    Raises:
        DataError: when the file is missing (the message ends in `remedy`), empty or lacks a
            column.
    """
    lines = physical_lines(path, remedy)
    delimiter = next((d for d in layout.delimiters if d.encode() in lines[0]), "\t")
    header = _header(path, lines, layout, delimiter)
    texts, label = [header.index(name) for name in layout.texts], header.index(layout.label)
    for number, row in _records(lines, len(header), delimiter):
        if isinstance(row, str):
            yield number, row
        elif len(row) != len(header):
            yield number, f"{len(row)} fields where the header has {len(header)}"
        else:
            yield number, (tuple(row[column] for column in texts), row[label])


def physical_lines(
    path: Path,
    remedy: str = "leave its task out",
    needs: str = "a header line and one line per example",
) -> list[bytes]:
    """The lines of a file without their ends; blank lines after the last row do not count.

    Raises:
        DataError: when the file is missing, unreadable or empty.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path.name} is missing in {str(path.parent)!r}. Put it there, or {remedy}."
        ) from None
    except OSError as error:
        raise DataError(
            f"{path.name} in {str(path.parent)!r} cannot be read: {error.strerror}."
        ) from error
    # Spreadsheets put a byte order mark in front, which would stick to the first column's name.
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(f"{path.name} is empty. It needs {needs}.")
    return lines


def _header(path: Path, lines: Sequence[bytes], layout: Layout, delimiter: str) -> list[str]:
    width = lines[0].count(delimiter.encode()) + 1
    header = next(_records(lines[:1], width, delimiter, start=1))[1]
    if isinstance(header, str):
        raise DataError(
            f"{path.name}:1: the header cannot be read: {header}. "
            "Save the file as UTF-8, tab-separated."
        )
    columns = (*layout.texts, layout.label)
    separator = "a tab or a comma" if "," in layout.delimiters else "a tab"
    for name in columns:
        if header.count(name) != 1:
            raise DataError(
                f"{path.name}:1: {'more than one' if name in header else 'no'} column {name!r} "
                f"in the header {header}. The columns {list(columns)} are needed, each once, "
                f"with {separator} between columns."
            )
    return header


def _records(
    lines: Sequence[bytes], width: int, delimiter: str, start: int = 2
) -> Iterator[tuple[int, list[str] | str]]:
    """Yield (line number, fields) for each row, and (line number, reason) where there is none to be
    read.

    After an unreadable row the next physical line is tried, so a broken row costs itself and no
    other.
    """
    position = start - 1
    while position < len(lines):
        # A sentence may hold commas but no tab, so only tabs tell a row from a sentence's line.
        span = _Span(lines, position, width if delimiter == "\t" else None)
        try:
            row = next(csv.reader(span, delimiter=delimiter, strict=True))
            if delimiter == "\t" and span.lines > 1 and any("\t" in text for text in row):
                raise UnreadableError(
                    _OPEN_QUOTE
                )  # closed by some later row's quote, with that row's tabs inside
        except UnreadableError as error:
            yield position + 1, str(error)
            position += 1
        except csv.Error as error:
            yield (
                position + 1,
                f"broken quoting ({error}); inside a quoted field each quote is doubled",
            )
            position += 1
        else:
            yield position + 1, row or "a blank line"
            position += span.lines


_OPEN_QUOTE = "a quote is opened and not closed"


class UnreadableError(Exception):
    """Why no row begins on this line."""


def decoded(line: bytes) -> str:
    """A physical line as text; UnreadableError if it is not text.

    >>> decoded(b"A quiet joy.")
    'A quiet joy.'
    """
    if b"\0" in line:
        raise UnreadableError("a NUL byte (not a text file, or saved as UTF-16)")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"byte 0x{line[error.start]:02x} at column {error.start + 1} is not UTF-8"
        ) from None


class _Span:
    """Feeds `csv.reader` the lines of one row; the reader asks for a further line only inside an
    open quote.

    A line with all the tabs of a row is a row: meeting one inside a quote means that the quote was
    never closed. Without this check one stray quote would turn the rest of the file into a single
    sentence.
    """

    def __init__(self, lines: Sequence[bytes], position: int, width: int | None) -> None:
        self._all, self._position, self._width = lines, position, width
        self.lines = 0

    def __iter__(self) -> _Span:
        return self

    def __next__(self) -> str:
        at = self._position + self.lines
        if self.lines and (
            at >= len(self._all)
            or self.lines >= MAX_SPAN
            or (self._width and self._all[at].count(b"\t") >= self._width - 1)
        ):
            raise UnreadableError(_OPEN_QUOTE)
        self.lines += 1
        line = self._all[at]
        return decoded(line) + "\n"
