"""`python -m research.overlap`: do mistakes in paraphrase come from shared words?"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bert_mtl_demo.cli import guard
from bert_mtl_demo.data import Examples, load
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.reporting.tables import cell, table
from bert_mtl_demo.store import write_text
from bert_mtl_demo.study.claims import read_outcomes
from bert_mtl_demo.study.cli import settings_of, study_parser
from bert_mtl_demo.study.findings import write_findings
from bert_mtl_demo.study.intervals import Interval, interval
from bert_mtl_demo.study.results import Result
from bert_mtl_demo.study.settings import StudySettings
from bert_mtl_demo.tasks import resolve
from bert_mtl_demo.training.progress import short
from research.overlap.words import by_bin, concentration, overlap_only, overlaps

PROGRAM = "python -m research.overlap"
HERE = ("data", "output")
QUANTITY = "mistakes where overlap misleads - elsewhere, {row}"

Answers = Mapping[int, NDArray[np.float64]]  # seed -> answers to dev


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit codes as those of `bert_mtl_demo.study`.

    >>> main(["--data", "no-such-directory"])
    2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    without = [name for name in StudySettings.__dataclass_fields__ if name not in HERE]
    parser = study_parser(
        PROGRAM,
        "Set the answers to para's dev set that a study kept below --output against a system that "
        "sees nothing but how many words a pair shares, and write overlap/overlap.md there.",
        without=without,
    )
    settings = settings_of(parser.parse_args(words), PROGRAM, words)
    return guard(lambda: run(settings))


def run(settings: StudySettings) -> int:
    """Read, compare, write; the exit code."""
    settings.refuse_missing()
    splits, _ = load(settings.data, resolve(["para"]))
    train, dev = splits["para"].train, splits["para"].dev
    answers = answers_below(settings.directory, dev)
    if not answers:
        raise ConfigError(
            f"output = {settings.output}: no results below it hold answers to these {len(dev):,} "
            "pairs of dev. Give the directory of a study that was run on the same --data."
        )
    directory = settings.directory / "overlap"
    page, quantities = described(train, dev, answers, settings.portable_command)
    write_findings(directory, "overlap", quantities)
    write_text(directory / "overlap.md", page)
    print(f"page: {directory / 'overlap.md'}")
    return 0


def answers_below(directory: Path, dev: Examples) -> dict[str, Answers]:
    """Row -> answers, of all rows of all papers that answered these very examples.

    Of rows with several results, the one with the most seeds.
    """
    labels, rows = tuple(map(float, dev.labels)), dict[str, Answers]()
    for paper, studies in read_outcomes(directory).items():
        for outcomes in studies:
            for row in outcomes.ran:
                by_seed = {
                    seed: np.asarray(result.evaluation["para"].found)
                    for seed, result in outcomes.of(row).items()
                    if _answered(result, labels)
                }
                name = f"{paper}: {row.name}"
                if len(by_seed) > len(rows.get(name, {})):
                    rows[name] = by_seed
    return rows


def _answered(result: Result, labels: tuple[float, ...]) -> bool:
    evaluation = result.evaluation.get("para")
    return evaluation is not None and bool(evaluation.found) and evaluation.truth == labels


def described(
    train: Examples, dev: Examples, answers: Mapping[str, Answers], command: str
) -> tuple[str, dict[str, Interval]]:
    """The page, and its quantities for the scoreboard."""
    truth, baseline = np.asarray(dev.labels), overlap_only(train, dev)
    misled = baseline != truth
    quantities, rows = {}, []
    for name, seeds in answers.items():
        wrong = {seed: (answer != truth).astype(float) for seed, answer in seeds.items()}
        value = concentration(wrong, misled)
        quantities[QUANTITY.format(row=name)] = value
        right = interval([1 - float(errors.mean()) for errors in wrong.values()])
        elsewhere = [float(errors[~misled].mean()) for errors in wrong.values()]
        mistakes = [float(errors[misled].mean()) for errors in wrong.values()]
        rows.append(
            [
                *(cell(name), len(seeds), right, short(float(np.mean(mistakes)))),
                *(short(float(np.mean(elsewhere))), value.signed()),
            ]
        )
    best = min(
        answers, key=lambda name: np.mean([(a != truth).mean() for a in answers[name].values()])
    )
    accuracy = np.mean([answer == truth for answer in answers[best].values()], axis=0)
    bins = [
        [f"{low:.2f} to {high:.2f}", f"{count:,}", *(short(value) for value in means)]
        for low, high, count, *means in by_bin(overlaps(dev), truth, ~misled, accuracy)
    ]
    heading = ["row", "seeds", "right", "wrong where misled", "wrong elsewhere", "difference"]
    page = (
        "# Do mistakes in paraphrase come from shared words?\n\n"
        "A pair's overlap is the words that it has in common over all of its words. A system that "
        "knows nothing else answers, for each tenth of train by overlap, the label that is most "
        f"frequent there: it is right in {100 * float((~misled).mean()):.1f}% of {len(dev):,} "
        "pairs of dev, and misled in the rest. Mistakes that have nothing to do with shared words "
        "are as frequent where it is misled as elsewhere, a difference of 0; intervals of 95% are "
        "over seeds and dev's pairs.\n\n"
        f"{table(heading, rows)}\n\n"
        f"Tenths of dev by overlap, with the row that is most often right, {cell(best)}:\n\n"
        f"{table(['overlap', 'pairs', 'paraphrases', 'overlap alone right', 'right'], bins)}\n\n"
        f"```console\n{command}\n```\n"
    )
    return page, quantities


if __name__ == "__main__":
    sys.exit(main())
