"""What the loop asks of its parts, and what it says of a step."""

from __future__ import annotations

import sys

import pytest
import torch

from bert_mtl_demo.model.multitask import MultitaskModel
from bert_mtl_demo.runtime import peak_memory
from bert_mtl_demo.training.logs import read_lines
from bert_mtl_demo.training.run import start_run
from bert_mtl_demo.training.trainer import Trainer


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
