"""Several processes train what one trains: the same curve for the same batches, one set of logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bert_mtl_demo.config import STS_LOSSES, Config
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.model.losses import SIMILARITY_LOSSES, LossInputs
from bert_mtl_demo.training.checkpoint import load_state, load_weights
from bert_mtl_demo.training.data_parallel import (
    BY_EXAMPLE,
    Shard,
    draw_apart,
    refuse_comparing,
    warnings,
)
from bert_mtl_demo.training.logs import read_lines
from bert_mtl_demo.training.processes import ALONE, Processes, from_environment
from bert_mtl_demo.training.run import continue_run, start_run
from tests.bert_mtl_demo.training.ranks import small, still

CLOCK = {"seconds", "steps_per_second", "data_seconds", "peak_memory", "run", "crc32"}
LOGS = ("metrics.jsonl", "conflicts.jsonl")


@dataclass(frozen=True)
class Together:
    """What two processes left."""

    place: Path
    encoder: str
    ranks: list[dict[str, Any]]


@pytest.fixture(scope="module")
def together(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Together:
    """One torchrun for all of it: starting it is what costs."""
    folder, root = tmp_path_factory.mktemp("together"), Path(__file__).parents[3]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(Path(__file__).with_name("ranks.py")), str(folder), tiny_encoder]
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher, *script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    begun = start_run(still(tiny_encoder, folder / "begun by one", max_steps=3)).path
    (begun / "ready").touch()
    try:
        said, _ = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        process.terminate()  # and it ends those it started
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return Together(folder, tiny_encoder, ranks)


def assert_close(one: Any, other: Any, where: str = "") -> None:
    """The same numbers but for rounding, and the same of all else; the clock is left out."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one.keys() - CLOCK:
            assert_close(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for n, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{where}[{n}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5), where
    else:
        assert one == other, where


def assert_same_curve(one: Path, other: Path) -> None:
    for name in LOGS:
        assert_close(read_lines(one / name), read_lines(other / name), name)
    weights = [load_state(path / "last.pt")["model"] for path in (one, other)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-5)


def test_the_command_trains_what_one_process_trains(together: Together, tmp_path: Path) -> None:
    assert [seen["place"] for seen in together.ranks] == [[0, 2, 0], [1, 2, 1]]
    alone = start_run(still(together.encoder, tmp_path / "alone", method="gradvac")).path
    assert_same_curve(alone, together.place / "command")


def test_only_the_first_process_speaks(together: Together) -> None:
    first, second = (seen["command"] for seen in together.ranks)
    assert (first["code"], second["code"]) == (0, 0)
    assert "in 2 processes" in first["out"]
    assert "  best\n" in first["out"]
    assert second["out"] == second["err"] == ""
    assert (together.place / "command" / "report.md").exists()


def test_idle_processes_and_learned_weights_change_nothing(
    together: Together, tmp_path: Path
) -> None:
    changes = {"batch_size": 1, "weighting": "uncertainty", "batching": "uniform_partial"}
    alone = start_run(still(together.encoder, tmp_path / "alone", **changes)).path
    assert_same_curve(alone, together.place / "idle")


def test_a_loss_that_one_process_lost_is_skipped_by_all(together: Together) -> None:
    rows = [r for r in read_lines(together.place / "spoiled" / "metrics.jsonl") if "loss" in r]
    assert [row["nonfinite"] for row in rows] == [0, 1, 0, 0, 0, 0]
    assert [list(row["loss"]) for row in rows[:3]] == [["sst", "para", "sts"], ["sst"]] + [
        ["sst", "para", "sts"]
    ]
    for seen in together.ranks:
        assert seen["gave up"].startswith("gave up at step 2: the loss of task para is nan")


def test_a_run_goes_on_in_another_number_of_processes(together: Together, tmp_path: Path) -> None:
    alone = start_run(still(together.encoder, tmp_path / "alone")).path
    assert continue_run(together.place / "begun by two", {"max_steps": "none"}).done
    # Told to stop, they scored dev after step 3 as well.
    for path in (together.place / "begun by one", together.place / "begun by two"):
        both = [[r for r in read_lines(p / "metrics.jsonl") if "loss" in r] for p in (alone, path)]
        assert_close(*both)
        for name in ("model", "optimizer", "scheduler"):
            assert_close_tensors(*(load_state(p / "last.pt")[name] for p in (alone, path)))


def assert_close_tensors(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close_tensors(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def without_clock(log: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in read_lines(log)]


def test_stopped_by_one_and_resumed_is_bitwise_uninterrupted(together: Together) -> None:
    """With dropout, which each process draws for itself."""
    assert [seen["stopped"] for seen in together.ranks] == [[False, 143]] * 2
    whole, halves = (together.place / name for name in ("whole", "halves"))
    for name in LOGS:
        assert without_clock(whole / name) == without_clock(halves / name)
    one, other = (load_weights(path / "best.safetensors") for path in (whole, halves))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    state = load_state(whole / "last.pt")
    (second,) = state["random_elsewhere"]
    assert not torch.equal(state["random"]["torch"], second["torch"])


def test_two_processes_draw_two_dropouts(together: Together, tmp_path: Path) -> None:
    alone = start_run(small(together.encoder, tmp_path / "alone", max_steps=1)).path
    first = [read_lines(path / "metrics.jsonl")[1] for path in (alone, together.place / "whole")]
    assert first[0]["loss"] != pytest.approx(first[1]["loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("what", "part"),
    [
        ("used", "exists and is not empty"),
        ("comparing", "sts_loss = simcse in 2 processes"),
        ("one has no data", "data0"),
        ("wrong", "epochs = 0"),
    ],
)
def test_what_is_refused_is_refused_by_all_and_said_once(
    together: Together, what: str, part: str
) -> None:
    first, second = (seen["refused"][what] for seen in together.ranks)
    assert (first["code"], second["code"]) == (2, 2)
    assert first["err"].count("error: ") == 1
    assert part in first["err"]
    assert second["err"] == second["out"] == ""
    assert not (together.place / "refused").exists()


def test_a_stage_is_trained_once_and_reaches_all(together: Together) -> None:
    assert [seen["pretrained"] for seen in together.ranks] == [True, False]
    assert read_lines(together.place / "pretrained" / "metrics.jsonl")[-1]["kind"] == "dev"


@pytest.mark.parametrize("part", ["checkpoint", "log"])
def test_a_full_disk_of_the_first_ends_all(together: Together, part: str) -> None:
    """The second writes nothing, and would wait for the first."""
    first, second = (seen[f"full {part}"] for seen in together.ranks)
    assert (first["code"], second["code"]) == (1, 1)
    assert "No space left on device" in first["err"]
    assert f"--resume {together.place / f'full {part}'}" in first["err"]
    assert second["out"] == second["err"] == ""


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_shares_make_up_the_batch(size: int, world: int) -> None:
    shards = [Shard.of(range(10, 10 + size), Processes(rank, world)) for rank in range(world)]
    dealt = [index for shard in shards if shard.fraction for index in shard.indices]
    assert sorted(dealt) == list(range(10, 10 + size))
    assert sum(shard.fraction for shard in shards) == pytest.approx(1)
    counts = [len(shard.indices) for shard in shards if shard.fraction]
    assert max(counts) - min(counts) <= 1
    assert all(shard.indices and shard.batch_size == size for shard in shards)


@pytest.mark.parametrize("loss", BY_EXAMPLE)
@pytest.mark.parametrize("world", [2, 3, 7])
def test_the_mean_of_weighted_shares_is_the_gradient_of_the_batch(loss: str, world: int) -> None:
    generator = torch.Generator().manual_seed(world)
    u, v = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0.0, 5.0, 2.0, 4.0, 1.0])
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def gradient(rows: list[int], weight: float) -> torch.Tensor:
        answer = (u[rows] * w) @ torch.ones(3, dtype=torch.float64)
        seen = LossInputs(answer, labels[rows], u[rows] * w, v[rows])
        return torch.autograd.grad(weight * SIMILARITY_LOSSES[loss](seen), w)[0]

    shards = [Shard.of(range(5), Processes(rank, world)) for rank in range(world)]
    mean = sum(gradient(shard.indices, shard.weight) for shard in shards) / world
    torch.testing.assert_close(mean, gradient(list(range(5)), 1.0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("loss", [name for name in STS_LOSSES if name not in BY_EXAMPLE])
def test_a_loss_that_compares_examples_is_refused(loss: str) -> None:
    refuse_comparing(Config(sts_loss=loss), ALONE)
    refuse_comparing(Config(sts_loss=loss, untrained=["sts"]), Processes(0, 2))
    with pytest.raises(ConfigError, match=f"sts_loss = {loss} in 2 processes.*--sts-loss mse"):
        refuse_comparing(Config(sts_loss=loss), Processes(0, 2))


def test_more_processes_than_examples_is_warned_about() -> None:
    assert not warnings(Config(batch_size=4), Processes(0, 4))
    assert "2 processes have nothing" in warnings(Config(batch_size=2), Processes(0, 4))[0]


def test_the_first_process_draws_what_one_process_draws() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draw_apart(Config(), Processes(0, 2))
    assert torch.equal(torch.get_rng_state(), before)
    draws = set()
    for rank, world, step in ((1, 2, 0), (2, 3, 0), (1, 3, 0), (0, 3, 7), (1, 3, 7)):
        draw_apart(Config(), Processes(rank, world), step)
        draws.add(torch.rand(1).item())
    assert len(draws) == 5


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK is x"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is two"),
    ],
    ids=str,
)
def test_half_an_environment_is_refused(environment: dict[str, str], part: str) -> None:
    with pytest.raises(ConfigError, match=f"{part}.*torchrun"):
        from_environment(environment)


def accelerated(monkeypatch: pytest.MonkeyPatch, kind: str, count: int) -> None:
    """Have this machine say that it has an accelerator."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_auto_is_the_accelerator(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(ALONE.device("auto")) == ("cuda" if torch.cuda.is_available() else "cpu")
    accelerated(monkeypatch, kind, 1)
    assert str(ALONE.device("auto")) == str(ALONE.device(kind)) == kind
    with pytest.raises(ConfigError, match=f"{kind}:1: this machine has 1 {kind.upper()} devices"):
        ALONE.device(f"{kind}:1")
    absent = "xpu" if kind == "mps" else "mps"
    with pytest.raises(ConfigError, match=f"has 0 {absent.upper()} devices"):
        ALONE.device(absent)
    if kind != "cuda":
        with pytest.raises(ConfigError, match=f"in 2 processes: on {kind} there is one"):
            Processes(0, 2, 0).device("auto")
    accelerated(monkeypatch, "hpu", 1)  # which nobody has run the demo on
    assert str(ALONE.device("auto")) == "cpu"


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    accelerated(monkeypatch, "cuda", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert str(Processes(3, 4, 1).device("auto")) == "cuda:1"
    assert [str(device) for device in taken] == ["cuda:1"]
    assert str(Processes(3, 4, 1).device("cpu")) == "cpu"
    assert str(ALONE.device("cuda:1")) == "cuda:1"
    with pytest.raises(ConfigError, match="cuda:1 in 2 processes"):
        Processes(0, 2, 0).device("cuda:1")
    with pytest.raises(ConfigError, match="2 CUDA devices, and process 3"):
        Processes(2, 3, 2).device("cuda")


def test_accelerate_launch_is_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hands the command over, so what holds of torchrun's environment holds of its own."""
    launch = pytest.importorskip("accelerate.commands.launch")
    handed: list[Any] = []
    monkeypatch.setattr("torch.distributed.run.run", handed.append)
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "bert_mtl_demo.train"]
    launch.launch_command(launch.launch_command_parser().parse_args(options))
    assert str(handed[0].nproc_per_node) == "2"
    assert handed[0].training_script == "bert_mtl_demo.train"
