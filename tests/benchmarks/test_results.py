from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.machine import slug, versions
from benchmarks.options import Options
from benchmarks.results import Result, write
from benchmarks.tables import Table, digits, field, tables

TABLE = Table("Figures", ("case", "ms"), [["a", "1.5"], ["b", "2.5"]])


def result() -> Result:
    return Result(
        "theme",
        "its floor",
        parameters={"tasks": 3},
        bandwidths={"read": 10.5},
        figures=[{"case": "a", "seconds": {"median": 0.0015}}],
        tables=[TABLE],
        notes=["noted"],
        draw=lambda path: path.write_bytes(b"picture"),
    )


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    options = Options(torch.device("cpu"), tmp_path / "new", threads=2)
    paths = write(result(), options, "python -m benchmarks theme")
    facts = json.loads(paths[0].read_text())
    assert facts["figures"] == result().figures
    assert facts["command"] == "python -m benchmarks theme"
    assert facts["parameters"] == {"tasks": 3}
    assert facts["bandwidths_gb_s"] == {"read": 10.5}
    assert facts["versions"]["torch"] == torch.__version__
    assert {"hardware", "date", "threads", "floor", "notes"} <= set(facts)


def test_the_page_says_the_same_and_shows_table_picture_and_notes(tmp_path: Path) -> None:
    paths = write(result(), Options(torch.device("cpu"), tmp_path), "python -m benchmarks theme")
    page = paths[1].read_text()
    assert TABLE.markdown() in page
    assert f"![theme]({paths[2].name})" in page
    assert paths[2].read_bytes() == b"picture"
    for line in ("- command: python -m benchmarks theme", "- floor: its floor", "- noted"):
        assert line in page


def test_files_are_named_theme_hardware_month(tmp_path: Path) -> None:
    path = write(result(), Options(torch.device("cpu"), tmp_path), "")[0]
    theme, machine, month = path.stem.split("_")
    assert (theme, len(month)) == ("theme", 6)
    assert machine


def test_a_table_is_markdown() -> None:
    assert TABLE.markdown() == (
        "## Figures\n\n| case | ms |\n| --- | --- |\n| a | 1.5 |\n| b | 2.5 |"
    )


def test_rows_of_one_title_are_one_table() -> None:
    rows = [{"k": 2, "t": {"p20": 5}}, {"k": 3, "t": {"p20": 7}}, {"k": 2, "t": None}, {"k": 3}]
    columns = [("K", field("k")), ("p20", field("t.p20", "{:.1f}".format))]
    by_title = tables("all {k} tasks", columns, rows)
    assert [table.title for table in by_title] == ["All 2 tasks", "All 3 tasks"]
    assert [table.rows for table in by_title] == [
        [["2", "5.0"], ["2", ""]],
        [["3", "7.0"], ["3", ""]],
    ]


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-4c"),
        ("AMD EPYC", "amd-epyc-4c"),
        ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", "intel-xeon-4c"),
        ("aarch64", "aarch64-4c"),
    ],
)
def test_a_processor_has_a_short_name(cpu: str, expected: str) -> None:
    assert slug({"cpu": cpu, "cores": 4}) == expected


def test_a_gpu_names_the_machine() -> None:
    machine = {"cpu": "AMD EPYC", "cores": 4, "gpu": "NVIDIA A100-SXM4-80GB"}
    assert slug(machine) == "nvidia-a100-sxm4-80gb"


def test_versions_leave_out_what_is_not_installed() -> None:
    assert {"python", "torch", "gradsurgery", "transformers"} <= set(versions())


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.00"), (9.999, "10.0"), (99.96, "100"), (12345.6, "12346")]
)
def test_three_digits(value: float, text: str) -> None:
    assert digits(value) == text
