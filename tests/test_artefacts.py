"""What version 0.1.0 wrote is read by this one, and leads to what it led to then.

``artefacts/0.1.0`` holds checkpoints, a log, a run and a study of that version, and what it made of
them; its README says how. They are loaded with public names only. Counts, names and pages are
equal; other numbers to 1e-6, relative, since another processor adds in another order. With the
environment variable ``EXACT=1``, on the kind of processor that made them, they are equal, too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import gradsurgery
from gradsurgery import ConflictLog, GradientSurgery, GradVac, Method, PCGrad, report

PLACE = Path(__file__).parent / "artefacts" / "0.1.0"
TOLERANCE = 0.0 if os.environ.get("EXACT") == "1" else 1e-6
CLOCK = ("seconds", "steps_per_second", "data_seconds", "peak_memory")
STUDY = (
    *("pals_gradvac", "--rows", "Naive multitask", "Gradient Vaccine multitask"),
    *("--encoder", "encoder", "--epochs", "1", "--steps", "2", "--seeds", "0", "1"),
    *("--lr-scale", "100", "--output", "study", "--set", "device=cpu", "max_length=64"),
    *("train_limit=48", "dev_limit=16", "batch_size=4"),
)


def method_of(name: str) -> Method:
    return GradVac(beta=0.05, seed=3) if name == "gradvac" else PCGrad(seed=3)


def optimizer_for(model: nn.Module, method: Method) -> GradientSurgery:
    base = torch.optim.AdamW(model.named_parameters(), lr=0.01)
    return GradientSurgery(base, method, tasks=("a", "b", "c"), grouping="layer")


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))


def take(model: nn.Module, optimizer: GradientSurgery, step: int) -> None:
    """One step; inputs and targets of all tasks come from the step's number."""
    seeded = torch.Generator().manual_seed(step)
    x, y = torch.randn(3, 8, 4, generator=seeded), torch.randn(3, 8, 3, generator=seeded)
    optimizer.join([(model(x[k]) - y[k]).square().mean() for k in range(3)]).backward()
    optimizer.step()
    optimizer.zero_grad()


def read(name: str) -> Any:
    return json.loads((PLACE / name).read_text(encoding="utf-8"))


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, without its clock."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in found]


def assert_alike(found: Any, expected: Any, where: str = "") -> None:
    """Equal, but for the last digits of floats, and for keys that are new."""
    if isinstance(expected, Mapping):
        for key, value in expected.items():
            assert_alike(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for n, pair in enumerate(zip(found, expected, strict=True)):
            assert_alike(*pair, f"{where}[{n}]")
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(
            found, expected, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda text: f"{where}: {text}"
        )
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("name", ["gradvac", "pcgrad"])
def test_a_checkpoint_of_the_optimizer_goes_on(name: str) -> None:
    """Weights and statistics after three more steps; the visiting order is drawn in each."""
    model = small()
    optimizer = optimizer_for(model, method_of(name))
    saved = torch.load(PLACE / f"optimizer_{name}.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    optimizer.conflicts.load_state_dict(saved["conflicts"])
    for step in (5, 6, 7):
        take(model, optimizer, step)
    expected = torch.load(PLACE / f"optimizer_{name}_next.pt", weights_only=True)
    assert_alike(dict(model.state_dict()), expected["model"])
    assert_alike(optimizer.conflicts.summary(), expected["summary"])


def test_a_conflict_log_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PLACE)
    lines = report.read(["conflicts.jsonl"])
    assert report.table(lines) + "\n" == Path("conflicts_table.md").read_text(encoding="utf-8")
    assert_alike(report.totals(lines), read("totals.json"))


def test_a_conflict_log_is_continued(tmp_path: Path) -> None:
    log = ConflictLog(shutil.copy(PLACE / "conflicts.jsonl", tmp_path))
    model = small()
    optimizer = optimizer_for(model, method_of("gradvac"))
    take(model, optimizer, 9)
    log.write(optimizer.conflicts, step=10)
    *old, new = report.read([log.path])
    assert [line["step"] for line in old] == [3, 6, 9]
    assert new.keys() == old[-1].keys()
    assert new["pairs"][0].keys() - old[-1]["pairs"][0].keys() == {"evidence"}


def demo(place: Path, module: str, *words: str) -> str:
    """What ``python -m bert_mtl_demo.MODULE`` prints, run in a folder."""
    root = str(Path(gradsurgery.__file__).parents[1])
    settings = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-m", f"bert_mtl_demo.{module}", *words]
    done = subprocess.run(
        command, cwd=place, env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_is_evaluated(tmp_path: Path) -> None:
    demo(tmp_path, "evaluate", str(PLACE / "run"), "--output", "found", "--device", "cpu")
    found = json.loads((tmp_path / "found" / "evaluation.json").read_text(encoding="utf-8"))
    assert_alike(found, read("run_expected.json")["evaluation"])


def test_a_run_is_continued(tmp_path: Path) -> None:
    """From the middle of a window; its encoder's weights are its own."""
    run, expected = tmp_path / "run", read("run_expected.json")
    shutil.copytree(PLACE / "run", run)
    demo(tmp_path, "train", "--resume", "run", *expected["flags"])
    assert_alike(rows(run / "metrics.jsonl"), expected["metrics"])
    assert_alike(report.totals(report.read([run / "conflicts.jsonl"])), expected["conflicts"])
    weights = load_file(PLACE / "run_expected.safetensors")
    # Softmax does not see the keys' bias: its gradient is the rounding of zero.
    blind = [name for name in weights if TOLERANCE and name.endswith("key.bias")]
    for name in blind:
        del weights[name]
    assert_alike(load_file(run / "best.safetensors"), weights)


def scores_of(name: str, page: Path) -> list[str]:
    """The number of seeds, and published and mean scores without their intervals, of a row."""
    lines = page.read_text("utf-8").splitlines()
    cells = next(line for line in lines if line.startswith(f"| {name} | ")).split(" | ")[1:10]
    return [cell.split(" ")[0] for cell in cells]


def test_a_study_is_found_and_its_page_written(tmp_path: Path) -> None:
    """Its results are found by their settings; --page-only would call them not run otherwise."""
    encoder = Path(shutil.copytree(PLACE / "run" / "encoder", tmp_path / "encoder"))
    (encoder / "model.safetensors").touch()  # has to be there, and is not read
    shutil.copytree(PLACE / "study", tmp_path / "study" / "runs" / "pals_gradvac")
    demo(tmp_path, "study", *STUDY, "--page-only")
    page, old = (place / "pals_gradvac.md" for place in (tmp_path / "study", PLACE))
    # Intervals and the tables around them have changed since; the scores of finished runs may not.
    for name in ("Naive multitask", "Gradient Vaccine multitask"):
        assert scores_of(name, old) == scores_of(name, page)
    assert (tmp_path / "study" / "pals_gradvac" / "scores.png").exists()
