"""The runner: what it leaves out and says so, and what it makes of rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import harness
from benchmarks.harness import Case, Theme, run
from benchmarks.options import Options
from benchmarks.roofline import FORMULA
from benchmarks.tables import Row, field
from benchmarks.themes.scaling import Scaling
from benchmarks.themes.surgery import Surgery

OPTIONS = Options(torch.device("cpu"), Path("nowhere"))


class Numbers(Theme):
    """Two cases, of which one runs out of memory after its first row."""

    name, floor, title, columns = "numbers", "zero", "table {k}", [("k", field("k"))]

    def cases(self) -> Iterator[Case]:
        yield Case("first", partial(self._rows, 1))
        yield Case("second", partial(self._rows, 2))
        yield Case("third", partial(self._rows, 3), package="no_such_package")

    def _rows(self, k: int) -> Iterator[Row]:
        yield {"k": k, "bandwidths_gb_s": {"read": 10 * k}}
        if k == 2:
            raise torch.OutOfMemoryError("too much\nof it")
        yield {"k": k}


def test_rows_become_tables_and_what_is_left_out_is_a_note() -> None:
    result = run(Numbers(OPTIONS))
    assert [row["k"] for row in result.figures] == [1, 1, 2]
    assert [table.title for table in result.tables] == ["Table 1", "Table 2"]
    assert result.notes == [
        "skipped: second: too much",
        "skipped: third: no_such_package is not installed",
    ]
    assert result.bandwidths == {"read": 10}
    assert result.floor == f"zero; {FORMULA['cpu']}"


def test_past_the_deadline_no_case_is_started() -> None:
    result = run(Numbers(replace(OPTIONS, deadline=time.monotonic() - 1)))
    assert (result.figures, result.tables, result.floor) == ([], [], "zero")
    assert result.notes[0] == "skipped: first: out of time"


def test_past_the_deadline_a_theme_with_a_picture_has_none() -> None:
    assert run(Scaling(replace(OPTIONS, deadline=time.monotonic() - 1))).draw is None


def test_a_case_too_large_for_the_memory_is_refused_with_the_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harness, "free_bytes", lambda device: 1 << 30)
    cases = {case.label: case for case in Surgery(OPTIONS).cases()}
    reason = cases["bert-base, K = 2, fp32"].obstacle(OPTIONS)
    assert reason == "gradients of 0.8 GiB exceed half of the free 1.0 GiB"
    assert cases["minilm, K = 2, fp32"].obstacle(OPTIONS) is None
    assert Scaling(OPTIONS).fitting([2, 64], [1 << 22]) == ([2], [1 << 22])
