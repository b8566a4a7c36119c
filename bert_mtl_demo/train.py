"""`python -m bert_mtl_demo.train`: flags in, a trained model with its logs and report out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bert_mtl_demo.cli import given_settings, guard, train_parser
from bert_mtl_demo.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """The command.

    Args:
        argv: the flags; those of the process if None.

    Returns:
        0 when training is done, 2 for refused input, 1 when training diverged, 130 or 143 when a
        signal stopped it (the run can then be resumed).

    >>> main(["--epochs", "0"])
    2
    """
    arguments = train_parser().parse_args(argv)
    return guard(lambda: _train(given_settings(arguments), arguments.resume))


def _train(settings: Mapping[str, Any], resume: str | None) -> int:
    config = Config.from_mapping(settings) if resume is None else None
    # Imported here: torch and transformers take seconds, and a wrong flag deserves its answer at
    # once.
    from bert_mtl_demo.report import write_report
    from bert_mtl_demo.session import continue_run, start_run

    outcome = start_run(config) if config else continue_run(str(resume), settings)
    if outcome.done:
        print(write_report(outcome.path))
    else:
        print(f"stopped; continue with: python -m bert_mtl_demo.train --resume {outcome.path}")
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
