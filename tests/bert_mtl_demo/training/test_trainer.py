"""What the loop asks of its parts, and what it says of a step."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch

from bert_mtl_demo.config import Config
from bert_mtl_demo.data import dev_halves
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.evaluate import evaluate
from bert_mtl_demo.model.multitask import MultitaskModel
from bert_mtl_demo.runtime import peak_memory
from bert_mtl_demo.training import run as run_module
from bert_mtl_demo.training.checkpoint import load_state
from bert_mtl_demo.training.logs import read_lines
from bert_mtl_demo.training.run import start_run
from bert_mtl_demo.training.trainer import CHOOSING, REPORTED, Trainer


@pytest.fixture
def asked(monkeypatch):
    """Every (task, batch size, epoch) that a loss was asked for in training."""
    calls = []
    plain = MultitaskModel.loss

    def loss(self, task, batch, epoch=1):
        if torch.is_grad_enabled():
            calls.append((task, batch.size, epoch))
        return plain(self, task, batch, epoch)

    monkeypatch.setattr(MultitaskModel, "loss", loss)
    return calls


def rows(run, kind):
    return [row for row in read_lines(run.path / "metrics.jsonl") if row["kind"] == kind]


def test_a_loss_knows_its_epoch(settings, asked):
    start_run(settings(epochs=3, steps_per_epoch=2))
    assert [epoch for task, _, epoch in asked if task == "sts"] == [1, 1, 2, 2, 3, 3]


def test_a_weight_knows_the_whole_step(settings, asked, monkeypatch):
    from bert_mtl_demo.model.weighting import Unweighted

    seen = []

    def forward(self, task, loss, sizes):
        seen.append((task, dict(sizes)))
        return loss

    monkeypatch.setattr(Unweighted, "forward", forward)
    start_run(settings(epochs=1, steps_per_epoch=4, batching="uniform_partial", batch_size=8))
    assert [task for task, _ in seen] == [task for task, _, _ in asked]
    for (task, sizes), (_, size, _) in zip(seen, asked, strict=True):
        assert sizes[task] == size
        assert sum(sizes.values()) == 8


def test_the_log_has_raw_losses_whatever_they_weigh(settings):
    changes = {"epochs": 1, "steps_per_epoch": 1, "log_every": 1, "batching": "method_1"}
    plain, weighed = (
        rows(start_run(settings(name, weighting=name, **changes)), "train")[0]
        for name in ("none", "inverse_share")
    )
    assert plain["loss"] == weighed["loss"]
    assert plain["grad_norm"] != weighed["grad_norm"]


def test_learned_weights_are_logged(settings):
    run = start_run(settings(weighting="uncertainty", log_every=1, epochs=1))
    found = [row["log_variance"] for row in rows(run, "train")]
    assert all(list(each) == ["sst", "para", "sts"] for each in found)
    assert found[0] != found[-1]
    assert "log_variance" not in rows(start_run(settings("none", epochs=1)), "train")[0]
    alone = settings("alone", weighting="uncertainty", untrained=("para", "sts"), epochs=1)
    assert all(list(row["log_variance"]) == ["sst"] for row in rows(start_run(alone), "train"))


@pytest.mark.parametrize("batching", ["zipped", "sqrt"])
def test_time_and_memory_are_logged(settings, batching):
    run = start_run(settings(batching=batching))
    for row in rows(run, "train"):
        assert 0 < row["data_seconds"] < row["seconds"]
    peaks = [row["peak_memory"] for row in rows(run, "dev")]
    assert peaks == sorted(peaks)
    assert peaks[0] > 50 * 2**20  # torch alone is more


@pytest.mark.parametrize(("system", "factor"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes(monkeypatch, system, factor):
    resource = pytest.importorskip("resource")

    class Usage:
        ru_maxrss = 3000

    monkeypatch.setattr(resource, "getrusage", lambda who: Usage)
    monkeypatch.setattr(sys, "platform", system)
    assert peak_memory(torch.device("cpu")) == 3000 * factor


def test_a_step_without_a_task_leaves_its_head_alone(settings, monkeypatch):
    """Surgery takes any subset of the tasks; AdamW moves no parameter without a gradient."""
    step, moved = Trainer.step, []

    def watched(self):
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        indices = self.batches.at
        tasks = []

        def at(number):
            found = indices(number)
            tasks[:] = found
            return found

        self.batches.at = at
        step(self)
        del self.batches.at
        changed = {n for n, p in self.model.named_parameters() if not torch.equal(p, before[n])}
        heads = {name.split(".")[1] for name in changed if name.startswith("heads.")}
        moved.append((set(tasks), heads))

    monkeypatch.setattr(Trainer, "step", watched)
    start_run(settings(batching="uniform_partial", batch_size=4, partial_batch=2, warmup=0))
    assert {len(tasks) for tasks, _ in moved} == {1, 2}
    for tasks, heads in moved:
        assert heads == tasks - {"sts"}  # the cosine has no parameters


# ----------------------------------------------------------------- which epoch, on which examples


@pytest.mark.parametrize("select", ["mean", "leaderboard", "last"])
def test_the_epoch_that_the_setting_asks_for_is_kept(settings, monkeypatch, select):
    """The mean is highest in epoch 1, the leaderboard in 2; the last is 3."""
    scores = iter(
        [
            {"sst": 0.2, "para": 0.2, "sts": 0.9},  # .433, .450
            {"sst": 0.5, "para": 0.5, "sts": 0.0},  # .333, .500
            {"sst": 0.1, "para": 0.1, "sts": 0.1},
        ]
    )
    monkeypatch.setattr(Trainer, "_scores", lambda self, answers, half: next(scores))
    run = start_run(settings(select=select, epochs=3, steps_per_epoch=1))
    kept = [row["epoch"] for row in rows(run, "dev") if row["best"]]
    assert kept == {"mean": [1], "leaderboard": [1, 2], "last": [1, 2, 3]}[select]
    assert load_state(run.path / "last.pt")["progress"]["best_epoch"] == kept[-1]


def test_the_epoch_is_chosen_on_the_half_of_dev_that_is_not_reported(settings, monkeypatch):
    """Reported scores fall from epoch to epoch, those of the other half rise."""
    values = {CHOOSING: iter([0.1, 0.2, 0.3]), REPORTED: iter([0.9, 0.8, 0.7])}
    monkeypatch.setattr(
        Trainer, "_scores", lambda self, answers, half: dict.fromkeys(answers, next(values[half]))
    )
    dev = rows(start_run(settings(dev_half=True, epochs=3, steps_per_epoch=1)), "dev")
    assert [row["best"] for row in dev] == [True, True, True]
    assert [row["mean"] for row in dev] == pytest.approx([0.9, 0.8, 0.7])
    assert [row["chosen_by"] for row in dev] == pytest.approx([0.1, 0.2, 0.3])


def test_the_halves_of_dev_are_disjoint_and_evaluate_scores_the_reported_one(settings, tmp_path):
    run = start_run(settings(dev_half=True, epochs=2, select="last"))
    evaluate(run.path, output=tmp_path / "evaluation", device="cpu")
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text("utf-8"))
    assert found["mean"] == pytest.approx(rows(run, "dev")[-1]["mean"], abs=1e-6)
    sizes = json.loads((run.path / "data.json").read_text("utf-8"))["sizes"]
    for name, size in sizes.items():
        chosen, reported = dev_halves(size["dev"], name)
        assert not set(chosen) & set(reported)
        assert found["tasks"][name]["examples"] == len(reported)


def test_settings_that_only_look_do_not_change_training(settings):
    """Halves, train scores and the choice of the epoch: the weights at the end are the same."""
    plain = start_run(settings("plain", epochs=2))
    looked = start_run(settings("looked", epochs=2, dev_half=True, train_scores=7, select="last"))
    ends = [load_state(run.path / "last.pt")["model"] for run in (plain, looked)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert [row["loss"] for row in rows(plain, "train")] == [
        row["loss"] for row in rows(looked, "train")
    ]
    for row in rows(looked, "dev"):
        assert set(row["train_scores"]) == {"sst", "para", "sts"}
        assert row["train_scores"]["sst"] * 7 == pytest.approx(
            round(row["train_scores"]["sst"] * 7)
        )
    assert not any("train_scores" in row for row in rows(plain, "dev"))


def test_a_sample_of_dev_is_scored_after_an_epoch_and_all_of_it_by_evaluate(settings):
    plain = start_run(settings("plain", select="last"))
    sampled = start_run(settings("sampled", select="last", dev_sample=5))
    ends = [load_state(run.path / "last.pt")["model"] for run in (plain, sampled)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    for row in rows(sampled, "dev"):
        assert row["scores"]["sst"] * 5 == pytest.approx(round(row["scores"]["sst"] * 5))
    scores = {}
    for run in (plain, sampled):
        evaluate(run.path)
        scores[run] = json.loads((run.path / "evaluation.json").read_text("utf-8"))["mean"]
    assert scores[sampled] == scores[plain]


def test_no_step_scores_the_untrained_model(settings):
    run = start_run(settings("untrained", max_steps=0))
    assert run.done
    (dev,) = rows(run, "dev")
    assert (dev["step"], dev["best"]) == (0, True)
    evaluate(run.path)
    assert json.loads((run.path / "evaluation.json").read_text("utf-8"))["mean"] == dev["mean"]
    assert not rows(run, "train")


def test_a_sample_and_a_half_of_dev_exclude_each_other():
    with pytest.raises(ConfigError, match="dev_half = true with dev_sample = 5"):
        Config(dev_half=True, dev_sample=5)


def test_a_limit_does_not_change_shares_under_a_fraction(settings, asked, monkeypatch):
    """The same tasks are drawn, with fewer examples; without a fraction the limit decides."""
    few = run_module.load

    def unequal(*arguments, **keywords):
        splits, skipped = few(*arguments, **keywords)
        sizes = {"sst": 5, "para": 40, "sts": 5}
        return {
            name: replace(s, train=s.train.take(range(sizes[name]))) for name, s in splits.items()
        }, skipped

    monkeypatch.setattr(run_module, "load", unequal)
    drawn = {}
    for name, changes in {
        "whole": {"fraction": 1.0},
        "limited": {"fraction": 1.0, "train_limit": 5},
        "by the limit": {"train_limit": 5},
    }.items():
        asked.clear()
        start_run(settings(name, batching="proportional", steps_per_epoch=20, epochs=1, **changes))
        drawn[name] = [task for task, _, _ in asked]
    assert drawn["whole"] == drawn["limited"]
    assert drawn["whole"].count("para") > drawn["by the limit"].count("para") + 4


def test_the_epoch_under_a_fraction_is_as_long_as_that_of_the_whole_set(settings):
    run = start_run(settings(steps_per_epoch=None, fraction=0.2, train_limit=8, epochs=2))
    assert [row["step"] for row in rows(run, "dev")] == [3, 6]  # a fifth of 44 / 4, rounded up
