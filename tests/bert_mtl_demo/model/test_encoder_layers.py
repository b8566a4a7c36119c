"""An encoder cut to some of its layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import ConfigError, EncoderError
from bert_mtl_demo.evaluate import evaluate
from bert_mtl_demo.model.encoder import load_encoder, locate
from bert_mtl_demo.study.plan import key_of
from bert_mtl_demo.training.checkpoint import load_state
from bert_mtl_demo.training.run import continue_run, start_run


def test_the_kept_layers_are_the_encoders_own_in_order(tiny_encoder: str) -> None:
    """Bitwise: the embeddings, then layer 1 alone."""
    source, ids = locate(tiny_encoder), torch.tensor([[2, 7, 9, 3]])
    full = load_encoder(source, pooler=False).eval()
    short = load_encoder(source, pooler=False, layers=[1]).eval()
    with torch.no_grad():
        hidden = full.embeddings(ids)
        by_hand = full.encoder.layer[1](hidden)
        by_hand = by_hand[0] if isinstance(by_hand, tuple) else by_hand
        assert torch.equal(short(input_ids=ids).last_hidden_state, by_hand)
    kept = load_encoder(source, pooler=False, layers=[0, 1]).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in full.state_dict().items())


def test_a_run_of_fewer_layers_resumes_and_is_evaluated(settings: Callable[..., Config]) -> None:
    outcome = start_run(settings(encoder_layers=[1], max_steps=2))
    continue_run(outcome.path, {"max_steps": 4})
    weights = load_state(outcome.path / "last.pt")["model"]
    assert {name.split(".")[3] for name in weights if "encoder.layer." in name} == {"0"}
    assert evaluate(outcome.path, output=outcome.path / "evaluation", device="cpu")


def test_a_layer_that_is_not_there_is_refused(settings: Callable[..., Config]) -> None:
    with pytest.raises(EncoderError, match="has layers 0 to 1"):
        start_run(settings(encoder_layers="0,2"))
    with pytest.raises(ConfigError, match="each above the one before"):
        Config(encoder_layers=[2, 0])


def test_the_setting_does_not_show_at_its_default() -> None:
    assert not {"encoder_layers", "cache_features"} & set(Config().key_values())
    assert key_of(Config(amp="off")) == "6937b66f4c"
    cut = Config(encoder_layers="0,2,5")
    assert Config.from_mapping(cut.to_dict()) == cut
    assert key_of(cut) != key_of(Config())
