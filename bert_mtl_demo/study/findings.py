"""Findings: quantities with their intervals, which a study of our own leaves beside its page.

The studies beside the demo (`research/`) measure other things than scores. The scoreboard knows
them by this file alone, so the demo needs no part of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from scipy import stats

from bert_mtl_demo.errors import CheckpointError
from bert_mtl_demo.store import read_json, write_json
from bert_mtl_demo.study.intervals import Interval

FINDINGS = "findings.json"
Findings = Mapping[str, Mapping[str, Interval]]  # study -> quantity -> value


def write_findings(directory: Path, study: str, quantities: Mapping[str, Interval]) -> Path:
    """Write a study's quantities into a directory; those without a value are left out.

    >>> import tempfile
    >>> directory = Path(tempfile.mkdtemp())
    >>> file = write_findings(directory, "some", {"gain": Interval(0.25, 0.2, 0.3, 4, 0.015, 3)})
    >>> str(read_findings(directory)["some"]["gain"])
    '.250 ± .050'
    """
    content = {
        name: {part: getattr(value, part) for part in _PARTS}
        for name, value in quantities.items()
        if math.isfinite(value.mean)
    }
    return write_json(directory / FINDINGS, {"study": study, "quantities": content}, indent=1)


_PARTS = ("mean", "low", "high", "n", "error", "df")


def read_findings(directory: Path) -> dict[str, dict[str, Interval]]:
    """Study -> quantity -> value, of all files below a directory.

    Of a quantity that several files have, the one that stands on most values counts.

    Raises:
        CheckpointError: for a file that is damaged.
    """
    findings: dict[str, dict[str, Interval]] = {}
    for path in sorted(directory.rglob(FINDINGS)):
        content = read_json(path, remedy="write it again with --page-only")
        try:
            known = findings.setdefault(content["study"], {})
            for name, parts in content["quantities"].items():
                value = Interval(*(parts[part] for part in _PARTS))
                if name not in known or value.n > known[name].n:
                    known[name] = value
        except (LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: holds no findings of a study ({type(error).__name__}); delete it and "
                "write it again with --page-only"
            ) from None
    return findings


def share(part: int, total: int, level: float = 0.95) -> Interval:
    """A share of independent cases with Wilson's interval (Wilson 1927).

    >>> rounded = share(3, 10)
    >>> [round(value, 3) for value in (rounded.mean, rounded.low, rounded.high)]
    [0.3, 0.108, 0.603]
    >>> share(0, 0).n
    0
    """
    if not total:
        return Interval(math.nan, None, None, 0)
    bounds = stats.binomtest(part, total).proportion_ci(level, method="wilson")
    error = (bounds.high - bounds.low) / 2 / float(stats.norm.ppf((1 + level) / 2))
    return Interval(part / total, float(bounds.low), float(bounds.high), total, error, 1e6)
