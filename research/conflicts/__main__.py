"""`python -m research.conflicts`: do the gradients conflict? Runs the study and writes its page."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bert_mtl_demo.cli import guard
from bert_mtl_demo.study.cli import settings_of, study_parser
from research.conflicts.study import NOT_HERE, run_study

PROGRAM = "python -m research.conflicts"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit codes as those of `bert_mtl_demo.study`.

    >>> main(["--probe-batches", "100"])
    2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = study_parser(
        PROGRAM,
        "Train with and without gradient surgery, probe the gradients at three stages, and write "
        "a page: how often they conflict, what of that is noise, and what surgery changes. After "
        "an interruption, the same command goes on.",
        without=NOT_HERE,
    )
    arguments = parser.parse_args(words)
    return guard(lambda: run_study(settings_of(arguments, PROGRAM, words)))


if __name__ == "__main__":
    sys.exit(main())
