"""The files of a run, written so that a crash at any moment leaves them readable.

    RUN/config.json         the settings
    RUN/encoder/            shape and tokenizer of the encoder, no weights
    RUN/best.safetensors    all weights of the best epoch on dev; with the two above, a whole model
    RUN/last.pt             everything that resuming needs
    RUN/data.json, metrics.jsonl, conflicts.jsonl, tensorboard/, report.md, *.png

Every file but the logs is written under another name, flushed to the disk, and then renamed, which
is atomic: a reader sees the old file or the new one, never half of one.

Both files of weights carry checksums of themselves, so that no write has to reach two files:
last.pt is a zip archive, which has a CRC-32 of each of its entries, and best.safetensors has the
SHA-256 of all its other bytes in its header. Both also hold what the run's other files were.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bert_mtl_demo.config import Config
from bert_mtl_demo.data import Skipped, Splits
from bert_mtl_demo.errors import CheckpointError
from bert_mtl_demo.model.encoder import digest_of
from bert_mtl_demo.store import atomic, leftovers, remove, write_json, writing
from bert_mtl_demo.training.claim import LOCK

FORMAT = 1
# What torch.load and zipfile raise for a damaged file.
_DAMAGED = (
    *(OSError, EOFError, RuntimeError, ValueError, NotImplementedError, KeyError, IndexError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, AttributeError),
)
_UNSIGNED = "0" * 64  # stands for a SHA-256 while it is computed


class RunDirectory:
    """The files of one run.

    >>> RunDirectory(Path("runs/first")).best.as_posix()
    'runs/first/best.safetensors'
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.encoder = path / "encoder"
        self.best = path / "best.safetensors"
        self.last = path / "last.pt"
        self.metrics = path / "metrics.jsonl"  # losses and scores, one JSON object a line
        self.conflicts = path / "conflicts.jsonl"  # the library's conflict log
        self.tensorboard = path / "tensorboard"
        self.data = path / "data.json"  # sizes of the data, and the rows that were skipped

    def create(self, config: Config, encoder: Any, tokenizer: Any) -> None:
        """Write, into a directory that is empty, everything but weights that a reader needs."""
        with writing(self.encoder):
            self.encoder.mkdir()
            encoder.config.save_pretrained(self.encoder)
            tokenizer.save_pretrained(self.encoder)
        self.save_config(config)

    def clear(self) -> None:
        """Delete unfinished writes, which are of dead processes while the directory is locked."""
        for file in (self.config, self.best, self.last, self.metrics, self.conflicts, self.data):
            for entry in leftovers(file):
                remove(entry)

    def refuse_links(self) -> None:
        """Refuse a directory that would have a run add to files outside of it.

        What is written by a rename replaces a link; the logs and TensorBoard's files are added to.
        """
        files = (self.config, self.best, self.last, self.metrics, self.conflicts, self.data)
        for path in (self.metrics, self.conflicts, self.tensorboard, self.path / LOCK):
            if path.is_symlink():
                raise CheckpointError(
                    f"{path}: is a link to {path.readlink()}, and a run writes into its own "
                    "directory only. Put a copy in its place, or delete it."
                )
        for path in files:
            if path.exists() and not path.is_file():
                raise CheckpointError(f"{path}: is not a file. Restore it from a copy of this run.")

    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file beside the weights that makes the model what it is."""
        files = sorted(path for path in self.encoder.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): digest_of(path) for path in files}

    def refuse_changed(self, digests: Mapping[str, str]) -> None:
        """Refuse a directory in which one of these files is missing or has other bytes."""
        for name, digest in digests.items():
            path = self.path / name
            if not path.is_file():
                raise CheckpointError(f"{path}: is missing. Restore it from a copy of this run.")
            if digest_of(path) != digest:
                raise CheckpointError(
                    f"{path}: is damaged or was edited: its SHA-256 is not {digest}, which this "
                    "run wrote. Restore it from a copy of this run."
                )

    def save_config(self, config: Config) -> None:
        """Write the settings."""
        write_json(self.config, config.to_dict(), indent=2)

    def save_data(self, splits: Mapping[str, Splits], skipped: Iterable[Skipped]) -> None:
        """Write the sizes of the data and the rows that were skipped."""
        sizes = {name: {"train": len(s.train), "dev": len(s.dev)} for name, s in splits.items()}
        rows = [
            {"file": str(row.file), "line": row.line, "reason": row.reason}
            for row in dict.fromkeys(skipped)
        ]
        write_json(self.data, {"sizes": sizes, "skipped": rows}, indent=1)

    def data_digest(self) -> str | None:
        """The SHA-256 of what `save_data` wrote; None if it is missing."""
        return digest_of(self.data) if self.data.is_file() else None

    def load_data(self) -> dict[str, Any] | None:
        """What `save_data` wrote; None if it is missing or damaged."""
        try:
            content = json.loads(self.data.read_text(encoding="utf-8"))
            rows = [f"{row['file']}:{row['line']}: {row['reason']}" for row in content["skipped"]]
            sizes = {name: (n["train"], n["dev"]) for name, n in content["sizes"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return {"sizes": sizes, "skipped": rows}

    def load_config(self) -> Config:
        """The settings of an existing run."""
        try:
            values = json.loads(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.path}: is not a run directory (it has no config.json)"
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.config}: cannot be read ({error})") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{self.config}: holds no table of settings")
        return Config.from_mapping(values, origin=str(self.config))


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state to resume from.

    Raises:
        StorageError: when the system refuses to write it.
    """
    # Through a file of Python's: torch's own would hide why the system refused.
    with atomic(path) as unfinished, unfinished.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state to resume from, on the CPU; nothing in the file is executed (`weights_only`).

    Raises:
        CheckpointError: when it is missing or damaged, down to a single bit.
    """
    try:
        _check_entries(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: has no {path.name} to resume from. Training had not begun: start it "
            "again with another --output."
        ) from None
    except _DAMAGED as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path}: is damaged and cannot be resumed from ({reason}). Restore it from a copy, or "
            "start a new run."
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        format = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path}: has format {format}, but this version reads {FORMAT}")
    return state


def _check_entries(path: Path) -> None:
    """Compare every entry of a zip archive with its CRC-32, which torch does not."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"CRC-32 of {damaged}")


def save_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    note: Mapping[str, Any],
    made_with: Mapping[str, Any] | None = None,
) -> None:
    """Write a model's weights, with a note (step, epoch, scores) in the file's header.

    Args:
        path: the file.
        weights: by name.
        note: plain values.
        made_with: what has to be as it was for the weights to mean the same; plain values.

    Raises:
        StorageError: when the system refuses to write it.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    texts = {**note, "made_with": dict(made_with or {}), "sha256": _UNSIGNED}
    # One entry: several would be written in an order that changes from process to process.
    content = save(plain, metadata={"run": json.dumps(texts)})
    before, _, after = content.partition(_UNSIGNED.encode())
    digest = hashlib.sha256(content).hexdigest()
    with atomic(path) as unfinished, unfinished.open("wb") as file:
        # save_file would make the file readable by its owner only.
        file.writelines((before, digest.encode(), after))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a model's weights.

    Raises:
        CheckpointError: when they are missing or damaged, down to a single bit. Weights of 0.1.0
            have no checksum.
    """
    return read_weights(path)[0]


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A model's weights, and what they were made with; as `load_weights`."""
    try:
        content = path.read_bytes()
        weights, texts = load(content), _texts(content)
        if "sha256" in texts:
            _refuse_unsigned(content, texts["sha256"])
        return weights, texts.get("made_with", {})
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: has no {path.name}, as no epoch was finished. Finish one with "
            f"'python -m bert_mtl_demo.train --resume {path.parent}'."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: is damaged and cannot be read ({error}). Restore it from a copy of this run, "
            "or delete it and train on: a better epoch writes it again."
        ) from None


def _texts(content: bytes) -> dict[str, Any]:
    """What stands in the header of a safetensors file: eight bytes of length, then JSON."""
    size = int.from_bytes(content[:8], "little")
    return dict(json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["run"]))


def _refuse_unsigned(content: bytes, digest: str) -> None:
    """Refuse bytes whose SHA-256, with zeros in place of `digest`, is not that."""
    before, _, after = content.partition(digest.encode())
    actual = hashlib.sha256(before)
    actual.update(_UNSIGNED.encode())
    actual.update(after)
    if actual.hexdigest() != digest:
        raise ValueError(f"its SHA-256 is {actual.hexdigest()}, but {digest} was written")
