"""What the command was told: its flags, and each of them checked.

Words come in, and go out as numbers, rows and a budget, or as one line that names the wrong one.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import ConfigError, unknown
from bert_mtl_demo.setting_types import integer, real
from bert_mtl_demo.study.papers import REPORTS
from bert_mtl_demo.study.published import Report, Row

WHAT = ("list", "all", "conflicts", *REPORTS)
PROGRAM = "python -m bert_mtl_demo.study"


def parser() -> argparse.ArgumentParser:
    """The flags.

    >>> parser().parse_args(["pals_gradvac", "--seeds", "0", "1"]).seeds
    ['0', '1']
    """
    made = argparse.ArgumentParser(
        prog=PROGRAM,
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


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The flags, with the command itself as `command` and, for a page, as `shown`."""
    arguments = parser().parse_args(words)
    arguments.command = f"{PROGRAM} {shlex.join(words)}"
    arguments.shown = f"{PROGRAM} {shlex.join(portable(words))}"
    return arguments


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


def budget_of(arguments: argparse.Namespace) -> Any:
    """What is spent on every row."""
    from bert_mtl_demo.study.budget import Budget

    try:
        scale = real(0, open_low=True)(arguments.lr_scale)
    except ValueError as error:
        raise ConfigError(f"lr_scale = {arguments.lr_scale}: {error}") from None
    return Budget(
        data=absolute(arguments.data),
        encoder=arguments.encoder,
        epochs=None if arguments.epochs is None else whole("epochs", arguments.epochs),
        steps=None if arguments.steps is None else whole("steps", arguments.steps),
        lr_scale=scale,
        settings=given(arguments.set),
    )


def refuse_what_is_missing(budget: Any) -> None:
    """Refuse an encoder or data that are not there once, and not in every single run."""
    from bert_mtl_demo.model.encoder import locate

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


def in_words(arguments: argparse.Namespace, budget: Any, seeds: Sequence[int]) -> Mapping[str, str]:
    """The budget, for the page."""
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


def seeds_of(arguments: argparse.Namespace) -> list[int]:
    """The seeds, each once."""
    return list(dict.fromkeys(whole("seeds", word, low=0) for word in arguments.seeds))


def whole(name: str, value: str, low: int = 1) -> int:
    """A whole number of at least `low`, or an error that names the flag.

    >>> whole("jobs", "2")
    2
    """
    try:
        return int(integer(low)(value))
    except ValueError as error:
        raise ConfigError(f"{name} = {value}: {error}") from None
