"""The command line: one flag per setting, and errors as one line instead of a traceback.

This module imports neither torch nor transformers, so that a wrong flag is answered at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from bert_mtl_demo.config import Config, read_settings
from bert_mtl_demo.data import DataError
from bert_mtl_demo.errors import DemoError, DivergedError
from bert_mtl_demo.setting_types import default_of, switch

EXIT_REFUSED = 2  # as argparse does: nothing was run, the input has to change
EXIT_FAILED = 1  # it was run and could not go on


def train_parser() -> argparse.ArgumentParser:
    """All flags of `python -m bert_mtl_demo.train`, made from the fields of `Config`.

    >>> vars(train_parser().parse_args(["--epochs", "3", "--freeze-encoder"]))
    {'config': None, 'resume': None, 'epochs': '3', 'freeze_encoder': True}
    """
    parser = argparse.ArgumentParser(
        prog="python -m bert_mtl_demo.train",
        description="Train one BERT on three tasks, with gradient surgery. Without flags: the "
        "packaged MiniLM on the embedded sample with PCGrad, no network, under two minutes on two "
        "CPU cores.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # absent means: leave it to the file or the default
    )
    parser.add_argument("--config", default=None, metavar="FILE", help="settings in JSON or TOML")
    parser.add_argument("--resume", default=None, metavar="RUN", help="continue that run")
    for entry in fields(Config):
        _add_flag(parser, entry)
    return parser


def _add_flag(parser: argparse.ArgumentParser, entry: Any) -> None:
    flag = "--" + entry.name.replace("_", "-")
    default = default_of(entry)
    shown = (",".join(default) or None) if isinstance(default, tuple) else default
    says = f"{entry.metadata['says']} (default {str(shown).lower()})".replace("%", "%%")
    if entry.metadata["kind"] is switch:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=says)
    elif isinstance(default, tuple):
        parser.add_argument(flag, nargs="+", metavar="NAME", help=says)
    else:
        parser.add_argument(flag, metavar="VALUE", help=says)


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the user set, file first, flags over it; defaults are not in it."""
    settings = read_settings(arguments.config) if arguments.config else {}
    Config.from_mapping(settings, origin=str(arguments.config))  # refused here, it names the file
    for entry in fields(Config):
        if hasattr(arguments, entry.name):
            value = getattr(arguments, entry.name)
            settings[entry.name] = " ".join(value) if isinstance(value, list) else value
    return settings


def reported(command: Callable[[], int]) -> int:
    """Run a command; a user's error becomes one line on stderr and an exit code.

    >>> reported(lambda: 0)
    0
    """
    try:
        return command()
    except (DemoError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED if isinstance(error, DivergedError) else EXIT_REFUSED


def guard(command: Callable[[], int]) -> int:
    """The same, and an interruption or a reader who has left are no traceback either.

    >>> guard(lambda: 0)
    0
    """
    try:
        return reported(command)
    except KeyboardInterrupt:
        print("interrupted before there was anything to save", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has left; that is no error of ours.
        sys.stderr.close()
        return 0
