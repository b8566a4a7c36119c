"""The files of a run, written so that a crash at any moment leaves them readable.

    RUN/config.json         the settings
    RUN/encoder/            shape and tokenizer of the encoder, no weights
    RUN/best.safetensors    all weights of the best epoch on dev; with the two above, a whole model
    RUN/last.pt             everything that resuming needs
    RUN/metrics.jsonl, conflicts.jsonl, tensorboard/, report.md, *.png

Every file of weights is written under another name, flushed to the disk, and then renamed, which is
atomic: a reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import CheckpointError, ConfigError
from bert_mtl_demo.store import atomic, write_json

FORMAT = 1
# What torch.load raises for a damaged file.
_DAMAGED = (
    *(OSError, EOFError, RuntimeError, ValueError),
    *(pickle.UnpicklingError, zipfile.BadZipFile),
)


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
        self.data = path / "data.json"  # sizes of the data, and the rows that were skipped

    def refuse_if_used(self) -> None:
        """An existing directory that holds anything is refused, so that no work is overwritten."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(
                f"output = {self.path}: exists and is not empty. Name another one with --output, "
                f"or continue that run with --resume {self.path}."
            )

    def create(self, config: Config, encoder: Any, tokenizer: Any) -> None:
        """Make the directory, with everything but weights that a reader needs."""
        try:
            self.encoder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output = {self.path}: cannot be made ({error.strerror})") from None
        encoder.config.save_pretrained(self.encoder)
        tokenizer.save_pretrained(self.encoder)
        self.save_config(config)

    def save_config(self, config: Config) -> None:
        """Write the settings."""
        write_json(self.config, config.to_dict(), indent=2)

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
    """Write a state to resume from."""
    with atomic(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state to resume from, on the CPU; nothing in the file is executed (`weights_only`)."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: has no {path.name} to resume from. Training had not begun: start it "
            "again with another --output."
        ) from None
    except _DAMAGED as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: is damaged and cannot be resumed from ({reason})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        format = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path}: has format {format}, but this version reads {FORMAT}")
    return state


def save_weights(path: Path, weights: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write a model's weights, with a note (step, epoch, scores) in the file's header."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with atomic(path) as file:
        # save_file would make the file readable by its owner only.
        file.write_bytes(save(plain, metadata={"run": json.dumps(dict(note))}))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a model's weights."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: has no {path.name}, as no epoch was finished. Finish one with "
            f"'python -m bert_mtl_demo.train --resume {path.parent}'."
        ) from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is damaged and cannot be read ({error})") from None
