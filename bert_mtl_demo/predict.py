"""`python -m bert_mtl_demo.predict RUN --task sst TEXT...`: predictions of a trained run.

Sentences come from the command line, from a file, or from stdin: one example a line, the two
sentences of a pair with a tab between them. On the command line a pair is two arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bert_mtl_demo.cli import guard
from bert_mtl_demo.errors import DemoError, unknown
from bert_mtl_demo.printing import printable


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code.

    >>> main(["no-such-run", "--task", "sst", "A fine film."])
    2
    """
    parser = argparse.ArgumentParser(
        prog="python -m bert_mtl_demo.predict",
        description="Print the predictions of a run's best weights, one line per example.",
    )
    parser.add_argument("run", help="directory of the run")
    parser.add_argument(
        "texts", nargs="*", help="sentences; for a task of pairs, two for each pair"
    )
    parser.add_argument("--task", required=True, help="one of the run's tasks")
    parser.add_argument("--file", help="file of examples, one a line; '-' or no text: stdin")
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
        return read_examples(_lines(file), pair=pair)
    if not pair:
        return [(text,) for text in texts]
    if len(texts) % 2:
        raise DemoError(
            f"this task compares two sentences, but {len(texts)} were given; give two for each pair"
        )
    return list(zip(texts[::2], texts[1::2], strict=True))


def read_examples(lines: Iterable[str], *, pair: bool) -> list[tuple[str, ...]]:
    """Examples from lines; empty lines are skipped, others must have the right number of parts.

    >>> read_examples(["It rains.\\tIt pours.\\n"], pair=True)
    [('It rains.', 'It pours.')]
    """
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = (
            tuple(part.strip() for part in line.rstrip("\r\n").split("\t"))
            if pair
            else (line.strip(),)
        )
        if pair and (len(parts) != 2 or not all(parts)):
            raise DemoError(
                f"line {number}: needs two sentences with a tab between them, but has "
                f"{line.strip()!r}"
            )
        rows.append(parts)
    if not rows:
        raise DemoError("nothing to predict: no text was given")
    return rows


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


def _lines(file: str | None) -> list[str]:
    if file is None or file == "-":
        return sys.stdin.read().split("\n")
    try:
        return Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DemoError(f"{file}: cannot be read ({error})") from None


if __name__ == "__main__":
    sys.exit(main())
