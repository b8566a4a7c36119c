"""The harness: a theme declares its cases and how their rows are shown; one runner does the rest.

The rest is: what cannot be measured here (out of time, too large, not installed) becomes a note,
the bandwidths of the first case that has probes stand for the run, rows become tables.
"""

from __future__ import annotations

import gc
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from tqdm import tqdm

from benchmarks.options import Options
from benchmarks.problems.multitask import size_of
from benchmarks.results import Result
from benchmarks.roofline import FORMULA
from benchmarks.tables import Columns, Row, Table, tables


@dataclass(frozen=True)
class Case:
    """One comparison of a theme.

    Attributes:
        label: names it in notes.
        measure: yields its rows; those before an out-of-memory error are kept.
        gradient_bytes: size of its gradients, which may take half of the free memory.
        package: a package that has to be installed.
    """

    label: str
    measure: Callable[[], Iterable[Row]]
    gradient_bytes: int = 0
    package: str = "torch"

    def obstacle(self, options: Options) -> str | None:
        """Return why the case cannot be measured here, None if it can."""
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if options.late:
            return "out of time"
        size, free = self.gradient_bytes / 2**30, free_bytes(options.device) / 2**30
        if 2 * size > free:
            return f"gradients of {size:.1f} GiB exceed half of the free {free:.1f} GiB"
        return None


class Theme(ABC):
    """A declaration of what is measured and how it is shown.

    Attributes:
        name: of the theme and its result files.
        floor: what the times are held against; the runner adds the formula of the bandwidth's floor
            where rows have ``bandwidths_gb_s``.
        title: of a table, as a format of its rows' fields: rows of one title are one table.
        columns: of these tables.
        remarks: what a reader of the tables has to know.
    """

    name: ClassVar[str]
    floor: ClassVar[str] = ""
    title: ClassVar[str] = ""
    columns: ClassVar[Columns] = ()
    remarks: ClassVar[Sequence[str]] = ()

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    def cases(self) -> Iterable[Case]:
        """Yield the cases, the most telling first."""

    def parameters(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return sizes and settings, by default of a three-task problem."""
        return {"tasks": 3, **size_of(self.options)._asdict()}

    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """Return the tables of all rows."""
        return tables(self.title, self.columns, rows)

    def notes(self, rows: Sequence[Row]) -> list[str]:
        """Return the notes below the tables."""
        return [*self.remarks]

    def picture(self, rows: Sequence[Row]) -> Callable[[Path], object] | None:
        """Return what draws the rows into a PNG file, None for no picture."""
        return None


def run(theme: Theme) -> Result:
    """Measure all cases of a theme that can be measured here."""
    rows: list[Row] = []
    skipped = []
    for case in tqdm(list(theme.cases()), desc=theme.name, disable=None):
        obstacle = case.obstacle(theme.options)
        try:
            rows += case.measure() if obstacle is None else ()
        except torch.OutOfMemoryError as error:
            obstacle = str(error).splitlines()[0]
        skipped += [f"skipped: {case.label}: {obstacle}"] if obstacle else []
    bandwidths: dict[str, float] = next(
        (row["bandwidths_gb_s"] for row in rows if "bandwidths_gb_s" in row), {}
    )
    formula = FORMULA[theme.options.device.type] if bandwidths else ""
    return Result(
        theme.name,
        "; ".join(filter(None, (theme.floor, formula))),
        parameters=theme.parameters(rows),
        bandwidths=bandwidths,
        figures=rows,
        tables=theme.tables(rows),
        notes=[*theme.notes(rows), *skipped],
        draw=theme.picture(rows),
    )


def free_bytes(device: torch.device) -> int:
    """Return the memory that can still be taken, once what is no longer used is given back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in meminfo if line.startswith("MemAvailable"))
