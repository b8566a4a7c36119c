"""`python -m bert_mtl_demo.train`: train a model, with its logs and its report.

`torchrun --nproc-per-node 2 -m bert_mtl_demo.train` does the same in two processes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bert_mtl_demo.cli import guard, reported, settings_of, train_parser
from bert_mtl_demo.config import Config
from bert_mtl_demo.printing import printable
from bert_mtl_demo.training.processes import Processes, joined, only_main_speaks


def main(argv: Sequence[str] | None = None) -> int:
    """The command.

    Args:
        argv: the flags; those of the process if None.

    Returns:
        0 when training is done, 2 for refused input, 1 when training diverged or the disk was full,
        130 or 143 when a signal stopped it (the run can then be resumed).

    >>> main(["--epochs", "0"])
    2
    """
    with only_main_speaks():
        return guard(lambda: _joined(argv))


def _joined(argv: Sequence[str] | None) -> int:
    # Errors are printed while the processes are joined: none ends before they are out.
    with joined() as processes:
        arguments = train_parser().parse_args(argv)
        return reported(lambda: _train(settings_of(arguments), arguments.resume, processes))


def _train(settings: Mapping[str, Any], resume: str | None, processes: Processes) -> int:
    config = Config.from_mapping(settings) if resume is None else None
    # Imported here: torch and transformers take seconds, and a wrong flag is refused at once.
    from bert_mtl_demo.reporting.run_report import write_report
    from bert_mtl_demo.training.run import continue_run, resumable, start_run

    if config:
        outcome = start_run(config, processes)
    else:
        outcome = continue_run(str(resume), settings, processes)
    if not processes.is_main:
        return outcome.exit_code
    if outcome.done:
        with resumable(outcome.path):
            print(printable(write_report(outcome.path)))
    else:
        print(f"stopped; continue with: python -m bert_mtl_demo.train --resume {outcome.path}")
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
