"""Rows of a table in text: fields between tabs or commas, quoted as `csv` does, or not at all.

Tables of CS224N, of pandas and of spreadsheets put a field with a quote into quotes and double
those inside; tables of GLUE know no quoting, and a sentence may begin with a quote that nothing
closes. Which of the two a file is shows in its rows: a writer that quotes never leaves a quote that
breaks the rule, so quotes are text where more rows break it than need it.

Messages count *physical* lines, what an editor shows, also when a quoted sentence spans several.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from bert_mtl_demo.data.examples import DataError

# No sentence runs over more lines; it also bounds the search behind a quote that is never closed.
MAX_SPAN = 100

LISTED = 8  # files that a message names

# The line on which a row begins (from 1), and its fields, or the reason why it cannot be read.
Record = tuple[int, "list[str] | str"]


class UnreadableError(Exception):
    """Why no row begins on this line."""


class QuotingError(UnreadableError):
    """The line would be a row if quotes were text."""


def lines_of(content: bytes) -> list[bytes]:
    r"""The lines of a file without their ends; blank lines after the last row do not count.

    >>> lines_of(b"a\nb\n\n")
    [b'a', b'b']
    """
    # Spreadsheets put a byte order mark in front, which would stick to the first column's name.
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def physical_lines(
    path: Path,
    remedy: str = "leave its task out",
    needs: str = "a header line and one line per example",
) -> list[bytes]:
    """The lines of a file; see `lines_of`.

    Raises:
        DataError: when the file is missing (the message ends in `remedy`), unreadable or empty.
    """
    try:
        lines = lines_of(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{path.name} is missing in {str(path.parent)!r}, {_listed(path)}. Put it there, name "
            f"another file with --map, or {remedy}."
        ) from None
    except OSError as error:
        raise DataError(
            f"{path.name} in {str(path.parent)!r} cannot be read: {error.strerror}."
        ) from error
    if not lines:
        raise DataError(f"{path.name} is empty. It needs {needs}.")
    return lines


def _listed(path: Path) -> str:
    """What there is in the place of a missing file, the names most like its own first."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return "which is no directory that can be read"
    if not names:
        return "which is empty"
    like = difflib.get_close_matches(path.name, names, n=LISTED, cutoff=0)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"which holds {', '.join(like)}{more}"


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


def delimiter_of(line: bytes, delimiters: str) -> str:
    r"""The first of some delimiters that a header has; a tab, if none.

    >>> delimiter_of(b"sentence,label", "\t,")
    ','
    """
    return next((d for d in delimiters if d.encode() in line), "\t")


def header_of(
    file: str, lines: Sequence[bytes], columns: Sequence[str], delimiters: str
) -> list[str]:
    """The names in the first line, which has to have each of `columns` once.

    Raises:
        DataError: when it has not, or cannot be read.
    """
    delimiter = delimiter_of(lines[0], delimiters)
    width = lines[0].count(delimiter.encode()) + 1
    header = next(_quoted(lines[:1], width, delimiter, start=0))[1]
    if isinstance(header, UnreadableError):
        raise DataError(
            f"{file}:1: the header cannot be read: {header}. Save the file as UTF-8, tab-separated."
        )
    separator = "a tab or a comma" if "," in delimiters else "a tab"
    for name in columns:
        if header.count(name) != 1:
            raise DataError(
                f"{file}:1: {'more than one' if name in header else 'no'} column {name!r} "
                f"in the header {header}. The columns {list(columns)} are needed, each once, "
                f"with {separator} between columns."
            )
    return header


def records(lines: Sequence[bytes], width: int, delimiter: str) -> Iterator[Record]:
    r"""The rows behind the header of a table with `width` columns.

    After an unreadable row the next physical line is tried, so a broken row costs itself and no
    other.

    >>> list(records([b"sentence\tlabel", b'"Oh" , he said .\t1'], width=2, delimiter="\t"))
    [(2, ['"Oh" , he said .', '1'])]
    """
    rows = list(_quoted(lines, width, delimiter))
    # A comma in a sentence is told from one between fields by quotes alone; so is a quoted header.
    tabs = delimiter == "\t" and b'"' not in lines[0]
    if tabs and _quotes_are_text(lines, rows, width):
        return _unquoted(lines)
    return ((number, str(row) if isinstance(row, Exception) else row) for number, row in rows)


def _quotes_are_text(
    lines: Sequence[bytes], rows: Sequence[tuple[int, list[str] | UnreadableError]], width: int
) -> bool:
    """Whether more rows break the rules of quoting than need them."""
    broken = needed = 0
    for number, row in rows:
        line = lines[number - 1]
        if b'"' not in line:
            continue
        parts = line.split(b"\t")
        if isinstance(row, UnreadableError):
            broken += isinstance(row, QuotingError) and len(parts) == width
        elif len(parts) != len(row) or any("\n" in field for field in row):
            needed += 1  # a tab or the end of a line inside of quotes
        elif any(b'"' in part and not part.startswith(b'"') for part in parts):
            broken += 1  # a writer that quotes would have quoted this field
        else:
            needed += any('"' in field for field in row)
    return broken > needed


def _unquoted(lines: Sequence[bytes]) -> Iterator[Record]:
    for number, line in enumerate(lines[1:], start=2):
        try:
            text = decoded(line).removesuffix("\r")
            yield number, text.split("\t") if text.strip() else "a blank line"
        except UnreadableError as error:
            yield number, str(error)


def _quoted(
    lines: Sequence[bytes], width: int, delimiter: str, start: int = 1
) -> Iterator[tuple[int, list[str] | UnreadableError]]:
    """Rows whose quotes are those of `csv`."""
    position = start
    while position < len(lines):
        # A sentence may hold commas but no tab, so only tabs tell a row from a sentence's line.
        span = _Span(lines, position, width if delimiter == "\t" else None)
        row: list[str] | UnreadableError
        try:
            row = next(csv.reader(span, delimiter=delimiter, strict=True))
            if delimiter == "\t" and span.lines > 1 and any("\t" in text for text in row):
                # Closed by some later row's quote, with that row's tabs inside.
                raise QuotingError(_OPEN_QUOTE)
        except UnreadableError as error:
            row = error
        except csv.Error as error:
            row = QuotingError(
                f"broken quoting ({error}); inside a quoted field each quote is doubled"
            )
        if isinstance(row, list) and not row:
            row = UnreadableError("a blank line")
        yield position + 1, row
        position += span.lines if isinstance(row, list) else 1


_OPEN_QUOTE = "a quote is opened and not closed"


class _Span:
    """Feeds `csv.reader` the lines of one row; the reader asks for a further line only inside an
    open quote.

    A line with all the tabs of a row, one of them before any quote, is a row: meeting one inside a
    quote means that the quote was never closed. Without this check one stray quote would turn the
    rest of the file into a single sentence.
    """

    def __init__(self, lines: Sequence[bytes], position: int, width: int | None) -> None:
        self._all, self._position, self._width = lines, position, width
        self.lines = 0

    def __iter__(self) -> _Span:
        return self

    def __next__(self) -> str:
        at = self._position + self.lines
        if self.lines and (
            at >= len(self._all) or self.lines >= MAX_SPAN or self._is_row(self._all[at])
        ):
            raise QuotingError(_OPEN_QUOTE)
        self.lines += 1
        return decoded(self._all[at]) + "\n"

    def _is_row(self, line: bytes) -> bool:
        return (
            self._width is not None
            and line.count(b"\t") >= self._width - 1
            and b"\t" in line.partition(b'"')[0]
        )
