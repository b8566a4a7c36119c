"""`python -m bert_mtl_demo.study`: list the published rows, train them again, write the pages."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields

from bert_mtl_demo.cli import EXIT_FAILED, guard
from bert_mtl_demo.errors import ConfigError, unknown
from bert_mtl_demo.study.cli import settings_of, study_parser
from bert_mtl_demo.study.papers import PAPERS
from bert_mtl_demo.study.published import Paper
from bert_mtl_demo.study.settings import StudySettings

PROGRAM = "python -m bert_mtl_demo.study"
STUDIES = ("list", "all", "conflicts", "claims", *PAPERS)


def main(argv: Sequence[str] | None = None) -> int:
    """The command.

    Returns:
        0 when everything asked for has its result, 1 when a run failed, 2 for refused input, 130 or
        143 when a signal stopped it (the same command goes on).

    >>> main(["no-such-study"])
    2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = study_parser(
        PROGRAM,
        "Train the rows of the five reports again, several seeds each, and write a page per "
        "report: published beside ours, conflicts beside every score. A row's settings are the "
        "published ones; the flags say where it runs and how much of its budget is spent. After "
        "an interruption, the same command goes on.",
    )
    parser.add_argument(
        "study",
        metavar="STUDY",
        help=f"one of {', '.join(STUDIES)}; all: the five reports; claims: their scoreboard and "
        "the findings, from the results below --output",
    )
    arguments = parser.parse_args(words)
    return guard(lambda: run(arguments.study, settings_of(arguments, PROGRAM, words)))


def run(study: str, settings: StudySettings) -> int:
    """One of `STUDIES`; the exit code."""
    if study not in STUDIES:
        raise ConfigError(unknown("study", study, STUDIES))
    if study == "list":
        for paper in PAPERS.values():
            for row in paper.rows:
                print(f"{paper.name}\t{row.name}")
        return 0
    if study == "claims":
        return _write_claims(settings)
    if study == "conflicts":
        return _run_conflicts(settings)
    return run_papers(list(PAPERS.values()) if study == "all" else [PAPERS[study]], settings)


def run_papers(papers: Sequence[Paper], settings: StudySettings) -> int:
    """Train the rows of some papers and write their pages."""
    if settings.rows and len(papers) > 1:
        raise ConfigError("rows with the study 'all': name the report whose rows they are")
    if settings.probe_batches is not None:
        raise ConfigError("probe_batches: only the study 'conflicts' has probes; leave it out")
    if settings.as_published:
        raise ConfigError("as_published: rows of a report always are; leave it out")
    rows = {paper.name: paper.select(settings.rows) for paper in papers}
    settings.refuse_missing()
    from bert_mtl_demo.study.collected import COLLECTED, collected_before, write_collected
    from bert_mtl_demo.study.designs import coinciding, warnings
    from bert_mtl_demo.study.page import write_page
    from bert_mtl_demo.study.plan import Plan
    from bert_mtl_demo.study.runner import run_all

    # All of it is planned before anything runs: a setting that cannot be is refused at once.
    files = {paper.name: settings.directory / f"{paper.name}{COLLECTED}" for paper in papers}
    kept = {name: collected_before(path, settings.budget()) for name, path in files.items()}
    plans = {name: Plan(rows[name], settings, before.runs) for name, before in kept.items()}
    merged = {paper.name: warnings(rows[paper.name], settings) for paper in papers}
    for paper in papers:
        for sentence in merged[paper.name]:
            print(f"{paper.name}: warning: {sentence}")
    for plan in plans.values():
        for row in plan.rows:
            plan.results(row)  # a damaged one is named now, and not after hours of the others
    code = 0
    for paper in papers:
        plan, failed = plans[paper.name], {}
        if not settings.page_only:
            waiting = plan.waiting
            print(
                f"{paper.name}: {len(plan.rows)} rows, {len(plan.jobs)} runs, "
                f"{len(plan.jobs) - len(waiting)} of them finished"
            )
            ended = run_all(waiting, workers=settings.jobs)
            failed = ended.failed
            if failed:
                code = EXIT_FAILED
            if ended.exit_code:
                print(f"stopped; the same command goes on: {settings.command}")
                return ended.exit_code
        skipped = len(paper.rows) - len(plan.rows)
        only = f"Only {len(plan.rows)} of the report's {len(paper.rows)} rows were asked for."
        pairs = [frozenset(pair) for pair in coinciding(plan.rows, settings)]
        page = write_page(
            settings.directory,
            paper,
            plan.rows,
            {row.name: plan.results(row) for row in plan.rows},
            settings.described(),
            texts=not settings.no_texts,
            notes=[
                *([only] if skipped else []),
                *settings.substitutions(),
                *paper.deviations,
                *merged[paper.name],
            ],
            shared=plan.shared(),
            failures={row.name: plan.failures(row, failed) for row in plan.rows},
            coinciding=pairs,
        )
        print(f"page: {page}")
        write_collected(files[paper.name], kept[paper.name].with_(plan.collected(pairs)))
    return code


def _write_claims(settings: StudySettings) -> int:
    """The scoreboard; what decides its numbers is in the result files, so flags are refused."""
    default = StudySettings()
    for entry in fields(settings):
        asked = getattr(settings, entry.name) != getattr(default, entry.name)
        if asked and entry.name not in ("output", "command"):
            raise ConfigError(
                f"{entry.name} with the study 'claims': it reads results; leave it out"
            )
    from bert_mtl_demo.study.claims import answers_below, write_claims
    from bert_mtl_demo.study.summary import write_summary

    print(f"page: {write_claims(settings.directory)}")
    print(f"page: {write_summary(settings.directory, answers_below(settings.directory))}")
    return 0


def _run_conflicts(settings: StudySettings) -> int:
    # Imported here: research stands beside the demo, is no part of the installed package, and the
    # demo does without it.
    try:
        from research.conflicts.study import run_study
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "research":
            raise
        raise ConfigError(
            "conflicts: this study is not part of the installed package. Run it from a clone of "
            "the repository, which holds the package 'research'"
        ) from None
    return run_study(settings)


if __name__ == "__main__":
    sys.exit(main())
