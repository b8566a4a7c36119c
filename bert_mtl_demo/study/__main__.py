"""`python -m bert_mtl_demo.study`: list the published rows, train them again, write the pages."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bert_mtl_demo.cli import EXIT_FAILED, guard
from bert_mtl_demo.errors import ConfigError, unknown
from bert_mtl_demo.study.cli import (
    WHAT,
    budget_of,
    chosen_rows,
    in_words,
    parse,
    refuse_what_is_missing,
    seeds_of,
    whole,
)
from bert_mtl_demo.study.papers import REPORTS
from bert_mtl_demo.study.published import Report, Row

EXIT_INTERRUPTED = 130  # what a shell expects after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """The command.

    Returns:
        0 when everything asked for has its result, 1 when a run failed, 2 for refused input, 130 or
        143 when a signal stopped it (the same command goes on).

    >>> main(["no-such-report"])
    2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parse(words)
    return guard(lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    if arguments.what not in WHAT:
        raise ConfigError(unknown("study", arguments.what, WHAT))
    if arguments.what == "list":
        for report in REPORTS.values():
            for row in report.rows:
                print(f"{report.name}\t{row.name}")
        return 0
    if arguments.what == "conflicts":
        return _conflicts(arguments)
    names = list(REPORTS) if arguments.what == "all" else [arguments.what]
    return _reports(arguments, [REPORTS[name] for name in names])


def _reports(arguments: argparse.Namespace, reports: Sequence[Report]) -> int:
    if arguments.rows and len(reports) > 1:
        raise ConfigError("rows with the study 'all': name the report whose rows they are")
    if arguments.probe_batches is not None:
        raise ConfigError("probe_batches: only the study 'conflicts' has probes; leave it out")
    chosen = {report.name: chosen_rows(report, arguments.rows) for report in reports}
    budget = budget_of(arguments)
    seeds, workers = seeds_of(arguments), whole("jobs", arguments.jobs)
    refuse_what_is_missing(budget)
    from bert_mtl_demo.study.page import write_page
    from bert_mtl_demo.study.plan import Plan
    from bert_mtl_demo.study.runner import run_all

    place = Path(arguments.output).expanduser()
    # All of it is planned before anything runs: a setting that cannot be is refused at once.
    plans = {name: Plan(place, rows, seeds, budget) for name, rows in chosen.items()}
    for plan in plans.values():
        for row in plan.rows:
            plan.results(row)  # a damaged one is named now, and not after hours of the others
    code = 0
    for report in reports:
        plan, failed = plans[report.name], {}
        if not arguments.page_only:
            print(f"{report.name}: {len(plan.rows)} rows, {len(plan.jobs)} runs")
            ended = run_all(plan.jobs, workers=workers, keep=arguments.keep_weights)
            failed = ended.failed
            if failed:
                code = EXIT_FAILED
            if ended.exit_code:
                print(_stopped(arguments))
                return ended.exit_code
        page = write_page(
            place,
            report,
            plan.rows,
            {row.name: plan.results(row) for row in plan.rows},
            in_words(arguments, budget, seeds),
            texts=not arguments.no_texts,
            notes=[*_only(report, plan.rows), *budget.substitutions()],
            shared=plan.shared(),
            failures={row.name: plan.failures(row, failed) for row in plan.rows},
        )
        print(f"page: {page}")
    return code


def _conflicts(arguments: argparse.Namespace) -> int:
    """The study of the conflicts themselves; its runs are no rows of a report."""
    if arguments.rows:
        raise ConfigError("rows with the study 'conflicts': it has none; leave --rows out")
    if arguments.keep_weights:
        raise ConfigError("keep_weights with the study 'conflicts': it keeps none; leave it out")
    budget, seeds = budget_of(arguments), seeds_of(arguments)
    workers = whole("jobs", arguments.jobs)
    refuse_what_is_missing(budget)
    from research.conflicts import Options, page, run

    place = Path(arguments.output).expanduser() / "conflicts"
    if arguments.page_only:
        print(f"page: {page.write(place)}")
        return 0
    asked = {"epochs": budget.epochs, "steps": budget.steps}
    if arguments.probe_batches is not None:
        asked["probe_batches"] = whole("probe_batches", arguments.probe_batches)
    options = Options(
        data=budget.data,
        encoder=budget.encoder,
        output=place,
        seeds=tuple(seeds),
        lr=1e-5 * budget.lr_scale,
        jobs=workers,
        # As in the runner: whoever set the number of threads is obeyed.
        threads=None
        if "OMP_NUM_THREADS" in os.environ
        else max(1, (os.cpu_count() or 1) // workers),
        settings=budget.settings,
        command=arguments.shown,
        **{name: value for name, value in asked.items() if value is not None},
    )
    try:
        print(f"page: {run(options)}")
    except KeyboardInterrupt:
        print(_stopped(arguments))
        return EXIT_INTERRUPTED
    return 0


def _only(report: Report, rows: Sequence[Row]) -> list[str]:
    """What a page of some rows has to say."""
    if len(rows) == len(report.rows):
        return []
    return [f"Only {len(rows)} of the report's {len(report.rows)} rows were asked for."]


def _stopped(arguments: argparse.Namespace) -> str:
    return f"stopped; the same command goes on: {arguments.command}"


if __name__ == "__main__":
    sys.exit(main())
