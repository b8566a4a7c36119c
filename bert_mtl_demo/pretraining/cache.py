"""Where the encoders behind finished stages are kept, and how one is recognised.

An entry is a directory in the layout of transformers, named after the hash of all that decided
what is in it. It is written under another name and renamed when it is whole, and it holds the hash
of its own weights: half an entry, or a damaged one, is never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_mtl_demo.errors import ConfigError, EncoderError
from bert_mtl_demo.model.encoder import Source, digest_of, locate, quiet

FORMAT = 1  # of the entries; another one makes all keys new
NOTE = "stage.json"
WEIGHTS = "model.safetensors"
# What makes a directory the encoder that it is.
PARTS = (
    "config.json",
    WEIGHTS,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class Cache:
    """A directory of entries.

    >>> Cache(Path("kept")).entry("0f3a").as_posix()
    'kept/0f3a'
    """

    root: Path

    @classmethod
    def of(cls, place: str | None) -> Cache:
        """The cache that was named, or the user's own; the directory is made here.

        Raises:
            ConfigError: when it cannot be made or written to.
        """
        root = Path(place).expanduser() if place else Path.home() / ".cache" / "bert_mtl_demo"
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cache = {root}: cannot be made ({error.strerror})") from None
        if not os.access(root, os.W_OK | os.X_OK):
            raise ConfigError(f"cache = {root}: cannot be written to. Name another with --cache.")
        return cls(root)

    def entry(self, key: str) -> Path:
        """Where the entry of a key is, or would be."""
        return self.root / key

    def find(self, key: str, say: Callable[[str], None]) -> Source | None:
        """The encoder of a key; None if there is none, or a damaged one, which is taken away."""
        place = self.entry(key)
        if not place.exists():
            return None
        try:
            note = json.loads((place / NOTE).read_text(encoding="utf-8"))
            if note["weights"] != digest_of(place / WEIGHTS):
                raise EncoderError("the weights are not those that were written")
            return locate(str(place))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            say(f"{place}: is damaged ({reason}), so it is taken away and built again")
            shutil.rmtree(place)
            return None

    def keep(self, key: str, encoder: Any, tokenizer: Any, note: Mapping[str, Any]) -> Source:
        """Write an entry; the encoder as it can be loaded from there."""
        half = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self.root))
        try:
            with quiet():
                encoder.save_pretrained(half)
                tokenizer.save_pretrained(half)
            whole = {"format": FORMAT, "weights": digest_of(half / WEIGHTS), **note}
            (half / NOTE).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
            # mkdtemp and safetensors make theirs for the owner only.
            half.chmod(0o755)
            (half / WEIGHTS).chmod(0o644)
            _flush(half)
            self._publish(half, key)
        finally:
            shutil.rmtree(half, ignore_errors=True)
        return locate(str(self.entry(key)))

    def _publish(self, half: Path, key: str) -> None:
        try:
            half.rename(self.entry(key))
        except OSError:
            # Another process was faster; what it wrote under this key is as good.
            if not self.entry(key).is_dir():
                raise


def first_key(source: Source) -> str:
    """The key of an encoder that no stage has touched: its files' hashes, or its name on the hub.

    >>> first_key(Source("google-bert/bert-base-uncased", local=False))[:8]
    '7bc4b303'
    """
    if not source.local:
        return key_of({"format": FORMAT, "hub": source.place})
    parts = {name: Path(source.place) / name for name in PARTS}
    found = {name: digest_of(path) for name, path in parts.items() if path.is_file()}
    return key_of({"format": FORMAT, "files": found})


def key_of(content: Mapping[str, Any]) -> str:
    """A hash of plain values, whatever their order.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _flush(directory: Path) -> None:
    # Without this a power cut may leave the new name on empty files.
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
