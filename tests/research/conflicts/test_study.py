"""The conflict study from first step to page on the tiny encoder, and its committed results."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.reporting import plots
from bert_mtl_demo.store import write_json
from bert_mtl_demo.study import runner
from bert_mtl_demo.study.__main__ import main
from bert_mtl_demo.study.runner import Job
from bert_mtl_demo.study.settings import StudySettings
from bert_mtl_demo.training import run as training_run
from research.conflicts import __main__ as command_line
from research.conflicts import jobs, records, study
from research.conflicts.arms import ARMS, configs_of, probed_config
from research.conflicts.pieces import Piece
from research.conflicts.study import run_study

COMMITTED = Path(__file__).parents[3] / "docs" / "study" / "conflicts"

SECTIONS = [
    "The answer",
    "Alterations under two rules",
    "Pair by pair",
    "Layer by time",
    "Signal and noise",
    "The expected gradients",
    "The size of the change",
    "Scores",
    "What the published conclusion rested on",
    "Budget, and how to repeat it",
]


def _once(load: Callable[..., Any]) -> Callable[..., Any]:
    """The sample is drawn afresh by every call, which takes longer than a tiny run."""
    found: list[Any] = []

    def again(*arguments: Any, **keywords: Any) -> Any:
        if not found:
            found.append(load(*arguments, **keywords))
        return found[0]

    return again


@pytest.fixture
def settings(
    tiny_encoder: str, tmp_path: Path, small_data: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., StudySettings]:
    """Two seeds of two epochs of three steps; keywords change them. Jobs run in this process."""
    monkeypatch.setattr(study, "PUBLISHED", {"steps": 200, "epochs": 2})
    monkeypatch.setattr(training_run, "load", _once(training_run.load))
    monkeypatch.setattr(runner, "_start", _in_process)
    monkeypatch.setattr(runner, "POLL", 0)

    def make(**changes: Any) -> StudySettings:
        base: dict[str, Any] = {
            "encoder": tiny_encoder,
            "output": str(tmp_path / "study"),
            "seeds": (0, 1),
            "epochs": 2,
            "steps": 3,
            "probe_batches": 32,
            "set": {"max_length": 64, "batch_size": 4, "lr": 1e-3, "device": "cpu"},
        }
        return StudySettings(**{**base, **changes})

    return make


def _in_process(job: Job, workers: int) -> Any:
    write_json(job.directory / "settings.json", job.settings)
    job.log.touch()
    code = importlib.import_module(job.module).run(job.directory)
    return SimpleNamespace(poll=lambda: code, returncode=code)


def test_the_page_stands_on_its_pieces_alone(
    settings: Callable[..., StudySettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_study(settings()) == 0
    place = tmp_path / "study" / "conflicts" / "conflicts.md"
    text = place.read_text("utf-8")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == SECTIONS
    for picture in place.parent.glob("*.png"):
        assert f"]({picture.name})" in text
    assert "nan" not in text
    assert str(place.parent.parent) not in text.replace(str(settings().encoder), "")
    assert not list(place.parent.rglob("*.pt")) + list(place.parent.rglob("*.safetensors"))
    _check_arms(study.load(place.parent)["pieces"])

    # A second time nothing is computed: not even what computes is called.
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("this piece is there")

    for module, name in ((records, "record_of"), (records, "layer_map"), (jobs, "probe_stage")):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr("research.conflicts.simulation.alterations", never)
    monkeypatch.setattr(plots, "save", lambda figure, path: path)
    place.unlink()
    assert run_study(settings()) == 0
    assert place.read_text("utf-8") == text
    # Another learning rate is another study.
    with pytest.raises(AssertionError, match="this piece is there"):
        run_study(settings(set={**settings().set, "lr": 1e-4}))


def _check_arms(pieces: dict[str, Any]) -> None:
    """Same seed, same first losses and cosines: the arms differ by their method alone."""
    assert list(pieces["runs"]) == list(ARMS)
    for seed in ("0", "1"):
        first = [pieces["runs"][arm][seed]["windows"][0]["pairs"] for arm in ARMS]
        assert len({json.dumps([pair["mean"] for pair in pairs]) for pairs in first}) == 1
    plain = pieces["runs"]["sum"]["0"]["epochs"]
    assert all(epoch["change"] == 0 and not epoch["gradients"]["altered"] for epoch in plain)
    assert sum(p["possible"] for epoch in plain for p in epoch["pairs"]) == 2 * 3 * 6
    layers = pieces["layers"]
    assert list(layers["pairs"]) == ["sst, para", "sst, sts", "para, sts"]
    assert not any("heads" in name for name in layers["segments"])
    assert all(len(row) == len(layers["steps"]) for row in layers["pairs"]["sst, sts"])
    # The last stage is the end of the very run of the plain sum.
    assert pieces["probes"]["after training"]["scores"] == pytest.approx(
        pieces["runs"]["sum"]["0"]["scores"], abs=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"probe_batches": 12}, "power of two"),
        ({"probe_batches": 2}, "at least 4 blocks"),
        ({"seeds": ()}, "at least one"),
        ({"seeds": (1, 1)}, "each once"),
        ({"steps": 0}, "at least 1"),
        ({"epochs": 1, "steps": 1}, "before, halfway, after"),
        ({"set": {"tasks": ("sst",)}}, "at least two tasks"),
        ({"set": {"batching": "round_robin"}}, "zipped"),
        ({"set": {"no_such": 1}}, "unknown setting"),
        ({"set": ["method=pcgrad"]}, "leave it out"),
        ({"set": ["epochs=7"]}, "by --epochs"),
        ({"rows": ("sum",)}, "leave it out"),
        ({"keep_weights": True}, "leave it out"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        run_study(StudySettings(output=str(tmp_path / "study"), **changes))
    assert not (tmp_path / "study").exists()


def test_a_failed_arm_is_reported_and_the_others_go_on(
    settings: Callable[..., StudySettings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the same command tries it again, in real processes: one to fail, one to succeed."""
    words = settings(seeds=(0,))
    assert run_study(words) == 0
    study_directory = words.directory / "conflicts"
    (study_directory / "conflicts.md").unlink()
    for arm in ("pcgrad", "sum"):
        (piece,) = (study_directory / "pieces").glob(f"run-{arm}-0-*")
        piece.unlink()
    (run,) = (study_directory / "runs").glob("pcgrad-0-*/run")
    shutil.rmtree(run)
    run.write_text("in the way", encoding="utf-8")
    monkeypatch.undo()
    capsys.readouterr()
    assert run_study(words) == 1
    said = capsys.readouterr().out
    assert "3 of 5 runs are finished already" in said
    assert "failed with exit code" in said
    assert "log.txt" in said
    assert "1 of 5 runs failed, and the page needs them all" in said
    assert list((study_directory / "pieces").glob("run-sum-0-*"))
    assert not (study_directory / "conflicts.md").exists()


# --- results that were published


def test_the_committed_page_is_rebuilt_to_the_same_bytes(tmp_path: Path) -> None:
    """Command line and all, by the command that a reader would use."""
    shutil.copytree(COMMITTED, tmp_path / "conflicts")
    (tmp_path / "conflicts" / "conflicts.md").unlink()
    assert main(["conflicts", "--page-only", "--output", str(tmp_path)]) == 0
    written = (tmp_path / "conflicts" / "conflicts.md").read_bytes()
    assert written == (COMMITTED / "conflicts.md").read_bytes()


def test_committed_pieces_are_found_by_their_settings() -> None:
    """Those that hold all of their settings: of the others the data's directory is left out."""
    paths = sorted((COMMITTED / "pieces").glob("simulation-*.json"))
    assert len(paths) == 5
    for path in paths:
        content = json.loads(path.read_text("utf-8"))
        piece = Piece(path.parent, content["name"], content["settings"])
        assert piece.path == path
        assert piece.get(pytest.fail) == content["result"]


# Settings -> the keys of the arms, of the map of layers and of the probes, with seed 0.
KEYS = [
    (
        {},
        ["036d032661", "4e41ab8ba8", "6a9fcb85f4", "fa3f1d1762"],
        ["5259249363", "6c65f741d9", "4736fe9c96", "8e079c5de0"],
    ),
    (
        {
            "epochs": 4,
            "steps": 40,
            "lr_scale": 10,
            "set": {"dev_limit": "500", "train_limit": "10000", "max_length": "64"},
        },
        ["adaffbcfc5", "e28eaad543", "a21fd6ed94", "00b81b36dc"],
        ["b4ebbccaec", "cefe892df0", "713fa29d19", "ef78c69751"],
    ),
]


@pytest.mark.parametrize(("changes", "arms", "probes"), KEYS, ids=["defaults", "published"])
def test_finished_pieces_are_found_again(
    changes: dict[str, Any], arms: list[str], probes: list[str]
) -> None:
    """The keys are those of the first published study."""
    settings, root = StudySettings(**changes), Path("study")
    configs, probed = configs_of(settings), probed_config(settings)
    assert [jobs.arm_piece(root, arm, configs[arm, 0]).key for arm in ARMS] == arms
    pieces = [jobs.layers_piece(root, probed), *jobs.probe_pieces(root, probed, 256).values()]
    assert [piece.key for piece in pieces] == probes


# --- the command lines


def test_the_study_has_a_command_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["--page-only", "--output", str(tmp_path)]) == 2
    assert "study.json: cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command_line.main(["--help"])
    assert "usage: python -m research.conflicts" in capsys.readouterr().out


def test_without_research_the_command_says_where_to_run_it(tmp_path: Path) -> None:
    """As in an installed package, which does not hold it."""
    code = (
        "import sys; sys.modules['research'] = None\n"
        "from bert_mtl_demo.study.__main__ import main\n"
        f"sys.exit(main(['conflicts', '--output', {str(tmp_path)!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "Run it from a clone of the repository" in ended.stderr
