"""The factorial from first step to page on the tiny encoder."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.reporting import plots
from bert_mtl_demo.store import write_json
from bert_mtl_demo.study import runner
from bert_mtl_demo.study.claims import read_claims
from bert_mtl_demo.study.findings import read_findings
from bert_mtl_demo.study.results import unpacked
from bert_mtl_demo.study.runner import Job
from bert_mtl_demo.study.settings import StudySettings
from bert_mtl_demo.training import run as training_run
from bert_mtl_demo.training.trainer import Trainer
from research.surgery import __main__ as command_line
from research.surgery import jobs, page, study
from research.surgery.arms import config_of, methods
from research.surgery.records import summary
from research.surgery.study import run_study
from tests.research.conflicts.test_study import _once


@pytest.fixture
def settings(
    tiny_encoder: str, tmp_path: Path, small_data: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., StudySettings]:
    """Two seeds of four steps; keywords change them. Jobs run in this process."""
    monkeypatch.setattr(study, "PUBLISHED_STEPS", 100)
    monkeypatch.setattr(page, "PUBLISHED_STEPS", 100)
    monkeypatch.setattr(training_run, "load", _once(training_run.load))
    monkeypatch.setattr(runner, "_start", _in_process)
    monkeypatch.setattr(runner, "POLL", 0)

    def make(**changes: Any) -> StudySettings:
        base: dict[str, Any] = {
            "encoder": tiny_encoder,
            "output": str(tmp_path / "study"),
            "seeds": (0, 1),
            "steps": 4,
            "set": {
                "max_length": 64,
                "batch_size": 4,
                "lr": 1e-3,
                "device": "cpu",
                "encoder_layers": [1],
            },
            "command": "python -m research.surgery",
        }
        return StudySettings(**{**base, **changes})

    return make


def _in_process(job: Job, workers: int) -> Any:
    write_json(job.directory / "settings.json", job.settings)
    job.log.touch()
    code = importlib.import_module(job.module).run(job.directory)
    return SimpleNamespace(poll=lambda: code, returncode=code)


SECTIONS = [
    "The answer",
    "The arms",
    "Mean weights",
    "Scores",
    "Where the tasks conflict",
    "The count law",
    "The published counts",
    "Budget, and how to repeat it",
]


def test_the_page_stands_on_its_pieces_alone(
    settings: Callable[..., StudySettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_study(settings(), 20) == 0
    directory = tmp_path / "study" / "surgery"
    text = (directory / "surgery.md").read_text("utf-8")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == SECTIONS
    assert all(f"]({picture.name})" in text for picture in directory.glob("*.png"))
    assert "nan" not in text
    assert str(tmp_path) not in text
    assert not list(directory.rglob("*.pt")) + list(directory.rglob("*.safetensors"))
    _check_arms(study.load(directory)["pieces"])

    # Answers are kept: the scores are theirs, and intervals hold dev's error.
    record = study.load(directory)["pieces"]["runs"]["pcgrad"]["0"]
    for task, evaluation in record["evaluation"].items():
        assert evaluation["score"] == pytest.approx(record["scores"][task], abs=1e-6)
        assert len(unpacked(evaluation["found"])) == len(unpacked(evaluation["truth"]))
        assert not evaluation["mistakes"]
    asked = {t.score for c in read_claims() for t in c.tests if t.study == "surgery"}
    asked = {score for score in asked if not score.startswith("expected cosine")}  # of a probe
    assert asked
    assert asked <= set(read_findings(directory)["surgery"])

    # A second time nothing is computed, from the one file beside the page.
    shutil.rmtree(directory / "runs")
    shutil.rmtree(directory / "pieces")
    (directory / "study.json").unlink()
    assert (directory / "pieces.json").read_text("utf-8").count('"truth": 0') >= len(methods())

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("this piece is there")

    monkeypatch.setattr(jobs, "train", never)
    monkeypatch.setattr("research.surgery.count_law.replays", never)
    monkeypatch.setattr("research.conflicts.simulation.alterations", never)
    monkeypatch.setattr(plots, "save", lambda figure, path: path)
    assert run_study(settings(), 20) == 0
    assert (directory / "surgery.md").read_text("utf-8") == text
    with pytest.raises(AssertionError, match="this piece is there"):
        run_study(settings(set={**settings().set, "lr": 1e-4}), 20)


def _check_arms(pieces: dict[str, Any]) -> None:
    """The sum changes nothing, equal norms do; every run kept all of its steps."""
    runs = pieces["runs"]
    assert list(runs) == list(methods())
    for seed in ("0", "1"):
        assert runs["sum"][seed]["weights"] == [1.0, 1.0, 1.0]
        assert runs["sum"][seed]["change"] == 0
        assert runs["sum"][seed]["fixed"] is None
        assert runs["equal norms"][seed]["change"] > 0
        assert runs["sham"][seed]["weights"] != [1.0, 1.0, 1.0]
    replayed = pieces["replays"]
    assert (replayed["steps"], replayed["pairs"]) == (2, 6)
    assert all(len(counts) == 10 for counts in replayed["counts"].values())


def test_a_run_that_was_stopped_goes_on_with_its_record(
    settings: Callable[..., StudySettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The piece is the one of a run that never stopped, to the last bit."""
    config = config_of(settings(), 0)
    job = jobs.job_of(tmp_path / "once", "sham", config)
    _in_process(job, 1)
    again = jobs.job_of(tmp_path / "again", "sham", config)
    step = Trainer.step

    def stopping(self: Trainer) -> None:
        if self.progress.step == 2:
            self.save()
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        _in_process(again, 1)
    monkeypatch.setattr(Trainer, "step", step)
    _in_process(again, 1)
    one, other = (json.loads(work.results[0].read_text("utf-8"))["result"] for work in (job, again))
    assert one == other


def test_every_arm_and_seed_has_a_key_of_its_own(settings: Callable[..., StudySettings]) -> None:
    keys = {
        jobs.piece_of(Path(), arm, config_of(settings(), seed)).key
        for arm in methods()
        for seed in (0, 1)
    }
    assert len(keys) == 2 * len(methods())


def test_the_keys_of_the_defaults_stay() -> None:
    """A default of the demo that changes must change no finished piece."""
    config = config_of(StudySettings(data="hub"), 0)
    assert [jobs.piece_of(Path(), arm, config).key for arm in ("sum", "sham")] == KEYS


KEYS = ["4afa8bd09a", "c0bfd2fb9f"]


def test_the_summary_splits_a_change_into_its_fixed_part_and_the_rest() -> None:
    grams = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    constant = summary(grams, torch.full((2, 2), 1.5, dtype=torch.float64))
    assert constant["fixed"] == pytest.approx(1.0)
    alternating = torch.tensor([[0.5, 1.0], [1.5, 1.0]], dtype=torch.float64)
    assert summary(grams, alternating)["fixed"] == pytest.approx(0.0)
    half = torch.tensor([[1.0, 1.0], [3.0, 1.0]], dtype=torch.float64)  # mean 2: 2 of 4
    assert summary(grams, half)["fixed"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "steps", "says"),
    [
        ({"set": {"tasks": ("sst",)}}, 20, "two trained tasks"),
        ({"set": ["method=pcgrad"]}, 20, "leave it out"),
        ({}, 5, "one an epoch"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    changes: dict[str, Any], steps: int, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        run_study(StudySettings(output=str(tmp_path / "study"), **changes), steps)
    assert not (tmp_path / "study").exists()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--page-only", "--output", str(tmp_path)]) == 2
    assert "study.json: cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command_line.main(["--help"])
    assert "--long-steps" in capsys.readouterr().out


def test_expected_gradients_are_probed_in_the_runs_of_the_plain_sum(
    settings: Callable[..., StudySettings], tmp_path: Path
) -> None:
    """Two metrics, by pair and by layer; the probed run is the arm's to rounding."""
    base = settings(seeds=(0,), probe_batches=8)
    assert run_study(base, 20, (0, 1)) == 0
    directory = tmp_path / "study" / "surgery"
    probes = study.load(directory)["pieces"]["probes"]
    assert list(probes) == ["0", "1"]
    assert list(probes["1"]) == ["before training", "halfway", "after training"]
    stages = probes["0"]
    assert [record["adam"] is None for record in stages.values()] == [True, False, False]
    assert all(record["levels"] == [] for record in stages.values())
    run = study.load(directory)["pieces"]["runs"]["sum"]["0"]
    for task, score in stages["after training"]["scores"].items():
        assert score == pytest.approx(run["scores"][task], abs=1e-4)
    text = (directory / "surgery.md").read_text("utf-8")
    assert text.count("| 0 | Euclid's |") == 9
    assert text.count("| 1 | Adam's |") == 6
    assert "seed 1, Adam's metric" in text
    # A study that goes on from the one file repeats no probe.
    shutil.rmtree(directory / "pieces")
    before = (directory / "pieces.json").read_bytes()
    assert run_study(replace(base, page_only=True)) == 0
    assert (directory / "pieces.json").read_bytes() == before
