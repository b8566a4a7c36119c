"""The study as a whole: arms and probes as jobs of the runner, then the simulation and the page.

study.json says which pieces belong to the page, so that the page can be written again without
computing anything.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

from bert_mtl_demo.config import Config
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.store import write_json
from bert_mtl_demo.study.settings import NAMED, StudySettings
from research.conflicts.arms import ARMS, configs_of, probed_config
from research.conflicts.jobs import (
    arm_job,
    arm_piece,
    blocks_of,
    layers_piece,
    probe_job,
    probe_pieces,
)
from research.conflicts.pieces import Piece, read

INDEX = "study.json"
NOT_HERE = ("rows", "keep_weights")  # settings of the other studies
PUBLISHED = {"steps": 18_000, "epochs": 10}  # the size of the run whose counts were published


def run_study(settings: StudySettings) -> int:
    """Do what is not done yet, and write the page; the exit code."""
    for name in NOT_HERE:
        if getattr(settings, name):
            raise ConfigError(f"{name} with the study 'conflicts': it has none; leave it out")
    settings.refuse_missing()
    directory = settings.directory / "conflicts"
    if not settings.page_only:
        code = _compute(settings, directory)
        if code:
            return code
    from research.conflicts import page

    print(f"page: {page.write(directory)}")
    return 0


def _compute(settings: StudySettings, directory: Path) -> int:
    """All pieces, and the index that the page is written from."""
    configs, probed, batches = configs_of(settings), probed_config(settings), batches_of(settings)
    from bert_mtl_demo.study.runner import run_for_page

    jobs = {"probes": probe_job(directory, probed, batches)}
    for (arm, seed), config in configs.items():
        jobs[f"{arm} {seed}"] = arm_job(directory, arm, config)
    code = run_for_page("conflicts", jobs, workers=settings.jobs, command=settings.command)
    if code:
        return code
    probes = probe_pieces(directory, probed, batches)
    index = {
        "options": _options(settings, probed),
        "about": about(settings),
        "pieces": {
            "probes": {stage: piece.path.name for stage, piece in probes.items()},
            "layers": layers_piece(directory, probed).path.name,
            "simulation": _simulate(directory, probed, list(probes.values())),
            "runs": {
                arm: {
                    str(seed): arm_piece(directory, arm, configs[arm, seed]).path.name
                    for seed in settings.seeds
                }
                for arm in ARMS
            },
        },
    }
    write_json(directory / INDEX, index)
    return 0


def batches_of(settings: StudySettings, default: int = 256) -> int:
    """The micro-batches of a probe.

    >>> batches_of(StudySettings(probe_batches=100))
    Traceback (most recent call last):
    bert_mtl_demo.errors.ConfigError: probe_batches = 100: must be a power of two of at least 4 \
(an interval needs at least 4 blocks), as 256 is
    """
    batches = settings.probe_batches or default
    if batches < 4 or batches & (batches - 1):
        raise ConfigError(
            f"probe_batches = {batches}: must be a power of two of at least 4 (an interval needs "
            "at least 4 blocks), as 256 is"
        )
    return batches


def load(directory: Path) -> dict[str, Any]:
    """The index with every file name replaced by what the file holds."""
    index: dict[str, Any] = read(directory / INDEX)

    def opened(entry: Any) -> Any:
        if isinstance(entry, str):
            return read(directory / "pieces" / entry)["result"]
        return {name: opened(part) for name, part in entry.items()}

    return {**index, "pieces": opened(index["pieces"])}


def _simulate(directory: Path, config: Config, probes: Sequence[Piece]) -> dict[str, str]:
    """The model-free curve at the published size and at this study's; the pieces' names."""
    from research.conflicts.simulation import alterations

    size: dict[str, Any] = {"steps": config.steps_per_epoch, "epochs": config.epochs, "seeds": 64}
    measured = _measured([read(piece.path)["result"] for piece in probes])
    simulations = {
        **{f"published size, mean {mean:g}": {**PUBLISHED, "mean": mean} for mean in (0.05, 0.0)},
        **{f"own size, mean {mean:g}": {**size, "mean": mean} for mean in (0.05, 0.0)},
        "own size, as measured": {**size, **measured},
    }
    names = {}
    for title, settings in simulations.items():
        piece = Piece(directory / "pieces", f"simulation, {title}", settings)
        piece.get(partial(alterations, **settings))
        names[title] = piece.path.name
    return names


def _measured(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread of each ordered pair's cosine at the size of a step's batch, over all stages.

    Rounded, so that the simulation is not another one on a machine that adds in another order.
    """
    import numpy as np

    from research.conflicts import estimate

    stages = [estimate.Probed.of(record) for record in records]
    cosines = [estimate.cosines(probed.level(min(probed.levels))) for probed in stages]
    pairs = [
        np.concatenate([stage[:, :, i, :, j].ravel() for stage in cosines])
        for i, j in permutations(range(len(stages[0].tasks)), 2)
    ]
    return {
        "mean": [round(float(np.nanmean(pair)), 4) for pair in pairs],
        "sd": [round(float(np.nanstd(pair)), 4) for pair in pairs],
        "pairs": len(pairs),
    }


def _options(settings: StudySettings, config: Config) -> dict[str, Any]:
    """The settings as the page shows them."""
    batches = batches_of(settings)
    return {
        "data": config.data if config.data in NAMED else "DIR",
        "encoder": config.encoder,
        "seeds": list(settings.seeds),
        "epochs": config.epochs,
        "steps": config.steps_per_epoch,
        **{name: getattr(config, name) for name in ("batch_size", "lr", "dev_limit")},
        "probe_batches": batches,
        "blocks": blocks_of(batches),
        **{name: getattr(config, name) for name in ("device", "amp")},
        "settings": dict(settings.set),
        "command": settings.portable_command,
    }


def about(settings: StudySettings) -> dict[str, Any]:
    """Machine and versions."""
    import torch

    from bert_mtl_demo.runtime import choose_device
    from bert_mtl_demo.study.runner import threads_of
    from bert_mtl_demo.study.worker import versions

    device = choose_device(settings.set.get("device", "auto"))
    cuda = device.type == "cuda"
    obeyed = "OMP_NUM_THREADS" in os.environ
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads() if obeyed else threads_of(settings.jobs),
        "versions": versions(),
    }
