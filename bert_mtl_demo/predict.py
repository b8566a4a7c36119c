"""`python -m bert_mtl_demo.predict RUN --task sst TEXT...`: predictions of a trained run.

Sentences come from the command line, from a file, or from stdin: one example a line, the two
sentences of a pair with a tab between them; or a table whose header names the columns `sentence`,
or `sentence1` and `sentence2`. On the command line a pair is two arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_mtl_demo.cli import Parser, guard
from bert_mtl_demo.data.directory import columns_of
from bert_mtl_demo.data.records import UnreadableError, decoded, delimiter_of, lines_of
from bert_mtl_demo.errors import DemoError, unknown
from bert_mtl_demo.printing import printable
from bert_mtl_demo.setting_types import is_writable
from bert_mtl_demo.tasks import KINDS


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code.

    >>> main(["no-such-run", "--task", "sst", "A fine film."])
    2
    """
    parser = Parser(
        prog="python -m bert_mtl_demo.predict",
        description="Print the predictions of a run's best weights, one line per example.",
    )
    parser.add_argument("run", help="directory of the run")
    parser.add_argument(
        "texts", nargs="*", help="sentences; for a task of pairs, two for each pair"
    )
    parser.add_argument("--task", required=True, help="one of the run's tasks")
    parser.add_argument(
        "--file", help="file of examples, one a line, or a table; '-' or no text: stdin"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--device", help="'cpu', 'cuda', ... (default: auto)")
    # Intermixed: `RUN --task sst TEXT` puts a flag between two positionals.
    arguments = parser.parse_intermixed_args(argv)
    return guard(lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    from bert_mtl_demo.reporting.loaded_run import load_run

    run = load_run(arguments.run, arguments.device)
    tasks = run.config.definitions
    if arguments.task not in tasks:
        raise DemoError(f"{arguments.run}: {unknown('task', arguments.task, tasks)}")
    task = tasks[arguments.task]
    rows = examples_of(arguments.texts, arguments.file, pair=task.pair)
    first = [row[0] for row in rows]
    second = [row[1] for row in rows] if task.pair else None
    for row, answer in zip(rows, described(run.ask(task.name, first, second)), strict=True):
        print(printable(line_of(row, answer, as_json=arguments.json)))
    return 0


def examples_of(texts: Sequence[str], file: str | None, *, pair: bool) -> list[tuple[str, ...]]:
    """The examples on the command line or in a file, as tuples of one or two sentences.

    >>> examples_of(["It rains.", "It pours."], None, pair=True)
    [('It rains.', 'It pours.')]
    """
    if texts and file:
        raise DemoError("both texts and --file were given; give one of them")
    if not texts:
        return read_examples(_content(file), pair=pair)
    for text in texts:
        if not text.strip() or not is_writable(text):
            raise DemoError(f"the text {text!r} is empty or no UTF-8; give sentences")
    if not pair:
        return [(text,) for text in texts]
    if len(texts) % 2:
        raise DemoError(
            f"this task compares two sentences, but {len(texts)} were given; give two for each pair"
        )
    return list(zip(texts[::2], texts[1::2], strict=True))


def read_examples(content: bytes, *, pair: bool) -> list[tuple[str, ...]]:
    r"""The examples in a file: of its lines, or of the columns of a table.

    Empty lines are skipped; what cannot be read is refused, since answers go by their order.

    >>> read_examples(b"It rains.\tIt pours.\n", pair=True)
    [('It rains.', 'It pours.')]
    >>> read_examples(b"id\tsentence\n7\tIt rains.\n", pair=False)
    [('It rains.',)]
    """
    lines = lines_of(content)
    columns = KINDS["similarity" if pair else "classification"].columns
    if not lines:
        raise DemoError("nothing to predict: no text was given")
    names = [name.strip(b'" \r') for name in lines[0].split(delimiter_of(lines[0], "\t,").encode())]
    if all(name.encode() in names for name in columns):
        rows = list(columns_of("the table", lines, columns, "\t,"))
    else:
        rows = [
            _example(number, line, pair) for number, line in enumerate(lines, 1) if line.strip()
        ]
        _refuse_table(lines, columns, pair)
    examples = []
    for number, row in rows:
        if isinstance(row, tuple) and not all(text.strip() for text in row):
            row = "a sentence is empty"
        if isinstance(row, str):
            raise DemoError(f"line {number}: {row}")
        examples.append(row)
    if not examples:
        raise DemoError("nothing to predict: the table has no row")
    return examples


def _example(number: int, line: bytes, pair: bool) -> tuple[int, tuple[str, ...] | str]:
    """The number of a line, and its sentences or what is wrong with it."""
    try:
        text = decoded(line).strip()
    except UnreadableError as error:
        return number, str(error)
    parts = tuple(part.strip() for part in text.split("\t")) if pair else (text,)
    if pair and (len(parts) != 2 or not all(parts)):
        return number, f"needs two sentences with a tab between them, but has {text!r}"
    return number, parts


def _refuse_table(lines: Sequence[bytes], columns: Sequence[str], pair: bool) -> None:
    """Refuse lines that all have the same fields, where each should be a sentence."""
    counts = {line.count(b"\t") for line in lines if line.strip()}
    if not pair and len(counts) == 1 and counts != {0}:
        raise DemoError(
            f"every line has {counts.pop() + 1} fields with tabs between them, but one sentence a "
            f"line is needed. For a table, put a header in front that names the column "
            f"{columns[0]!r}."
        )


def described(answers: Any) -> list[dict[str, Any]]:
    """Each answer as plain values: label, name and probability of a class, or a score."""
    if answers.probabilities is None:
        return [{"score": float(value)} for value in answers.values]
    names = answers.task.label_names
    return [
        {"label": int(value), "name": names[int(value)], "probability": float(row.max())}
        for value, row in zip(answers.values, answers.probabilities, strict=True)
    ]


def line_of(row: Sequence[str], answer: dict[str, Any], *, as_json: bool) -> str:
    """One line of output: the answer first, as its width is known.

    >>> line_of(("It rains.", "It pours."), {"score": 4.2}, as_json=False)
    '4.20\\tIt rains.\\tIt pours.'
    """
    if as_json:
        return json.dumps({"texts": list(row), **answer})
    if "score" in answer:
        return "\t".join([f"{answer['score']:.2f}", *row])
    return "\t".join([f"{answer['name']} ({answer['probability']:.2f})", *row])


def _content(file: str | None) -> bytes:
    if file is None or file == "-":
        # A stream of text alone, as notebooks and tests put there, has no bytes below.
        stream = getattr(sys.stdin, "buffer", None)
        return stream.read() if stream else sys.stdin.read().encode("utf-8", "surrogateescape")
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:
        raise DemoError(f"{file}: cannot be read ({error})") from None


if __name__ == "__main__":
    sys.exit(main())
