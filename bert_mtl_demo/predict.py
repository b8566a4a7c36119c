"""`python -m bert_mtl_demo.predict RUN --task sst TEXT...`: predictions of a trained run.

Sentences come from the command line, from a file, or from stdin: one example a line, the two
sentences of a pair with a tab between them; or a table whose header names the columns `sentence`,
or `sentence1` and `sentence2`. On the command line a pair is two arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bert_mtl_demo.cli import Parser, guard
from bert_mtl_demo.data.directory import columns_of
from bert_mtl_demo.data.records import UnreadableError, decoded, delimiter_of, lines_of
from bert_mtl_demo.data.unlabelled import IDS
from bert_mtl_demo.errors import DemoError, unknown
from bert_mtl_demo.printing import printable
from bert_mtl_demo.setting_types import is_writable
from bert_mtl_demo.tasks import KINDS

PIECE = 512  # examples answered at a time

Example = tuple[str, tuple[str, ...]]  # its id, and its one or two sentences


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
    parser.add_argument("--tsv", action="store_true", help="ids and answers, between tabs")
    parser.add_argument("--device", help="'cpu', 'cuda', ... (default: auto)")
    parser.add_argument("--amp", help="'off', 'bf16', 'fp16' or 'auto' (default: the run's)")
    # Intermixed: `RUN --task sst TEXT` puts a flag between two positionals.
    arguments = parser.parse_intermixed_args(argv)
    return guard(lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    from bert_mtl_demo.reporting.loaded_run import load_run

    run = load_run(arguments.run, arguments.device, arguments.amp)
    tasks = run.config.definitions
    if arguments.task not in tasks:
        raise DemoError(f"{arguments.run}: {unknown('task', arguments.task, tasks)}")
    task = tasks[arguments.task]
    rows = examples_of(arguments.texts, arguments.file, pair=task.pair)
    if arguments.tsv:
        print("id\tlabel" if task.classes is None else "id\tlabel\tprobability")
    for (name, row), answer in _answered(run, task, rows):
        if arguments.tsv:
            fields = (name, *(answer[key] for key in ("name", "score") if key in answer))
            chance = (f"{answer['probability']:.4f}",) if "probability" in answer else ()
            line = "\t".join(map(str, (*fields, *chance)))
        else:
            line = line_of(row, answer, as_json=arguments.json)
        print(printable(line))
    return 0


def _answered(
    run: Any, task: Any, rows: Sequence[Example]
) -> Iterator[tuple[Example, dict[str, Any]]]:
    """Examples and answers, piece by piece, with a bar if nothing else is in the terminal."""
    from tqdm import tqdm

    hidden = True if sys.stdout.isatty() or len(rows) <= PIECE else None
    with tqdm(total=len(rows), unit="text", disable=hidden, leave=False) as bar:
        for start in range(0, len(rows), PIECE):
            piece = rows[start : start + PIECE]
            first = [texts[0] for _, texts in piece]
            second = [texts[1] for _, texts in piece] if task.pair else None
            yield from zip(piece, described(run.ask(task.name, first, second)), strict=True)
            sys.stdout.flush()  # a reader behind a pipe goes on with this piece
            bar.update(len(piece))


def examples_of(texts: Sequence[str], file: str | None, *, pair: bool) -> list[Example]:
    """The examples on the command line or in a file: ids, with tuples of one or two sentences.

    >>> examples_of(["It rains.", "It pours."], None, pair=True)
    [('1', ('It rains.', 'It pours.'))]
    """
    if texts and file:
        raise DemoError("both texts and --file were given; give one of them")
    if not texts:
        return read_examples(_content(file), pair=pair)
    for text in texts:
        if not text.strip() or not is_writable(text):
            raise DemoError(f"the text {text!r} is empty or no UTF-8; give sentences")
    if not pair:
        return [(str(n), (text,)) for n, text in enumerate(texts, start=1)]
    if len(texts) % 2:
        raise DemoError(
            f"this task compares two sentences, but {len(texts)} were given; give two for each pair"
        )
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return [(str(n), both) for n, both in enumerate(pairs, start=1)]


def read_examples(content: bytes, *, pair: bool) -> list[Example]:
    r"""The examples in a file: of its lines, or of the columns of a table, with their ids.

    The ids are those of a column `id`, or numbers from 1. Empty lines are skipped; what cannot be
    read is refused, since answers go by their order.

    >>> read_examples(b"It rains.\tIt pours.\n", pair=True)
    [('1', ('It rains.', 'It pours.'))]
    >>> read_examples(b"id\tsentence\n7\tIt rains.\n", pair=False)
    [('7', ('It rains.',))]
    """
    lines = lines_of(content)
    columns = KINDS["similarity" if pair else "classification"].columns
    if not lines:
        raise DemoError("nothing to predict: no text was given")
    names = [name.strip(b'" \r') for name in lines[0].split(delimiter_of(lines[0], "\t,").encode())]
    known: tuple[str, ...] = ()
    if all(name.encode() in names for name in columns):
        known = tuple(name for name in IDS if name.encode() in names)[:1]
        rows = list(columns_of("the table", lines, (*known, *columns), "\t,"))
    else:
        rows = [
            _example(number, line, pair) for number, line in enumerate(lines, 1) if line.strip()
        ]
        _refuse_table(lines, columns, pair)
    examples: list[Example] = []
    for number, row in rows:
        texts = row if isinstance(row, str) else row[len(known) :]
        if isinstance(texts, tuple) and not all(text.strip() for text in texts):
            texts = "a sentence is empty"
        if isinstance(texts, str):
            raise DemoError(f"line {number}: {texts}")
        examples.append((row[0] if known else str(len(examples) + 1), texts))
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
