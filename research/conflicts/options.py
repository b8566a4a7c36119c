"""What the conflict study is told: one frozen dataclass, and the runs that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import ConfigError

# name of the arm -> the settings in which it differs from the others
ARMS: dict[str, dict[str, Any]] = {
    "sum": {"method": "sum"},
    "pcgrad": {"method": "pcgrad"},
    "gradvac, always": {"method": "gradvac", "gradvac_update": "always"},
    "gradvac, on_alter": {"method": "gradvac", "gradvac_update": "on_alter"},
}

WINDOWS = 20  # of a run: the resolution of every curve over time


@dataclass(frozen=True)
class Options:
    """Settings of the study.

    Args:
        data, encoder, device, amp: as in `Config`. Probes always use float32: their question is
            about gradients, not about rounding.
        output: the folder of the page, its pictures and the pieces.
        seeds: of the compared runs; the first one is also probed.
        epochs, steps: of every run; steps of an epoch.
        batch_size: examples of a task in a step, and in a micro-batch of a probe.
        lr: peak learning rate of every run.
        dev_limit: examples of a task that are scored.
        probe_batches: micro-batches of each task at each stage of a probe, a power of two.
        blocks: the parts, again a power of two, into which a probe cuts them; intervals of the
            expected cosine stand on so many. Their gradients are all kept in memory: blocks x tasks
            times the encoder's size.
        jobs: runs at a time, each in a process of its own.
        threads: of torch in each process; None leaves them as they are.
        settings: further fields of `Config`, for all runs.
        command: the command that the page is to show.

    >>> Options().config("pcgrad", seed=1).method
    'pcgrad'
    >>> Options(probe_batches=100)
    Traceback (most recent call last):
    bert_mtl_demo.errors.ConfigError: probe_batches = 100: must be a power of two, as 256 is
    """

    data: str = "sample"
    encoder: str = "minilm"
    output: str | Path = "runs/conflicts"
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 3
    steps: int = 300
    batch_size: int = 8
    lr: float = 1e-5
    dev_limit: int | None = 1000
    probe_batches: int = 256
    blocks: int = 16
    jobs: int = 1
    threads: int | None = None
    device: str = "auto"
    amp: str = "off"
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str = "python -m bert_mtl_demo.study conflicts"

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size", "jobs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.total < 2:
            raise ConfigError("epochs x steps = 1: the study looks at a run before, halfway, after")
        for name in ("probe_batches", "blocks"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ConfigError(f"{name} = {value}: must be a power of two, as 256 is")
        if not 4 <= self.blocks <= self.probe_batches:
            raise ConfigError(
                f"blocks = {self.blocks} of probe_batches = {self.probe_batches}: an interval "
                "needs at least 4 blocks, and a block at least one micro-batch"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds = {self.seeds}: give at least one, and each once")
        config = self.config("sum", self.seeds[0])  # so that a bad setting is refused at once
        if len(config.trained) < 2 or config.batching != "zipped" or config.freeze_encoder:
            raise ConfigError(
                f"tasks = {', '.join(config.tasks)}, batching = {config.batching}, freeze_encoder "
                f"= {str(config.freeze_encoder).lower()}: gradients can only conflict if at least "
                "two tasks meet in every step (zipped) on an encoder that trains"
            )

    @property
    def directory(self) -> Path:
        """The output folder."""
        return Path(self.output).expanduser()

    @property
    def total(self) -> int:
        """Steps of a run."""
        return self.epochs * self.steps

    def stages(self) -> dict[str, int]:
        """The stages at which gradients are probed, and the steps trained before each.

        >>> Options(epochs=2, steps=100).stages()
        {'before training': 0, 'halfway': 100, 'after training': 200}
        """
        return {"before training": 0, "halfway": self.total // 2, "after training": self.total}

    def config(self, arm: str, seed: int, **changes: Any) -> Config:
        """The settings of one run; arms differ in nothing but what `ARMS` says."""
        shared: dict[str, Any] = {
            "data": self.data,
            "encoder": self.encoder,
            "device": self.device,
            "amp": self.amp,
            "epochs": self.epochs,
            "steps_per_epoch": self.steps,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "dev_limit": self.dev_limit,
            "log_every": max(1, -(-self.total // WINDOWS)),
            "checkpoint_every": max(200, self.steps),
        }
        return Config.from_mapping(
            {**shared, **self.settings, **ARMS[arm], "seed": seed, **changes}, origin="the study"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "output": str(self.output), "settings": dict(self.settings)}
