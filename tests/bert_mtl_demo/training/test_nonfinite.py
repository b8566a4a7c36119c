"""Losses and gradients that are not numbers: skipped, counted, reported, and not for ever."""

from __future__ import annotations

import pytest
import torch

from bert_mtl_demo import train
from bert_mtl_demo.errors import DivergedError
from bert_mtl_demo.model.multitask import MultitaskModel
from bert_mtl_demo.training.run import start_run

PLAIN = MultitaskModel.loss


def spoil(monkeypatch, when, how) -> None:
    """Spoil the loss of para in those of its batches, counted from 1, for which `when` holds."""
    count = iter(range(1, 1000))

    def loss(self, task, batch, epoch=1):
        value = PLAIN(self, task, batch, epoch)
        return how(self, value) if task == "para" and when(next(count)) else value

    monkeypatch.setattr(MultitaskModel, "loss", loss)


def nan_loss(model, value):
    return value * float("nan")


def nan_gradient(model, value):
    # 0 * sqrt'(0) = 0 * inf: the loss stays, its gradient is NaN
    bias = next(
        p for name, p in model.named_parameters() if name.endswith("word_embeddings.weight")
    )
    return value + 0 * torch.sqrt(bias * 0).sum()


@pytest.mark.parametrize(
    ("how", "part"),
    [(nan_loss, "loss of task para is nan"), (nan_gradient, "norm of the gradient is nan")],
)
def test_one_is_skipped_and_counted(settings, rows_of, monkeypatch, capsys, how, part):
    spoil(monkeypatch, lambda n: n == 3, how)
    path = start_run(settings()).path
    assert f"step 3: skipped, as the {part}" in capsys.readouterr().out
    train_rows = [r for r in rows_of(path, "metrics.jsonl") if r["kind"] == "train"]
    assert [row["nonfinite"] for row in train_rows] == [1, 0, 0, 0]
    assert all(loss == loss for row in train_rows for loss in row["loss"].values())
    state = torch.load(path / "last.pt", weights_only=True)
    assert state["progress"]["step"] == 12
    assert (state["progress"]["nonfinite"], state["progress"]["in_a_row"]) == (1, 0)
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())


def test_a_skipped_step_changes_no_weight(settings, monkeypatch):
    from bert_mtl_demo.training.trainer import Trainer

    before = {}
    step = Trainer.step

    def watched(self):
        if self.progress.step == 2:
            before.update({n: p.clone() for n, p in self.model.named_parameters()})
        step(self)
        if self.progress.step == 3:
            for name, parameter in self.model.named_parameters():
                assert torch.equal(parameter, before[name]), name

    monkeypatch.setattr(Trainer, "step", watched)
    spoil(monkeypatch, lambda n: n == 3, nan_loss)
    start_run(settings(max_steps=4))
    assert before


def test_too_many_in_a_row_end_the_run(settings, monkeypatch):
    spoil(monkeypatch, lambda n: n > 2, nan_loss)
    with pytest.raises(DivergedError, match="gave up at step 6") as caught:
        start_run(settings(max_nonfinite=3, checkpoint_every=2))
    for part in ("task para", "4 steps in a row", "--lr (now 0.001)", "last.pt"):
        assert part in str(caught.value)


def test_many_but_not_in_a_row_do_not(settings, monkeypatch):
    spoil(monkeypatch, lambda n: n % 2 == 0, nan_loss)
    assert start_run(settings(max_nonfinite=1)).done


def test_the_command_fails_with_one_line(settings, monkeypatch, capsys):
    spoil(monkeypatch, lambda n: True, nan_loss)
    config = settings(max_nonfinite=1)
    flags = ["--encoder", config.encoder, "--output", config.output, "--max-length", "64"]
    assert train.main([*flags, "--max-nonfinite", "1"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: gave up at step 2")
    assert "Traceback" not in message


def test_an_overflow_under_fp16_halves_the_scale_and_goes_on(settings, monkeypatch, capsys):
    spoil(monkeypatch, lambda n: n == 2, nan_gradient)
    path = start_run(settings(amp="fp16")).path
    assert "loss scale now" in capsys.readouterr().out
    state = torch.load(path / "last.pt", weights_only=True)
    assert state["scaler"]["scale"] == 2.0**15
    assert state["progress"]["step"] == 12


def test_a_changed_loss_scale_survives_an_interruption(settings, rows_of, monkeypatch):
    from bert_mtl_demo.training.run import continue_run

    with monkeypatch.context() as patch:
        spoil(patch, lambda n: n == 2, nan_gradient)
        whole = start_run(settings("whole", amp="fp16"))
    with monkeypatch.context() as patch:
        spoil(patch, lambda n: n == 2, nan_gradient)
        halves = start_run(settings("halves", amp="fp16", max_steps=6))
    continue_run(halves.path, {"max_steps": "none"})
    assert rows_of(whole.path, "metrics.jsonl") == rows_of(halves.path, "metrics.jsonl")
    states = [torch.load(run.path / "last.pt", weights_only=True) for run in (whole, halves)]
    assert states[0]["scaler"] == states[1]["scaler"]
    assert states[0]["scaler"]["scale"] == 2.0**15
