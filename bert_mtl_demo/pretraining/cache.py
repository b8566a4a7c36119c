"""The encoders behind finished stages: entries of the store, directories that transformers reads.

An entry holds the hash of its own weights, so a damaged one is recognised, removed and built again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bert_mtl_demo import store
from bert_mtl_demo.errors import ConfigError, EncoderError
from bert_mtl_demo.model.encoder import Source, digest_of, locate, quiet

FORMAT = 1  # of the entries; another one makes all keys new
NOTE = "stage.json"
WEIGHTS = "model.safetensors"
# The files that make a directory the encoder that it is.
PARTS = (
    "config.json",
    WEIGHTS,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

# An encoder, its tokenizer, and a note on how it was trained.
Trained = tuple[Any, Any, Mapping[str, Any]]


def cache_directory(name: str | None) -> Path:
    """The cache of that name, or the user's own; the directory is created.

    Raises:
        ConfigError: when it cannot be created or written to.
    """
    root = Path(name).expanduser() if name else Path.home() / ".cache" / "bert_mtl_demo"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cache = {root}: cannot be made ({error.strerror})") from None
    if not os.access(root, os.W_OK | os.X_OK):
        raise ConfigError(f"cache = {root}: cannot be written to. Name another with --cache.")
    return root


def find(entry: Path, say: Callable[[str], None]) -> Source | None:
    """The encoder of an entry; None if there is none, or a damaged one, which is removed."""
    if not entry.exists():
        return None
    try:
        note = json.loads((entry / NOTE).read_text(encoding="utf-8"))
        if note["weights"] != digest_of(entry / WEIGHTS):
            raise EncoderError("the weights are not those that were written")
        return locate(str(entry))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"{entry}: is damaged ({reason}), so it is removed and built again")
        shutil.rmtree(entry)
        return None


def get_or_train(entry: Path, train: Callable[[], Trained]) -> Source:
    """The encoder of an entry that is intact or missing; if missing, it is trained and kept."""

    def write(directory: Path) -> None:
        encoder, tokenizer, note = train()
        with quiet():
            encoder.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        (directory / WEIGHTS).chmod(0o644)  # safetensors writes for the owner only
        content = {"format": FORMAT, "weights": digest_of(directory / WEIGHTS), **note}
        store.write_json(directory / NOTE, content, indent=1)

    return locate(str(store.get_or_write(entry, write)))


def first_key(source: Source) -> str:
    """The key of an encoder that no stage has touched: its files' hashes, or its name on the hub.

    >>> first_key(Source("google-bert/bert-base-uncased", local=False))[:8]
    '7bc4b303'
    """
    if not source.local:
        return key_of({"format": FORMAT, "hub": source.place})
    paths = {name: Path(source.place) / name for name in PARTS}
    digests = {name: digest_of(path) for name, path in paths.items() if path.is_file()}
    return key_of({"format": FORMAT, "files": digests})


def key_of(content: Mapping[str, Any]) -> str:
    """The name of an entry."""
    return store.key_of(content, digits=32)
