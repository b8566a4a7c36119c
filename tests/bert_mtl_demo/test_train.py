"""Training end to end: what a run leaves, what each setting changes, what it says on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bert_mtl_demo import train
from bert_mtl_demo.config import METHODS
from bert_mtl_demo.data import load
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.evaluate import evaluate
from bert_mtl_demo.reporting.run_report import write_report
from bert_mtl_demo.tasks import resolve
from bert_mtl_demo.training.run import continue_run, load_splits, start_run

# A frozen encoder leaves the tasks nothing in common, which the run says at its start as well.
pytestmark = pytest.mark.filterwarnings(
    "ignore:no parameter has gradients of two tasks:gradsurgery.SurgeryWarning"
)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_logs_and_counts(settings, rows_of, method):
    outcome = start_run(settings(method=method))
    assert outcome.done
    assert outcome.exit_code == 0

    rows = rows_of(outcome.path, "metrics.jsonl")
    train_rows = [row for row in rows if row["kind"] == "train"]
    dev = [row for row in rows if row["kind"] == "dev"]
    assert [row["step"] for row in train_rows] == [4, 6, 8, 12]  # windows end with their epoch
    assert [(row["step"], row["epoch"]) for row in dev] == [(6, 1), (12, 2)]
    assert set(train_rows[0]["loss"]) == {"sst", "para", "sts"}
    assert train_rows[-1]["lr"] > 0  # the rate that was used, not the next one

    windows = rows_of(outcome.path, "conflicts.jsonl")
    assert sum(line["window"] for line in windows) == 12
    assert sum(line["gradients"]["possible"] for line in windows) == 36
    altered = sum(line["gradients"]["altered"] or 0 for line in windows)
    conflicts = sum(pair["conflicts"] for line in windows for pair in line["pairs"])
    assert conflicts > 0  # all methods count, also the one that changes nothing
    assert (altered == 0) == (method in ("sum", "sham"))  # the sham counts none


def test_methods_differ_only_from_the_first_conflict_on(settings, rows_of):
    ways = {}
    for method in ("sum", "pcgrad"):
        path = start_run(settings(method, method=method, log_every=1, dropout=0)).path
        losses = [row["loss"] for row in rows_of(path, "metrics.jsonl") if row["kind"] == "train"]
        clashes = [
            any(pair["conflicts"] for pair in line["pairs"])
            for line in rows_of(path, "conflicts.jsonl")
        ]
        ways[method] = losses, clashes.index(True)
    first = ways["sum"][1]
    assert ways["pcgrad"][1] == first
    assert ways["sum"][0][: first + 1] == ways["pcgrad"][0][: first + 1]
    assert ways["sum"][0][first + 1 :] != ways["pcgrad"][0][first + 1 :]


def test_overall_scores_are_the_two_named_means(settings, rows_of):
    path = start_run(settings(max_steps=3)).path
    dev = rows_of(path, "metrics.jsonl")[-1]
    sst, para, sts = (dev["scores"][name] for name in ("sst", "para", "sts"))
    assert dev["mean"] == pytest.approx((sst + para + sts) / 3)
    assert dev["leaderboard"] == pytest.approx((sst + para + (sts + 1) / 2) / 3)


def test_the_best_epoch_is_kept_not_the_last(settings, rows_of, monkeypatch):
    from safetensors import safe_open

    means = iter([0.5, 0.5, 0.9, 0.9, 0.7, 0.7])  # of each epoch: reported, and chosen by
    monkeypatch.setattr(
        "bert_mtl_demo.training.trainer.mean_score", lambda scores, tasks: next(means)
    )
    path = start_run(settings(epochs=3)).path
    dev = [row for row in rows_of(path, "metrics.jsonl") if row["kind"] == "dev"]
    assert [row["best"] for row in dev] == [True, True, False]
    with safe_open(path / "best.safetensors", "pt") as file:
        assert json.loads(file.metadata()["run"])["epoch"] == 2
        kept = file.get_tensor("heads.sst.linear.weight")
    last = torch.load(path / "last.pt", weights_only=True)["model"]["heads.sst.linear.weight"]
    assert not torch.equal(kept, last)


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_the_model_learns(settings, rows_of, task):
    config = settings(
        tasks=[task], epochs=1, steps_per_epoch=60, lr=3e-3, dropout=0, log_every=12, warmup=0
    )
    losses = [
        row["loss"][task]
        for row in rows_of(start_run(config).path, "metrics.jsonl")
        if row["kind"] == "train"
    ]
    # Five classes of sentiment are slow from a random encoder; two halves of a pair are quick.
    assert losses[-1] < (0.95 if task == "sst" else 0.75) * losses[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"amp": "bf16"},
        {"amp": "fp16"},
        {"pooling": "cls"},
        {"pooling": "pooler"},
        {"sts_head": "concat"},
        {"grouping": "tensor"},
        {"method": "gradvac", "gradvac_update": "on_alter"},
        {"method": "gradvac", "gradvac_target": 0.5},
        {"clip": 0, "schedule": "constant"},
        {"batch_size": 100},
    ],
    ids=str,
)
def test_every_setting_trains(settings, changes):
    outcome = start_run(settings(epochs=1, steps_per_epoch=3, **changes))
    assert outcome.done
    weights = torch.load(outcome.path / "last.pt", weights_only=True)["model"]
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": ["sts"]},
        {"tasks": ["sst", "para"], "grouping": "layer"},
        {"batching": "round_robin"},
        {"freeze_encoder": True, "sts_head": "concat"},
    ],
    ids=str,
)
def test_every_shape_of_run_has_its_report(settings, changes):
    outcome = start_run(settings(epochs=1, steps_per_epoch=3, **changes))
    assert "leaderboard" in write_report(outcome.path)


@pytest.mark.parametrize(
    "changes",
    [{"adapter": "pals", "adapter_size": 5}, {"sts_loss": "mnrl_one", "batch_size": 1}],
    ids=str,
)
def test_what_is_refused_late_leaves_no_directory(settings, changes):
    config = settings(**changes)
    with pytest.raises(ConfigError, match=r"adapter_size|mnrl_one"):
        start_run(config)
    assert not Path(config.output).exists()


def test_a_frozen_encoder_does_not_move(settings, tiny_encoder):
    from safetensors.torch import load_file

    config = settings(freeze_encoder=True, sts_head="concat", epochs=1)
    found = load_file(start_run(config).path / "best.safetensors")
    before = load_file(f"{tiny_encoder}/model.safetensors")
    for name, tensor in before.items():
        if not name.startswith("pooler"):
            assert torch.equal(found[f"encoder.{name}"], tensor), name


def test_round_robin_sees_no_conflict_and_says_why(settings, rows_of, capsys):
    path = start_run(settings(batching="round_robin")).path
    assert "surgery has nothing to do" in capsys.readouterr().out
    assert not any(
        pair["possible"] for line in rows_of(path, "conflicts.jsonl") for pair in line["pairs"]
    )


def test_the_seed_is_the_run(settings, rows_of):
    once, again, other = (
        rows_of(start_run(settings(name, seed=seed)).path, "metrics.jsonl")
        for name, seed in (("once", 1), ("again", 1), ("other", 2))
    )
    assert once == again
    assert once != other


def test_report_shows_scores_conflicts_and_pictures(settings):
    path = start_run(settings()).path
    summary = write_report(path)
    report = (path / "report.md").read_text("utf-8")
    verdict = summary[summary.index("Verdict: ") :].split("\n\n")[0]
    assert " ".join(verdict.split()) in report
    assert "|" not in summary  # that is Markdown, and the terminal gets columns
    assert max(map(len, summary.replace(str(path), "").splitlines())) <= 80
    pairs = ("sst, para", "sst, sts", "para, sts")
    rows = [row for row in summary.splitlines() if row.startswith(pairs)]
    assert [row[:9].strip() for row in rows] == list(pairs)  # each pair once
    assert str(path.parent) not in report
    for part in (
        "| best |",
        "leaderboard",
        "| sst, para | 12 |",
        "sst <- para",
        "No row was skipped",
    ):
        assert part in report
    for picture in ("losses", "scores", "conflicts", "conflicts_by_epoch"):
        assert f"({picture}.png)" in report
        assert (path / f"{picture}.png").read_bytes()[:4] == b"\x89PNG"
    assert list((path / "tensorboard").iterdir())


def test_skipped_rows_are_told_and_reported(settings, tmp_path, capsys):
    rows = [f"{n}\tid{n}\t the film is {'good' if n % 2 else 'bad'} .\t{n % 5}" for n in range(30)]
    header = " \tid\tsentence\tsentiment"
    broken = rows[:3] + ["99\tid99\tthe dog\t7"] + rows[3:]
    for part, lines in (("train", broken), ("dev", rows)):
        name = tmp_path / "tables" / f"ids-sst-{part}.csv"
        name.parent.mkdir(exist_ok=True)
        name.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    config = settings(data=str(tmp_path / "tables"), tasks=["sst"], method="sum", max_steps=1)
    path = start_run(config).path
    write_report(path)
    assert "skipped 1 rows" in capsys.readouterr().out
    assert "ids-sst-train.csv:5" in (path / "report.md").read_text("utf-8")


def test_limits_cut_what_is_used_and_the_report_shows_it(settings):
    config = settings(train_limit=20, dev_limit=10, epochs=1, steps_per_epoch=2)
    path = start_run(config).path
    sizes = json.loads((path / "data.json").read_text())["sizes"]
    assert sizes == {name: {"train": 20, "dev": 10} for name in ("sst", "para", "sts")}
    # A resumed run compares the data: it has to cut them in the same way.
    assert continue_run(path, {"max_steps": 3, "epochs": 2}).done

    evaluate(path, top=3)
    tasks = json.loads((path / "evaluation.json").read_text())["tasks"]
    assert {name: part["examples"] for name, part in tasks.items()} == dict.fromkeys(tasks, 10)
    dev = load(config.data, resolve(["sts"]))[0]["sts"].dev.take(range(24)).limited(10)
    assert tasks["sts"]["truth"] == dev.labels
    assert len(tasks["sts"]["found"]) == 10
    for mistake in tasks["sts"]["mistakes"]:
        row = mistake["row"]
        assert mistake["texts"] == list(dev.texts()[row])
        off = abs(tasks["sts"]["found"][row] - tasks["sts"]["truth"][row])
        assert mistake["error"] == pytest.approx(off)
    right = sum(map(int.__eq__, tasks["sst"]["truth"], tasks["sst"]["found"]))
    assert right / 10 == pytest.approx(tasks["sst"]["score"])


def test_the_seed_does_not_choose_the_limited_examples(settings):
    kept = [
        load_splits(settings(seed=seed, train_limit=9, dev_limit=9))[0]["sst"] for seed in (0, 1)
    ]
    assert kept[0] == kept[1]
    assert len(kept[0].train) == len(kept[0].dev) == 9


def test_cfimdb_trains_alone(settings):
    outcome = start_run(settings(tasks=["cfimdb"], method="sum", epochs=1, steps_per_epoch=2))
    assert write_report(outcome.path).splitlines()[2].endswith("  best")


def test_the_command_with_the_packaged_encoder(tmp_path, small_data, monkeypatch, capsys):
    """The real encoder, no flags but a stop after two steps, and no network at all."""
    import socket

    def refuse(*args: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    assert train.main(["--max-steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "  best\n" in out
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.endswith("-pcgrad-seed0")
    assert json.loads((run / "config.json").read_text())["encoder"] == "minilm"
