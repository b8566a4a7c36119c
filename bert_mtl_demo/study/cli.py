"""The command line of the studies: a flag for each of their settings."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Collection, Sequence
from dataclasses import fields

from bert_mtl_demo.study.settings import StudySettings


def study_parser(
    program: str, description: str, without: Collection[str] = ()
) -> argparse.ArgumentParser:
    """A parser with the flags of all settings but those `without`.

    >>> study_parser("study", "").parse_args(["--seeds", "0", "1"]).seeds
    ['0', '1']
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # absent means: leave it to the default
    )
    for entry in fields(StudySettings):
        keywords = {name: value for name, value in entry.metadata.items() if name != "parse"}
        if keywords and entry.name not in without:
            parser.add_argument("--" + entry.name.replace("_", "-"), **keywords)
    return parser


def settings_of(arguments: argparse.Namespace, program: str, words: Sequence[str]) -> StudySettings:
    """The settings of parsed flags; `words` are the whole command line."""
    known = {entry.name for entry in fields(StudySettings)}
    values = {name: value for name, value in vars(arguments).items() if name in known}
    return StudySettings(**values, command=f"{program} {shlex.join(words)}")
