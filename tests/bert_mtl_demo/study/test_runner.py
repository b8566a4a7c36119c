"""Running a study: every row runs, nothing is repeated, an interruption and a crash cost little."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import CheckpointError
from bert_mtl_demo.study import runner, worker
from bert_mtl_demo.study.__main__ import main
from bert_mtl_demo.study.collected import read_collected
from bert_mtl_demo.study.papers import PAPERS
from bert_mtl_demo.study.plan import row_job
from bert_mtl_demo.study.published import Row
from bert_mtl_demo.study.results import read_result
from bert_mtl_demo.study.runner import Job
from bert_mtl_demo.study.settings import StudySettings

ROWS = [row for paper in PAPERS.values() for row in paper.rows]


@pytest.fixture
def budget(tiny_encoder: str, tmp_path: Path, small_data: None) -> StudySettings:
    """Two steps of the smallest kind; the sample in place of data."""
    small = {
        "device": "cpu",
        "max_length": 64,
        "max_steps": 2,
        "log_every": 1,
        "pretrain_steps": 1,
        "train_limit": 64,
        "dev_limit": 16,
        "cache": str(tmp_path / "cache"),
    }
    return StudySettings(encoder=tiny_encoder, epochs=1, steps=2, set=small)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.paper}: {row.name}")
def test_every_row_trains_two_steps(row: Row, budget: StudySettings, tmp_path: Path):
    for number, config in enumerate(budget.configs(row, 0)):
        place = tmp_path / str(number)
        write_settings(place, config)
        assert worker.run(place) == 0
        result = read_result(place / "result.json")
        assert set(result.scores) == set(config.tasks)
        assert result.conflicts is not None
        assert result.conflicts.steps == 2
        if config.method != "sum" and config.batching != "uniform_partial":
            # A ranking loss without a positive in the batch has no gradient to compare.
            always = config.trained if "mnrl" not in config.sts_loss else ("sst", "para")
            possible, _, _ = result.conflicts.count()
            least = 2 * len(always) * (len(always) - 1)
            assert possible >= least, "surgery that met no two gradients was never applied"
        assert result.trained_parameters
        assert not list(place.rglob("*.safetensors"))
        assert not list(place.rglob("last.pt"))


def write_settings(place: Path, config: Config) -> None:
    place.mkdir(parents=True)
    (place / "settings.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")


@pytest.fixture
def command(tiny_encoder: str, tmp_path: Path) -> Callable[..., list[str]]:
    """The flags of a small study."""

    def make(*words: str, output: str = "study", steps: int = 2) -> list[str]:
        flags = ["--encoder", tiny_encoder, "--epochs", "1", "--steps", str(steps)]
        small = ["device=cpu", "max_length=64", "train_limit=48", "dev_limit=16", "batch_size=4"]
        place = str(tmp_path / output)
        return [*words, *flags, "--output", place, "--set", *small]

    return make


def test_a_study_runs_resumes_and_writes_its_page(command, tmp_path: Path, capfd):
    words = command(
        *("optimusbert", "--rows", "multitask finetune", "multitask + PCGrad", "--seeds", "0", "1")
    )
    assert main(words) == 0
    page = (tmp_path / "study" / "optimusbert.md").read_text(encoding="utf-8")
    assert ".774" in page  # published
    results = sorted((tmp_path / "study").rglob("result.json"))
    assert len(results) == 4
    before = [file.stat().st_mtime_ns for file in results]
    capfd.readouterr()
    assert main(words) == 0
    assert [file.stat().st_mtime_ns for file in results] == before
    assert "2 rows, 4 runs, 4 of them finished" in capfd.readouterr().out


def test_a_study_goes_on_from_its_collected_results_alone(command, tmp_path: Path, capfd):
    rows = ("optimusbert", "--rows", "multitask finetune", "--seeds")
    assert main(command(*rows, "0")) == 0
    study, moved = tmp_path / "study", tmp_path / "moved"
    moved.mkdir()
    shutil.copy(study / "optimusbert.results.json", moved)
    capfd.readouterr()
    assert main(command(*rows, "0", "1", output="moved")) == 0
    assert "1 rows, 2 runs, 1 of them finished" in capfd.readouterr().out
    assert len(list(moved.rglob("result.json"))) == 1
    collected = read_collected(moved / "optimusbert.results.json")
    assert list(collected.results()["multitask finetune"]) == [0, 1]
    assert main(command(*rows, "0", output="moved", steps=3)) == 2
    assert "holds results of another budget (steps: 2 batches" in capfd.readouterr().err


def test_a_run_that_was_killed_goes_on_from_its_checkpoint(budget, tmp_path: Path, monkeypatch):
    """The killed process had taken one step of two: the result is that of the unbroken run."""
    row = PAPERS["optimusbert"].row("multitask + PCGrad")
    (config,) = budget.configs(row, 0)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for place in (whole, broken):
        write_settings(place, config)
    assert worker.run(whole) == 0

    from bert_mtl_demo.training.trainer import Trainer

    step = Trainer.step

    def killed(self: Trainer) -> None:
        if self.progress.step == 1:
            self.save()
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            worker.run(broken)
    assert not (broken / "result.json").exists()
    assert worker.run(broken) == 0
    first, second = (read_result(place / "result.json") for place in (whole, broken))
    assert first.scores == second.scores
    assert [row.loss for row in first.losses] == [row.loss for row in second.losses]


def test_a_row_that_cannot_run_is_reported_and_the_others_go_on(command, tmp_path, capfd):
    words = command("pals_gradvac", "--rows", "Naive multitask", "Cosine similarity", "--jobs", "2")
    # One of the two finds a file where its folder should be.
    from bert_mtl_demo.study import runner

    start = runner._start

    def first_fails(job: Job, workers: int) -> subprocess.Popen[bytes]:
        if "cosine" in job.directory.name:
            job.directory.mkdir(parents=True)
            (job.directory / "run").write_text("in the way", encoding="utf-8")
        return start(job, workers)

    runner._start, saved = first_fails, start
    try:
        code = main(words)
    finally:
        runner._start = saved
    said = capfd.readouterr().out
    assert code == 1
    assert re.search(r"cosine-similarity-\S+: failed with exit code", said)
    page = (tmp_path / "study" / "pals_gradvac.md").read_text(encoding="utf-8")
    assert "Cosine similarity" in page
    assert len(list((tmp_path / "study").rglob("result.json"))) == 1


def test_a_failure_is_reported_with_the_last_line_printed(tmp_path: Path, monkeypatch, capsys):
    """Also when much was printed before it, which waits in a buffer of its own."""
    (tmp_path / "failing_job.py").write_text("print('one step');  raise SystemExit('no memory')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(runner, "POLL", 0.05)
    job = Job(tmp_path / "job", {}, (tmp_path / "result.json",), "failing_job")
    assert runner.run_all({"key": job}).failed == {"key": "no memory"}
    assert "job: failed with exit code 1: no memory" in capsys.readouterr().out


def test_a_signal_stops_the_study_and_the_same_command_finishes_it(command, tmp_path: Path):
    words = command("optimusbert", "--rows", "multitask finetune", steps=4000)
    process = subprocess.Popen(
        [sys.executable, "-m", "bert_mtl_demo.study", *words], stdout=subprocess.PIPE, text=True
    )
    place = tmp_path / "study"
    deadline = time.monotonic() + 120
    while not list(place.rglob("last.pt")):
        assert process.poll() is None, process.stdout
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    assert list(place.rglob("last.pt"))
    assert not list(place.rglob("result.json"))


def test_whatever_stops_the_study_stops_its_runs(tmp_path: Path, monkeypatch):
    """A run that ends well but leaves no result is an error here, and the other must not go on."""
    jobs = {name: row_job(Config(), tmp_path / name) for name in ("short", "long")}
    started: dict[str, subprocess.Popen[bytes]] = {}

    def start(job: Job, workers: int) -> subprocess.Popen[bytes]:
        wait = "import time; time.sleep(60)" if job.directory.name == "long" else ""
        process = subprocess.Popen([sys.executable, "-S", "-c", wait], stderr=subprocess.DEVNULL)
        return started.setdefault(job.directory.name, process)

    monkeypatch.setattr(runner, "_start", start)
    monkeypatch.setattr(runner, "POLL", 0.05)
    with pytest.raises(CheckpointError, match=r"result\.json"):
        runner.run_all(jobs, workers=2)
    assert started["long"].poll() is not None


def test_progress_survives_a_line_that_is_just_being_written(tmp_path: Path):
    job = row_job(Config(epochs=2, steps_per_epoch=5), tmp_path)
    log = tmp_path / "run" / "metrics.jsonl"
    log.parent.mkdir()
    log.write_text('{"step": 5}\n', encoding="utf-8")
    assert runner._progress(job) == 0.5
    log.write_text('{"step": 5}\n{"st', encoding="utf-8")
    assert runner._progress(job) == 0


def test_a_damaged_result_is_named_before_anything_runs(command, tmp_path: Path, capfd):
    words = command("optimusbert", "--rows", "multitask finetune", "--seeds", "0", "1")
    # In the folder that the second seed would have.
    made: list[Job] = []

    def note(jobs: dict[str, Job], **_: object) -> runner.Ended:
        made.extend(jobs.values())
        return runner.Ended({}, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_all", note)
        assert main(words) == 0
        made[1].directory.mkdir(parents=True)
        made[1].results[0].write_text("{", encoding="utf-8")
        made.clear()
        assert main(words) == 2
    assert not made
    assert "delete it and run the row again" in capfd.readouterr().err


def test_a_page_of_some_rows_says_so(command, tmp_path: Path):
    assert main(command("optimusbert", "--rows", "multitask finetune", "--page-only")) == 0
    page = (tmp_path / "study" / "optimusbert.md").read_text(encoding="utf-8")
    assert "Only 1 of the report's 20 rows were asked for." in page.split("## Scores")[0]
    assert str(tmp_path / "study") not in page


def test_a_page_names_the_rows_that_its_budget_makes_one(command, tmp_path: Path, capsys):
    assert main(command("bert_mastery", "--rows", "method 2", "method 3", "--page-only")) == 0
    sentence = "'method 2' and 'method 3' are one design under this budget"
    assert f"warning: {sentence}" in capsys.readouterr().out
    page = (tmp_path / "study" / "bert_mastery.md").read_text(encoding="utf-8")
    assert sentence in page.split("## Scores")[0]
    assert "highest sum of dev scores" in page  # the paper's deviations


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pals_gradvacc"], "did you mean 'pals_gradvac'"),
        (["pals_gradvac", "--rows", "Naive"], "unknown row 'Naive'"),
        (["pals_gradvac", "--steps", "0"], "steps = 0"),
        (["pals_gradvac", "--seeds", "x"], "seeds = x"),
        (["pals_gradvac", "--set", "amp"], "must be NAME=VALUE"),
        (["pals_gradvac", "--set", "ampp=off"], "did you mean 'amp'"),
        (["all", "--rows", "Naive multitask"], "name the report whose rows they are"),
        (["pals_gradvac", "--probe-batches", "8"], "only the study 'conflicts'"),
        (["conflicts", "--keep-weights"], "leave it out"),
        (["conflicts", "--fraction", ".1"], "give --epochs and --steps"),
        (["pals_gradvac", "--as-published"], "leave it out"),
        (["pals_gradvac", "--fraction", "2"], "fraction = 2"),
        (["pals_gradvac", "--fraction", ".1", "--steps", "5"], "both say how long an epoch is"),
        (["conflicts", "--page-only"], "without --page-only"),
        (["pals_gradvac", "--lr-scale", "0"], "lr_scale = 0"),
        (["pals_gradvac", "--data", "no-such-directory"], "no-such-directory"),
        (["pals_gradvac", "--encoder", "no-such-encoder"], "no-such-encoder"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(words, says, tmp_path, capsys):
    assert main([*words, "--output", str(tmp_path / "study")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
