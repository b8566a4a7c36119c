"""`python -m bert_mtl_demo.study`: list the published rows, train them again, write the pages."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_mtl_demo.cli import EXIT_FAILED, guard
from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import ConfigError, unknown
from bert_mtl_demo.settings import integer, real
from bert_mtl_demo.study.reports import REPORTS
from bert_mtl_demo.study.rows import Report, Row

EXIT_INTERRUPTED = 130  # what a shell expects after Ctrl-C
WHAT = ("list", "all", "conflicts", *REPORTS)


def main(argv: Sequence[str] | None = None) -> int:
    """The command.

    Returns:
        0 when everything asked for has its result, 1 when a run failed, 2 for refused input, 130 or
        143 when a signal stopped it (the same command goes on).

    >>> main(["no-such-report"])
    2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(words)
    arguments.command = "python -m bert_mtl_demo.study " + shlex.join(words)
    arguments.shown = "python -m bert_mtl_demo.study " + shlex.join(portable(words))
    return guard(lambda: _main(arguments))


def portable(words: Sequence[str]) -> list[str]:
    """The command as a page has it, which is read where this machine's folders say nothing.

    >>> portable(["all", "--data", "/home/me/data", "--output=/tmp/here", "--seeds", "0"])
    ['all', '--data', 'DIR', '--output=OUT', '--seeds', '0']
    >>> portable(["all", "--data=hub", "--page-only"])  # what computed it had no such flag
    ['all', '--data=hub']
    """
    found = list(words)
    for flag, name, kept in (("--data", "DIR", ("sample", "hub")), ("--output", "OUT", ())):
        for n, word in enumerate(words):
            if word.startswith(flag + "=") and word.partition("=")[2] not in kept:
                found[n] = f"{flag}={name}"
            elif n and words[n - 1] == flag and word not in kept:
                found[n] = name
    return [word for word in found if word != "--page-only"]


def parser() -> argparse.ArgumentParser:
    """The flags.

    >>> parser().parse_args(["pals_gradvac", "--seeds", "0", "1"]).seeds
    ['0', '1']
    """
    made = argparse.ArgumentParser(
        prog="python -m bert_mtl_demo.study",
        description="Train the rows of the five reports again, several seeds each, and write a "
        "page per report: published beside ours, conflicts beside every score. A row's settings "
        "are the published ones; the flags say where it runs and how much of its budget is spent. "
        "The same command goes on after an interruption.",
        allow_abbrev=False,
    )
    made.add_argument(
        "what", metavar="WHAT", help=f"one of {', '.join(WHAT)}; all: the five reports"
    )
    made.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows of the report")
    made.add_argument("--data", default="sample", help="as in bert_mtl_demo.train")
    made.add_argument("--encoder", default="minilm", help="as in bert_mtl_demo.train")
    made.add_argument("--epochs", help="at most so many (default: the row's own)")
    made.add_argument("--steps", help="batches of each task in an epoch (default: the row's own)")
    made.add_argument("--seeds", nargs="+", default=["0"], metavar="SEED", help="(default: 0)")
    made.add_argument("--jobs", default="1", help="runs at a time (default: 1)")
    made.add_argument("--lr-scale", default="1", help="factor on the rows' learning rates")
    made.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="any other settings of bert_mtl_demo.train, over the rows' own",
    )
    made.add_argument(
        "--probe-batches",
        help="conflicts only: micro-batches of each task at each stage (default: 256)",
    )
    made.add_argument("--output", default="runs/study", help="(default: runs/study)")
    made.add_argument("--keep-weights", action="store_true", help="of every run's best epoch")
    made.add_argument(
        "--no-texts",
        action="store_true",
        help="leave the data's sentences out of the pages, for data that may not be passed on",
    )
    made.add_argument("--page-only", action="store_true", help="write the pages, run nothing")
    return made


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
    budget = _budget(arguments)
    seeds, workers = _seeds(arguments), _whole("jobs", arguments.jobs)
    _refuse_what_is_missing(budget)
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
            _spent(arguments, budget, seeds),
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
    budget, seeds = _budget(arguments), _seeds(arguments)
    workers = _whole("jobs", arguments.jobs)
    _refuse_what_is_missing(budget)
    from bert_mtl_demo.study.conflicts import Options, page, run

    place = Path(arguments.output).expanduser() / "conflicts"
    if arguments.page_only:
        print(f"page: {page.write(place)}")
        return 0
    asked = {"epochs": budget.epochs, "steps": budget.steps}
    if arguments.probe_batches is not None:
        asked["probe_batches"] = _whole("probe_batches", arguments.probe_batches)
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


def chosen_rows(report: Report, names: Sequence[str] | None) -> tuple[Row, ...]:
    """The rows of those names, or all of them.

    >>> [row.table for row in chosen_rows(REPORTS["pals_gradvac"], ["Naive multitask"])]
    ['Table 1']
    """
    if names is None:
        return report.rows
    known = [row.name for row in report.rows]
    for name in names:
        if name not in known:
            raise ConfigError(f"rows = {name}: {unknown('row', name, known)}")
    return tuple(report.row(name) for name in dict.fromkeys(names))


def _budget(arguments: argparse.Namespace) -> Any:
    from bert_mtl_demo.study.budget import Budget

    try:
        scale = real(0, open_low=True)(arguments.lr_scale)
    except ValueError as error:
        raise ConfigError(f"lr_scale = {arguments.lr_scale}: {error}") from None
    return Budget(
        data=absolute(arguments.data),
        encoder=arguments.encoder,
        epochs=None if arguments.epochs is None else _whole("epochs", arguments.epochs),
        steps=None if arguments.steps is None else _whole("steps", arguments.steps),
        lr_scale=scale,
        settings=given(arguments.set),
    )


def _refuse_what_is_missing(budget: Any) -> None:
    """Refuse an encoder or data that are not there once, and not in every single run."""
    from bert_mtl_demo.encoder import locate

    locate(budget.encoder)
    if budget.data not in ("sample", "hub") and not Path(budget.data).is_dir():
        raise ConfigError(
            f"data = {budget.data}: is no directory; give one that holds the tables, or 'sample' "
            "or 'hub'"
        )


def absolute(data: str) -> str:
    """The data's directory spelled out: the same data have one name, wherever one stands.

    >>> absolute("sample")
    'sample'
    """
    return data if data in ("sample", "hub") else str(Path(data).expanduser().resolve())


def given(words: Sequence[str]) -> dict[str, str]:
    """Settings from NAME=VALUE.

    >>> given(["amp=off", "max_length=64"])
    {'amp': 'off', 'max_length': '64'}
    """
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"set = {word}: must be NAME=VALUE")
        Config.from_mapping({name: value}, origin="--set")  # refused here, before a row is named
        found[name] = value
    return found


def _spent(arguments: argparse.Namespace, budget: Any, seeds: Sequence[int]) -> Mapping[str, str]:
    """The budget in words, for the page."""
    extra = ", ".join(f"{name} = {value}" for name, value in budget.settings.items())
    return {
        "command": arguments.shown,
        "data": budget.data if budget.data in ("sample", "hub") else "a directory of tables",
        "encoder": budget.encoder,
        "epochs": "each row's own" if budget.epochs is None else f"at most {budget.epochs}",
        "steps": "each row's own"
        if budget.steps is None
        else f"{budget.steps} batches of each task in an epoch",
        "learning rate": "each row's own"
        if budget.lr_scale == 1
        else f"{budget.lr_scale:g} times each row's own",
        "other settings": extra or "each row's own",
        "seeds": " ".join(map(str, seeds)),
    }


def _seeds(arguments: argparse.Namespace) -> list[int]:
    return list(dict.fromkeys(_whole("seeds", word, low=0) for word in arguments.seeds))


def _whole(name: str, value: str, low: int = 1) -> int:
    try:
        return int(integer(low)(value))
    except ValueError as error:
        raise ConfigError(f"{name} = {value}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
