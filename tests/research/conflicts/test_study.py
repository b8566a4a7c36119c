"""The conflict study from its first step to its page, on the tiny encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.reporting import plots
from bert_mtl_demo.training import run as training_run
from research.conflicts import Options, run, study
from research.conflicts.options import ARMS

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
def options(
    tiny_encoder: str, tmp_path: Path, small_data: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Options]:
    """Two seeds of two epochs of three steps; keywords change them."""
    monkeypatch.setattr(study, "PUBLISHED", {"steps": 200, "epochs": 2})
    monkeypatch.setattr(training_run, "load", _once(training_run.load))

    def make(**changes: Any) -> Options:
        base: dict[str, Any] = {
            "encoder": tiny_encoder,
            "output": tmp_path / "study",
            "seeds": (0, 1),
            "epochs": 2,
            "steps": 3,
            "batch_size": 4,
            "lr": 1e-3,
            "probe_batches": 8,
            "blocks": 4,
            "device": "cpu",
            "settings": {"max_length": 64},
        }
        return Options(**{**base, **changes})

    return make


def test_the_page_stands_on_its_pieces_alone(
    options: Callable[..., Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = run(options())
    text = place.read_text("utf-8")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == SECTIONS
    for picture in place.parent.glob("*.png"):
        assert f"]({picture.name})" in text
    assert "nan" not in text
    assert str(place.parent.parent) not in text.replace(str(options().encoder), "")
    assert not list(place.parent.rglob("*.pt")) + list(place.parent.rglob("*.safetensors"))
    _check_arms(study.load(place.parent)["pieces"])

    # A second time nothing is computed: not even what computes is called.
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("this piece is there")

    for name in ("training.compared", "stages.Staged.probe", "stages.Staged.layers"):
        monkeypatch.setattr(f"research.conflicts.{name}", never)
    monkeypatch.setattr("research.conflicts.simulation.alterations", never)
    monkeypatch.setattr(plots, "save", lambda figure, path: path)
    place.unlink()
    assert run(options()).read_text("utf-8") == text
    # Another learning rate is another study.
    with pytest.raises(AssertionError, match="this piece is there"):
        run(options(lr=1e-4))


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
        ({"blocks": 2}, "at least 4 blocks"),
        ({"seeds": ()}, "at least one"),
        ({"seeds": (1, 1)}, "each once"),
        ({"steps": 0}, "at least 1"),
        ({"epochs": 1, "steps": 1}, "before, halfway, after"),
        ({"settings": {"tasks": ("sst",)}}, "at least two tasks"),
        ({"settings": {"batching": "round_robin"}}, "zipped"),
        ({"settings": {"no_such": 1}}, "unknown setting"),
    ],
)
def test_options_that_cannot_work_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Options(**changes)
