"""`python -m research.conflicts.jobs DIRECTORY`: one job of the study, an arm's run or the probes.

A job is a process of the study's runner (`bert_mtl_demo.study.runner`) and leaves pieces. An arm is
trained to its end. The probes are taken in a run of the plain sum that is stopped at each stage,
probed as it stands there, and goes on; its log gives the map of cosines over layers and time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bert_mtl_demo.cli import guard
from bert_mtl_demo.config import Config, read_settings
from bert_mtl_demo.study.runner import Job
from bert_mtl_demo.study.worker import drop_weights, train
from research.conflicts.pieces import Piece

MODULE = "research.conflicts.jobs"
# Settings that a piece does not depend on: where things are kept, and how its run was
# watched and computed.
ELSEWHERE = (
    *("output", "device", "cache", "checkpoint_every", "max_nonfinite"),
    *("cache_features", "trim_vocabulary"),
)


def arm_piece(study: Path, arm: str, config: Config) -> Piece:
    """The record of an arm's run with one seed."""
    return Piece(study / "pieces", f"run {arm} {config.seed}", deciding(config))


def layers_piece(study: Path, config: Config) -> Piece:
    """The map of cosines over layers and time."""
    return Piece(study / "pieces", "layers", deciding(config))


def probe_pieces(study: Path, config: Config, batches: int) -> dict[str, Piece]:
    """The probe of each stage, in order."""
    size = {"batches": batches, "blocks": blocks_of(batches)}
    return {
        stage: Piece(
            study / "pieces",
            f"probe {stage}",
            {**deciding(config), **size, "stage": stage, "step": step},
        )
        for stage, step in stages_of(config).items()
    }


def deciding(config: Config) -> dict[str, Any]:
    """The settings that a piece depends on.

    >>> "seed" in deciding(Config()), "device" in deciding(Config())
    (True, False)
    """
    return {name: value for name, value in config.key_values().items() if name not in ELSEWHERE}


def stages_of(config: Config) -> dict[str, int]:
    """The stages at which gradients are probed, and the steps trained before each.

    >>> stages_of(Config(epochs=2, steps_per_epoch=100))
    {'before training': 0, 'halfway': 100, 'after training': 200}
    """
    steps = config.epochs * (config.steps_per_epoch or 0)
    return {"before training": 0, "halfway": steps // 2, "after training": steps}


def blocks_of(batches: int) -> int:
    """The blocks of a probe of so many micro-batches, on which its intervals stand.

    The gradients of all of them are kept in memory: blocks x tasks times the encoder's size.
    """
    return min(16, batches)


def arm_job(study: Path, arm: str, config: Config) -> Job:
    """The job that trains an arm with one seed."""
    piece = arm_piece(study, arm, config)
    directory = study / "runs" / f"{config.method}-{config.seed}-{piece.key}"
    return Job(directory, {**config.to_dict(), "arm": arm}, (piece.path,), MODULE)


def probe_job(study: Path, config: Config, batches: int) -> Job:
    """The job that takes the probes and the map of layers."""
    layers = layers_piece(study, config)
    probes = probe_pieces(study, config, batches).values()
    directory = study / "runs" / f"stages-{config.seed}-{layers.key}"
    settings = {**config.to_dict(), "probe_batches": batches}
    return Job(directory, settings, (*(piece.path for piece in probes), layers.path), MODULE)


def main(argv: Sequence[str] | None = None) -> int:
    """The command.

    >>> main(["no-such-directory"])
    2
    """
    (directory,) = map(Path, sys.argv[1:] if argv is None else argv)
    return guard(lambda: run(directory))


def run(directory: Path) -> int:
    """One job; 0 when its pieces exist."""
    settings = directory / "settings.json"
    values = read_settings(settings)
    arm, batches = values.pop("arm", None), values.pop("probe_batches", None)
    config = Config.from_mapping(values, origin=str(settings))
    study = directory.parents[1]
    if arm is not None:
        _train_arm(study, arm, config, directory / "run")
    else:
        _probe(study, config, batches, directory / "run")
    drop_weights(directory / "run")
    return 0


def _train_arm(study: Path, arm: str, config: Config, run: Path) -> None:
    from bert_mtl_demo.training.progress import score_line
    from research.conflicts.records import record_of

    record = arm_piece(study, arm, config).get(lambda: record_of(train(config, run, None)))
    scores = dict(record["scores"])
    mean, leaderboard = scores.pop("mean"), scores.pop("leaderboard")
    print(score_line(scores, mean, leaderboard))


def _probe(study: Path, config: Config, batches: int, run: Path) -> None:
    from research.conflicts.gradients import load_material
    from research.conflicts.records import layer_map

    probes = probe_pieces(study, config, batches)
    missing = {stage: piece for stage, piece in probes.items() if not piece.path.exists()}
    if missing:
        material = load_material(config)
        for stage, piece in missing.items():  # in order: the first has the untrained model
            piece.get(partial(probe_stage, material, run, stage, batches))
    layers_piece(study, config).get(lambda: layer_map(train(config, run, None)))
    print(f"probed {', '.join(probes)}")


def probe_stage(material: Any, run: Path, stage: str, batches: int) -> dict[str, Any]:
    """Train up to a stage, and probe: the plain values of `probe.probe`, step and scores."""
    from bert_mtl_demo.training.checkpoint import RunDirectory, load_state
    from research.conflicts.gradients import Sampler, shared
    from research.conflicts.metrics import scales
    from research.conflicts.probe import probe_model, seed_of
    from research.conflicts.records import record_of

    step, scores, factors = stages_of(material.config)[stage], None, None
    if step:
        train(material.config, run, step)
        state = load_state(RunDirectory(run).last)
        material.model.load_state_dict(state["model"])
        scores = record_of(run)["scores"]
        if not material.config.trim_vocabulary:  # else the table's moments are those of a part
            names = [f"encoder.{name}" for name, _ in shared(material.model)]
            factors = [factor.to(material.device) for factor in scales(state["optimizer"], names)]
    seed = seed_of(material.config.seed, stage)
    products = probe_model(
        Sampler(material, seed),
        batches=batches,
        blocks=blocks_of(batches),
        seed=seed,
        scales=factors,
    )
    return {"stage": stage, "step": step, "scores": scores, **products}


if __name__ == "__main__":
    sys.exit(main())
