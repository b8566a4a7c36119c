"""Nothing that we depend on asks for more than a notice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.licences import MARKS, direct, licence_of, licences, refused


def test_every_dependency_has_a_licence_that_we_accept() -> None:
    problems = {name: refused(licence) for name, licence in licences().items()}
    assert {name: why for name, why in problems.items() if why} == {}


def test_the_table_in_the_docs_has_what_we_ask_for_ourselves() -> None:
    """`python -m tests.licences docs/decisions.md` writes it; what those need differs by system."""
    page = (Path(__file__).parents[1] / "docs" / "decisions.md").read_text("utf-8")
    table = page.partition(MARKS[0])[2].partition(MARKS[1])[0]
    rows = re.findall(r"^\| (.+) \| (.+) \|$", table, re.MULTILINE)
    written = {name: licence for licence, names in rows for name in names.split(", ")}
    installed = licences()
    for name in sorted(direct("gradsurgery")):
        assert written.get(name) == installed[name], name


@pytest.mark.parametrize(
    "licence",
    [
        "GPL-3.0-or-later",
        "MIT AND AGPL-3.0-only",
        "LGPL-2.1-only",
        "LicenseRef-Ours",
        "",
        "UNKNOWN",
    ],
)
def test_what_asks_for_more_is_refused(licence: str) -> None:
    assert refused(licence)


@pytest.mark.parametrize(
    ("values", "classifiers", "licence"),
    [
        ({"License-Expression": "MIT", "License": "GPL"}, [], "MIT"),
        ({"License": "BSD-3-Clause"}, ["License :: OSI Approved :: BSD License"], "BSD-3-Clause"),
        ({"License": 900 * "text "}, ["License :: OSI Approved :: BSD License"], "BSD"),
        ({"License": "GPL"}, [], "GPL"),
        ({"License": 900 * "text "}, [], ""),
        ({}, [], ""),
    ],
)
def test_metadata_say_it_in_several_places(
    values: dict[str, str], classifiers: list[str], licence: str
) -> None:
    assert licence_of(values, classifiers) == licence
