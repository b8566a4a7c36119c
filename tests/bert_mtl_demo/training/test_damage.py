"""Damaged, edited and planted files of a run: refused, repaired, or not written through."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bert_mtl_demo import evaluate
from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import CheckpointError, StorageError
from bert_mtl_demo.reporting.run_report import write_report
from bert_mtl_demo.training.checkpoint import (
    RunDirectory,
    load_state,
    load_weights,
    save_state,
    save_weights,
)
from bert_mtl_demo.training.logs import check, cut
from bert_mtl_demo.training.run import continue_run, start_run

Settings = Callable[..., Config]
Change = Callable[[Path], object]
TENSORS = {f"layer{n}": torch.linspace(-1, 1, 40 + n) for n in range(4)}


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return one == other


def flip(path: Path, rng: random.Random, lowest: int = 0) -> None:
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(lowest, len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["last.pt", "best.safetensors"])
def test_a_flipped_bit_is_refused_or_means_nothing(tmp_path: Path, kind: str) -> None:
    """Between the entries of a zip archive there are bytes that nothing reads."""
    path, intact = tmp_path / kind, tmp_path / "intact"
    if kind == "last.pt":
        save_state(intact, {"model": TENSORS, "progress": {"step": 7}})
    else:
        save_weights(intact, TENSORS, {"step": 7}, {"settings": {"lr": 0.1}})
    load = load_state if kind == "last.pt" else load_weights
    expected, rng, refused = load(intact), random.Random(0), 0
    for _ in range(300):
        shutil.copy(intact, path)
        flip(path, rng)
        try:
            assert same(load(path), expected)
        except CheckpointError:
            refused += 1
    assert refused > (100 if kind == "last.pt" else 285)


def test_weights_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("one", "other"):
        save_weights(tmp_path / name, TENSORS, {"step": 7}, {"files": {"a": "b"}})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(settings: Settings, trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, which is trained once."""
    if not trained.exists():
        start_run(settings(output=str(trained), epochs=2, max_steps=8, log_every=1))
    return Path(shutil.copytree(trained, tmp_path / "run"))


def replace(name: str, old: str, new: str) -> Change:
    def change(run: Path) -> None:
        text = (run / name).read_text("utf-8")
        assert old in text
        (run / name).write_text(text.replace(old, new), "utf-8")

    return change


EDITED = [
    (replace("config.json", '"lr": 0.001', '"lr": 0.002'), "lr = 0.002, but .* lr = 0.001"),
    (replace("config.json", '"seed": 0', '"seed": 1'), "config.json: has seed = 1"),
    (
        replace("encoder/config.json", "1e-12", "1e-02"),
        r"encoder/config\.json: is damaged or was edited",
    ),
    (lambda run: (run / "encoder/config.json").unlink(), r"encoder/config\.json: is missing"),
    (lambda run: (run / "encoder/tokenizer.json").write_text("{"), "tokenizer.json: is damaged"),
]
LOGS = [
    (
        lambda run: flip(run / "best.safetensors", random.Random(1), 9000),
        r"best\.safetensors: is d",
    ),
    (replace("metrics.jsonl", '"step": 2', '"step": 3'), r"metrics\.jsonl: is damaged: its CRC"),
    (replace("conflicts.jsonl", '"step": 2', '"step": 3'), r"conflicts\.jsonl: is damaged"),
]


@pytest.mark.parametrize(("change", "message"), EDITED + LOGS)
def test_what_was_edited_or_damaged_is_refused_when_a_run_goes_on(
    run: Path, change: Change, message: str
) -> None:
    change(run)
    with pytest.raises(CheckpointError, match=message):
        continue_run(run, {})


@pytest.mark.parametrize(("change", "message"), EDITED)
def test_and_when_it_is_evaluated(run: Path, change: Change, message: str) -> None:
    change(run)
    with pytest.raises(CheckpointError, match=message):
        evaluate.evaluate(run, device="cpu")


def test_how_far_to_go_may_be_edited_and_is_told(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace("config.json", '"max_steps": 8', '"max_steps": 9')(run)
    assert continue_run(run, {}).done
    assert "max_steps is 9 and was 8 at the last checkpoint" in capsys.readouterr().out
    assert load_state(run / "last.pt")["progress"]["step"] == 9


@pytest.mark.parametrize("name", ["metrics.jsonl", "conflicts.jsonl"])
def test_a_lost_log_is_told_and_the_report_copes(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    size = (run / name).stat().st_size
    (run / name).unlink()
    assert continue_run(run, {"max_steps": 12}).done
    assert f"{name}: {size} of {size} bytes are missing" in capsys.readouterr().out
    assert "leaderboard" in write_report(run)


def test_lost_weights_are_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "best.safetensors").unlink()
    assert continue_run(run, {}).done
    assert "best.safetensors is missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", [None, "{", '{"sizes": {"sst": {"train": 3, "dev": 3}}, "skipped": []}']
)
def test_lost_sizes_of_the_data_are_written_again(
    run: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run / "data.json"
    before = data.read_text("utf-8")
    data.unlink() if content is None else data.write_text(content)
    continue_run(run, {})
    assert "data.json is missing or damaged, and is written again" in capsys.readouterr().out
    assert data.read_text("utf-8") == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("garbage", "metrics.jsonl:2: is no JSON object"),
        ("[" * 50_000, "metrics.jsonl:2: is no JSON object"),
        ("3", "metrics.jsonl:2: is no JSON object"),
        ('{"kind": "dev", "step": 1}', "metrics.jsonl:2: has no epoch, scores"),
        ('{"kind": "train", "step": 1, "epoch": 1, "loss": {"\\u001b[2J": 1}}', r"'\\x1b\[2J'"),
        ('{"kind": "other"}', "is of kind 'other'"),
    ],
    ids=range(6),
)
def test_lines_that_no_report_could_read_are_refused(
    tmp_path: Path, line: str, message: str
) -> None:
    """Without a checksum, as 0.1.0 left them; and by the report."""
    run = RunDirectory(tmp_path)
    run.save_config(Config())
    first = '{"kind": "model", "step": 0, "trained_parameters": 9}\n'
    run.metrics.write_text(first + line + "\n", "utf-8")
    with pytest.raises(CheckpointError, match=message):
        check(run, {"metrics.jsonl": run.metrics.stat().st_size}, ("sst", "para", "sts"))
    with pytest.raises(CheckpointError, match=message):
        write_report(tmp_path)


def test_a_full_disk_while_cutting_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path)
    run.metrics.write_text('{"step": 1}\n{"step": 2}\n')

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="Free some space"):
        cut(run, {"metrics.jsonl": 12})
    assert run.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


APPENDED = ["metrics.jsonl", "conflicts.jsonl", "tensorboard", ".lock"]
REPLACED = ["report.md", "losses.png", "conflicts.png", "evaluation.md", "evaluation.json"]
REPLACED += ["confusion_sst.png", "config.json", "last.pt", "best.safetensors", "data.json"]


def outside(run: Path, name: str, link: Callable[[Path, Path], object]) -> tuple[Path, bytes]:
    """A file outside of a run, and a link to it in the run."""
    file = run.parent / f"outside {name}"
    path = run / name
    content = path.read_bytes() if path.is_file() else b"precious"
    file.write_bytes(content)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    link(path, file)
    return file, content


@pytest.mark.parametrize("name", APPENDED)
def test_a_link_that_a_run_would_add_to_is_refused(run: Path, name: str) -> None:
    file, content = outside(run, name, Path.symlink_to)
    with pytest.raises(CheckpointError, match=f"{name}: is a link to"):
        continue_run(run, {"max_steps": 10})
    assert file.read_bytes() == content


def test_a_link_is_replaced_and_not_written_through(run: Path) -> None:
    files = [outside(run, name, Path.symlink_to) for name in REPLACED]
    files += [outside(run, name, Path.hardlink_to) for name in APPENDED[:2]]  # as in a backup
    continue_run(run, {"max_steps": 10})
    write_report(run)
    evaluate.evaluate(run, device="cpu")
    for file, content in files:
        assert file.read_bytes() == content, file
    links = [path.name for path in run.iterdir() if path.is_symlink()]
    assert set(links) <= {"best.safetensors", "data.json"}  # there was nothing new to write


def test_names_are_text_on_the_page_and_on_the_terminal(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of data and labels, which may come from anybody's run directory."""
    config = json.loads((run / "config.json").read_text("utf-8"))
    config["data"] = "a|b<img src=x>\x1b[2J![x](y)"
    (run / "config.json").write_text(json.dumps(config), "utf-8")
    data = {"sizes": {"a|b\x1b[2J": {"train": 1, "dev": 1}}, "skipped": []}
    (run / "data.json").write_text(json.dumps(data), "utf-8")
    write_report(run)
    page = (run / "report.md").read_text("utf-8")
    for part in ("\x1b", "<img", "| a|b", "!["):
        assert part not in page.partition("## Pictures")[0], part
    assert r"a\|b&lt;img src=x&gt;\x1b\[2J!\[x](y)" in page
