"""The arms of the factorial: one run each, equal in all but what is done to the gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.study.published import Row
from bert_mtl_demo.study.settings import StudySettings

if TYPE_CHECKING:
    from gradsurgery import Method

CONTROL = "sum"
BETA = 0.01  # of GradVac's targets, the paper's
STEPS = 400
LONG_STEPS, LONG_EPOCHS = 5_000, 10  # of the run that the count law is checked on
# What all runs share. The rates are named, so that a default that changes changes no arm.
COMMON: dict[str, Any] = {
    "method": "sum",  # each job puts its arm in this one's place
    "batching": "zipped",
    "batch_size": 32,
    "encoder_layers": (0, 2, 5),
    "trim_vocabulary": True,
    "pooling": "mean",
    "lr": 1e-4,
    "schedule": "linear",
    "warmup": 0.1,
    "weight_decay": 0.01,
    "clip": 1.0,
    "max_length": 128,
    "dev_limit": 10_000,
}
LONG: dict[str, Any] = {**COMMON, "batch_size": 8, "dev_limit": 1_000}
# Settings that --set cannot change: the arms, or flags of their own, decide them.
FIXED = (
    *("method", "gradvac_update", "gradvac_beta", "gradvac_target", "grouping", "batching"),
    *("seed", "epochs", "steps_per_epoch", "max_steps"),
)


def methods() -> dict[str, Callable[[int], Method]]:
    """The arms: name -> the method with a seed.

    >>> methods()["sham"](3)
    Sham(seed=3)
    """
    from bert_mtl_demo.training.sham import Sham
    from gradsurgery import GradVac, PCGrad, Sum
    from research.surgery.controls import DenoisedPCGrad, EqualNorms, NoiseWeights

    return {
        CONTROL: lambda seed: Sum(),
        "pcgrad": lambda seed: PCGrad(seed=seed),
        "gradvac, always": lambda seed: GradVac(beta=BETA, update="always", seed=seed),
        "gradvac, on_alter": lambda seed: GradVac(beta=BETA, update="on_alter", seed=seed),
        "sham": lambda seed: Sham(seed=seed),
        "fixed weights": lambda seed: NoiseWeights(),
        "equal norms": lambda seed: EqualNorms(),
        "denoised pcgrad": lambda seed: DenoisedPCGrad(seed=seed),
    }


def config_of(settings: StudySettings, seed: int) -> Config:
    """The settings of every arm's run with a seed.

    >>> config_of(StudySettings(), 1).steps_per_epoch
    400
    """
    return _config(settings, COMMON, 1, settings.steps or STEPS, seed)


def long_config(settings: StudySettings, steps: int) -> Config:
    """The settings of the long run, the plain sum with the first seed.

    >>> long_config(StudySettings(), 5000).steps_per_epoch
    500
    """
    if steps < LONG_EPOCHS:
        raise ConfigError(f"long_steps = {steps}: must be at least {LONG_EPOCHS}, one an epoch")
    return _config(settings, LONG, LONG_EPOCHS, steps // LONG_EPOCHS, settings.seeds[0])


def _config(
    settings: StudySettings, common: dict[str, Any], epochs: int, steps: int, seed: int
) -> Config:
    for name in FIXED:
        if name in settings.set:
            raise ConfigError(
                f"set = {name}={settings.set[name]}: the factorial decides this by its arms and by "
                "--steps, --long-steps and --seeds; leave it out"
            )
    size = {"epochs": epochs, "steps_per_epoch": steps, "log_every": max(1, steps // 4)}
    row = Row("surgery", CONTROL, "", {}, {**common, **size})
    (config,) = replace(settings, steps=None).configs(row, seed)
    if len(config.trained) < 2:
        raise ConfigError(f"tasks = {', '.join(config.tasks)}: surgery needs two trained tasks")
    return config
