"""Precision: bf16 where the device computes in it, chosen once and kept with the run."""

from __future__ import annotations

import json

import pytest
import torch

from bert_mtl_demo import evaluate, load_trained, predict
from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import CheckpointError, ConfigError
from bert_mtl_demo.runtime import Precision, choose_precision
from bert_mtl_demo.study.papers import PAPERS
from bert_mtl_demo.training.run import continue_run, start_run

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["with bf16", "without"])
def native(request, monkeypatch):
    """A processor with instructions for bf16, and one without."""
    monkeypatch.setattr(
        torch.cpu, "_is_avx512_bf16_supported", lambda: request.param, raising=False
    )
    return request.param


def test_auto_is_bf16_where_the_processor_has_it(native):
    assert Config().amp == "auto"
    assert choose_precision("auto", CPU) == ("bf16" if native else "off")
    assert Precision("auto", CPU).dtype == (torch.bfloat16 if native else None)
    assert Precision("off", CPU).dtype is None


def test_a_torch_that_does_not_tell_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert choose_precision("auto", CPU) == "off"


def test_the_choice_is_said_saved_and_kept(settings, capsys, native, monkeypatch):
    path = start_run(settings(amp="auto", max_steps=2)).path
    out = capsys.readouterr().out
    assert ("--amp off" in out) == native
    assert ("bfloat16" if native else "float32") in out
    amp = "bf16" if native else "off"
    assert json.loads((path / "config.json").read_text())["amp"] == amp

    # On another machine it goes on, and answers, as it began.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not native, raising=False)
    assert continue_run(path, {"max_steps": 3, "amp": "auto"}).done
    assert load_trained(path, "cpu").precision.dtype == Precision(amp, CPU).dtype
    with pytest.raises(CheckpointError, match="amp = fp16 was given"):
        continue_run(path, {"amp": "fp16"})


def test_answers_in_another_precision(finished, capsys):
    run = str(finished.path)
    assert load_trained(run, amp="bf16").precision.dtype == torch.bfloat16
    assert predict.main([run, "--task", "sst", "--amp", "bf16", "a film"]) == 0
    assert evaluate.main([run, "--amp", "bf16"]) == 0
    capsys.readouterr()
    assert predict.main([run, "--task", "sst", "--amp", "bf61", "a film"]) == 2
    assert "did you mean 'bf16'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="amp = half"):
        load_trained(run, amp="half")


def test_no_row_of_the_study_leaves_its_precision_to_the_machine():
    rows = [row for paper in PAPERS.values() for row in paper.rows]
    assert {row.config().amp for row in rows} == {"off", "bf16"}
