"""`python -m research.surgery`: is surgery more than a reweighting by noise? Runs the factorial."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bert_mtl_demo.cli import guard
from bert_mtl_demo.setting_types import integer
from bert_mtl_demo.study.cli import settings_of, study_parser
from research.surgery.arms import LONG_STEPS
from research.surgery.study import run_study

PROGRAM = "python -m research.surgery"
NOT_HERE = ("rows", "keep_weights", "epochs", "no_texts", "as_published")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit codes as those of `bert_mtl_demo.study`.

    >>> main(["--long-steps", "5"])
    2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = study_parser(
        PROGRAM,
        "Train with gradient surgery, with controls that do a part of what it does, and with the "
        "plain sum (400 steps each without --steps), and write a page: mean weights against what "
        "noise predicts, scores against the plain sum, and how often GradVac's rules alter. "
        "After an interruption, the same command goes on.",
        without=NOT_HERE,
    )
    parser.add_argument(
        "--long-steps",
        type=integer(1),
        default=LONG_STEPS,
        metavar="N",
        help=f"steps of the run that the count law is checked on (default: {LONG_STEPS})",
    )
    parser.add_argument(
        "--probe-seeds",
        type=integer(0),
        nargs="+",
        default=(),
        metavar="SEED",
        help="probe expected gradients in the plain sum's runs with these seeds (default: none)",
    )
    arguments = parser.parse_args(words)
    probed = tuple(arguments.probe_seeds)
    return guard(
        lambda: run_study(settings_of(arguments, PROGRAM, words), arguments.long_steps, probed)
    )


if __name__ == "__main__":
    sys.exit(main())
