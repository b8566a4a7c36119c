"""Licences of all that gradsurgery depends on, from the metadata of what is installed.

    python -m tests.licences docs/decisions.md

writes the table of that page again, and fails on a licence that is unknown or asks for more than a
notice.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

MARKS = ("<!-- licences: written by python -m tests.licences -->", "<!-- end of licences -->")
EXTRAS = ("demo", "triton", "integrations", "test", "docs")

# They ask for a notice, and no more.
PERMISSIVE = {
    *("0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0"),
    *("CNRI-Python", "ISC", "MIT", "MIT-CMU", "PSF", "PSF-2.0", "Unlicense", "Zlib"),
}
# Mozilla's asks for changes to its own files to be published. We change none.
MOZILLA = "MPL-2.0"
# Names that metadata give in place of SPDX's; the classifiers do not say which BSD or PSF.
SPELLINGS = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd license": "BSD",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": MOZILLA,
    "python software foundation license": "PSF",
}
# What comes with torch's own wheels for CUDA, under NVIDIA's terms.
NVIDIA = ("nvidia-", "cuda-")


def required(name: str, extras: Iterable[str] = ()) -> set[str]:
    """The names of all installed packages that a package needs with some extras, but for itself.

    >>> "torch" in required("gradsurgery"), "transformers" in required("gradsurgery")
    (True, False)
    """
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = [(canonicalize_name(name), frozenset(extras))]
    while queue:
        package, wanted = queue.pop()
        if (package, wanted) in seen or package.startswith(NVIDIA):
            continue
        try:
            lines = metadata.requires(package) or []
        except metadata.PackageNotFoundError:
            continue  # for another extra, system or Python
        seen.add((package, wanted))
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if not marker or any(marker.evaluate({"extra": extra}) for extra in wanted | {""}):
                entry = canonicalize_name(requirement.name), frozenset(requirement.extras)
                queue.append(entry)
    return {package for package, _ in seen} - {canonicalize_name(name)}


def direct(name: str) -> set[str]:
    """The names of the installed packages that a package itself asks for, with any extra."""
    names = {canonicalize_name(Requirement(line).name) for line in metadata.requires(name) or []}
    return names & required(name, EXTRAS)


def licence_of(values: Mapping[str, str], classifiers: Iterable[str]) -> str:
    """The licence in a package's metadata, as SPDX names it; "" if there is none.

    >>> licence_of({"License": "Apache 2.0 License"}, [])
    'Apache-2.0'
    >>> licence_of({}, ["License :: OSI Approved :: GNU General Public License v3 (GPLv3)"])
    'GNU General Public License v3 (GPLv3)'
    """
    if expression := values.get("License-Expression"):
        return expression
    written = (values.get("License") or "").strip()
    plain = SPELLINGS.get(written.lower(), written)
    if refused(plain) is None:
        return plain
    names = [line.rsplit(" :: ", 1)[1] for line in classifiers if line.startswith("License :: ")]
    named = " AND ".join(SPELLINGS.get(name.lower(), name) for name in names)
    return named or (plain if len(plain) < 60 else "")


def refused(licence: str) -> str | None:
    """Why a licence is not accepted; None if it is.

    >>> refused("MIT AND (Apache-2.0 OR GPL-2.0-only)") is None, refused("MIT AND LGPL-3.0-only")
    (True, 'LGPL-3.0-only')
    """
    if not licence:
        return "no licence in its metadata"
    for part in re.sub(r"[()]| WITH [\w.-]+", "", licence).split(" AND "):
        if not any(choice.strip() in PERMISSIVE | {MOZILLA} for choice in part.split(" OR ")):
            return part
    return None


def licences() -> dict[str, str]:
    """Package -> licence, for all that is installed of gradsurgery's dependencies."""
    table = {}
    for name in sorted(required("gradsurgery", EXTRAS)):
        values = metadata.metadata(name)
        table[name] = licence_of(dict(values.items()), values.get_all("Classifier") or [])
    return table


def with_licences(page: str) -> str:
    """A page with the table of licences between its two marks."""
    packages = defaultdict(list)
    for name, licence in licences().items():
        packages[licence].append(name)
    rows = [f"| {licence} | {', '.join(packages[licence])} |" for licence in sorted(packages)]
    before, _, rest = page.partition(MARKS[0])
    lines = [before + MARKS[0], "", "| licence | packages |", "|---|---|", *rows, ""]
    return "\n".join([*lines, MARKS[1] + rest.partition(MARKS[1])[2]])


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(with_licences(path.read_text("utf-8")), "utf-8")
    problems = {name: refused(licence) for name, licence in licences().items()}
    sys.exit("\n".join(f"{name}: {why}" for name, why in problems.items() if why) or 0)
