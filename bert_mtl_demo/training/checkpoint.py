"""What a run leaves on disk, written so that a crash at any moment leaves something readable.

    RUN/config.json         the settings
    RUN/encoder/            shape and tokenizer of the encoder, no weights
    RUN/best.safetensors    all weights of the best epoch on dev; with the two above, a complete
    model RUN/last.pt             everything that resuming needs
    RUN/metrics.jsonl, conflicts.jsonl, tensorboard/, report.md, *.png

Every file of weights is written beside its place, flushed to the disk, and then renamed, which is
atomic: a reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    >>> RunDirectory(Path("runs/first")).best.as_posix()
    'runs/first/best.safetensors'
    """

    path: Path

    @property
    def config(self) -> Path:
        """The settings."""
        return self.path / "config.json"

    @property
    def encoder(self) -> Path:
        """Shape and tokenizer of the encoder."""
        return self.path / "encoder"

    @property
    def best(self) -> Path:
        """Weights of the best epoch."""
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        """The state to resume from."""
        return self.path / "last.pt"

    @property
    def metrics(self) -> Path:
        """Losses and scores, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def conflicts(self) -> Path:
        """The library's conflict log."""
        return self.path / "conflicts.jsonl"

    @property
    def data(self) -> Path:
        """How much data there was, and which rows were skipped."""
        return self.path / "data.json"

    def refuse_if_used(self) -> None:
        """An existing directory that holds anything is refused, so that no work is overwritten."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(
                f"output = {self.path}: exists and is not empty. Name another one with --output, "
                "or "
                f"continue that run with --resume {self.path}."
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
    with atomic(path) as place:
        torch.save({"format": FORMAT, **state}, place)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state to resume from, on the CPU; nothing in the file is executed (`weights_only`)."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: has no {path.name} to resume from. Training had not begun: start it "
            "again with another "
            "--output."
        ) from None
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: is damaged and cannot be resumed from ({reason})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path}: has format {found}, but this version reads {FORMAT}")
    return state


def save_weights(path: Path, weights: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write a model's weights, with a note (step, epoch, scores) in the file's header."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with atomic(path) as place:
        # save_file would make the file readable by its owner only.
        place.write_bytes(save(plain, metadata={"run": json.dumps(dict(note))}))


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
