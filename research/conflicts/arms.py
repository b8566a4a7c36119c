"""The arms of the study: rows that differ in nothing but what is done about conflicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.study.papers import PAPERS
from bert_mtl_demo.study.published import SURGERY, Row
from bert_mtl_demo.study.settings import StudySettings

# name of the arm -> the settings in which it differs from the others
ARMS: dict[str, dict[str, Any]] = {
    "sum": {"method": "sum"},
    "pcgrad": {"method": "pcgrad"},
    "gradvac, always": {"method": "gradvac", "gradvac_update": "always"},
    "gradvac, on_alter": {"method": "gradvac", "gradvac_update": "on_alter"},
}
# The row whose counts of conflicts the study answers, but for its surgery.
_ROW = PAPERS["pals_gradvac"].row("Gradient Vaccine multitask")
ANSWERED = {name: value for name, value in _ROW.settings.items() if name not in SURGERY}
WINDOWS = 20  # of a run: the resolution of every curve over time
# Settings that --set cannot change: arms and probes, or flags of their own, decide them.
FIXED = ("method", "gradvac_update", "grouping", "seed", "epochs", "steps_per_epoch", "max_steps")


def arms_of(settings: StudySettings) -> dict[str, Row]:
    """The arms as rows, at the epochs and steps that were asked for.

    >>> arms_of(StudySettings(epochs=2))["pcgrad"].settings["epochs"]
    2
    """
    if settings.fraction is not None:
        raise ConfigError("fraction with the study 'conflicts': give --epochs and --steps")
    epochs, steps = settings.epochs or 3, settings.steps or 300
    common = {
        **(ANSWERED if settings.as_published else {}),
        "epochs": epochs,
        "steps_per_epoch": steps,
        "batch_size": 8,
        "lr": 1e-5,
        "dev_limit": 1000,
        "log_every": max(1, -(-epochs * steps // WINDOWS)),
    }
    return {arm: Row("conflicts", arm, "", {}, {**common, **ARMS[arm]}) for arm in ARMS}


def configs_of(settings: StudySettings) -> dict[tuple[str, int], Config]:
    """The run of every arm with every seed; seeds outside, so that all arms have their first."""
    for name in FIXED:
        if name in settings.set:
            raise ConfigError(
                f"set = {name}={settings.set[name]}: the conflict study decides this by its arms "
                "and by --epochs, --steps and --seeds; leave it out"
            )
    arms = arms_of(settings)
    configs = {
        (arm, seed): settings.configs(row, seed)[0]
        for seed in settings.seeds
        for arm, row in arms.items()
    }
    _refuse_what_cannot_conflict(next(iter(configs.values())))
    return configs


def probed_config(settings: StudySettings) -> Config:
    """The run that is probed: the plain sum with the first seed.

    With the plain sum, grouping by layer changes nothing but the log, so the same run also gives
    the map of cosines over layers and time.
    """
    (config,) = settings.configs(arms_of(settings)["sum"], settings.seeds[0])
    return replace(config, grouping="layer")


def _refuse_what_cannot_conflict(config: Config) -> None:
    if config.epochs * (config.steps_per_epoch or 0) < 2:
        raise ConfigError("epochs x steps = 1: the study looks at a run before, halfway, after")
    if len(config.trained) < 2 or config.batching != "zipped" or config.freeze_encoder:
        raise ConfigError(
            f"tasks = {', '.join(config.tasks)}, batching = {config.batching}, freeze_encoder = "
            f"{str(config.freeze_encoder).lower()}: gradients can only conflict if at least two "
            "tasks meet in every step (zipped) on an encoder that trains"
        )
