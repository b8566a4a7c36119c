"""A directory of tab-separated tables in the layout of the CS224N default final project.

One header line, UTF-8, fields with or without quotes (see `records`); a user's own table may be
separated by commas. Columns are found by name, others are ignored. Text is handed on byte for byte:
the real files carry some mojibake, and so did the reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bert_mtl_demo.data.examples import DataError, Examples, Skipped
from bert_mtl_demo.data.headerless import JSON_LINES, keys_of, objects, positions, split_line
from bert_mtl_demo.data.records import delimiter_of, header_of, physical_lines, records
from bert_mtl_demo.data.validation import Row, validated
from bert_mtl_demo.tasks import Layout, Task

# The embedded sample; its README says what is in it.
SAMPLE = Path(__file__).parent / "sample"


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
    for number, row in fields_of(path, layout.columns, layout.delimiters, remedy):
        yield number, row if isinstance(row, str) else (row[:-1], row[-1])


def fields_of(
    path: Path, columns: Sequence[str], delimiters: str, remedy: str = "leave its task out"
) -> Iterator[tuple[int, tuple[str, ...] | str]]:
    """Yield (line number, fields of `columns`) for each row of a table, or (line number, reason).

    A table has a header, or is one of JSON lines (by its ending), or, if all columns are numbers,
    has no header.

    Raises:
        DataError: when the file is missing, empty or lacks a column.
    """
    lines = physical_lines(path, remedy)
    if path.suffix in JSON_LINES:
        return objects(path.name, lines, columns)
    if all(name.isdecimal() for name in columns):
        return positions(lines, [int(name) for name in columns])
    return columns_of(path.name, lines, columns, delimiters)


def names_in(path: Path, delimiters: str) -> list[str]:
    """The columns of a table: the names in its header or first object, or numbers from 1, too.

    Raises:
        DataError: when the file is missing or empty.
    """
    lines = physical_lines(path)
    if path.suffix in JSON_LINES:
        return keys_of(lines[0])
    header = header_of(path.name, lines, (), delimiters)
    width = max(len(header), len(split_line(lines[0])))
    return [*header, *(str(number) for number in range(1, width + 1))]


def columns_of(
    file: str, lines: Sequence[bytes], columns: Sequence[str], delimiters: str
) -> Iterator[tuple[int, tuple[str, ...] | str]]:
    r"""Yield (line number, fields of `columns`) for each row, or (line number, reason).

    Raises:
        DataError: when the header lacks a column.

    >>> list(columns_of("some.csv", [b"id\tsentence", b"7\tIt rains."], ["sentence"], "\t"))
    [(2, ('It rains.',))]
    """
    header = header_of(file, lines, columns, delimiters)
    positions = [header.index(name) for name in columns]
    for number, row in records(lines, len(header), delimiter_of(lines[0], delimiters)):
        if isinstance(row, str):
            yield number, row
        elif len(row) != len(header):
            yield number, f"{len(row)} fields where the header has {len(header)}"
        else:
            yield number, tuple(row[position] for position in positions)
