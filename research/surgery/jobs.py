"""`python -m research.surgery.jobs DIRECTORY`: one run of the factorial, an arm's or the long one.

A job is a process of the study's runner (`bert_mtl_demo.study.runner`) and leaves one piece. It
goes on from its last checkpoint, with the record of the steps before it. Another kind takes a run
of the plain sum again, stops it at each stage, and probes the expected gradients there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bert_mtl_demo.cli import guard
from bert_mtl_demo.config import Config, read_settings
from bert_mtl_demo.store import key_of
from bert_mtl_demo.study.runner import Job
from bert_mtl_demo.study.worker import drop_weights, train
from research.conflicts.jobs import deciding, probe_pieces, probe_stage
from research.conflicts.pieces import Piece
from research.surgery.arms import CONTROL, methods

MODULE = "research.surgery.jobs"
LONG = "long run"


def piece_of(study: Path, arm: str, config: Config) -> Piece:
    """The record of an arm's run with one seed, or of the long run."""
    method = methods()[CONTROL if arm == LONG else arm](config.seed)
    settings = {**deciding(config), "surgery": repr(method)}
    settings.pop("log_every")
    name = arm if arm == LONG else f"run {arm}"
    return Piece(study / "pieces", f"{name} {config.seed}", settings)


def job_of(study: Path, arm: str, config: Config) -> Job:
    """The job that trains it."""
    piece = piece_of(study, arm, config)
    directory = study / "runs" / piece.path.stem
    return Job(directory, {**config.to_dict(), "arm": arm}, (piece.path,), MODULE)


def probes_of(study: Path, config: Config, batches: int) -> dict[str, Piece]:
    """The probes of a run of the plain sum, by stage."""
    return probe_pieces(study, config, batches)


def probe_job(study: Path, config: Config, batches: int) -> Job:
    """The job that takes them."""
    pieces = [piece.path for piece in probes_of(study, config, batches).values()]
    directory = study / "runs" / f"probed-{config.seed}-{key_of({'pieces': pieces[0].stem})}"
    # All moments of Adam are needed, also those of words that no example has.
    settings = {**config.to_dict(), "trim_vocabulary": False, "probe_batches": batches}
    return Job(directory, settings, tuple(pieces), MODULE)


def main(argv: Sequence[str] | None = None) -> int:
    """The command.

    >>> main(["no-such-directory"])
    2
    """
    (directory,) = map(Path, sys.argv[1:] if argv is None else argv)
    return guard(lambda: run(directory))


def run(directory: Path) -> int:
    """One job; 0 when its piece exists."""
    settings = directory / "settings.json"
    values = read_settings(settings)
    arm, batches = values.pop("arm", None), values.pop("probe_batches", None)
    config = Config.from_mapping(values, origin=str(settings))
    if arm is None:
        _probe(directory, config, batches)
        return 0
    piece_of(directory.parents[1], arm, config).get(_training(arm, config, directory / "run"))
    drop_weights(directory / "run")
    return 0


def _probe(directory: Path, config: Config, batches: int) -> None:
    from research.conflicts.gradients import load_material

    material = load_material(config)
    for stage, piece in probes_of(directory.parents[1], config, batches).items():

        def compute(stage: str = stage) -> dict[str, Any]:
            record = probe_stage(material, directory / "run", stage, batches)
            return {**record, "levels": []}  # of small batches, which the conflict study looks at

        piece.get(compute)
    drop_weights(directory / "run")
    print(f"probed seed {config.seed}")


def _training(arm: str, config: Config, run: Path) -> Callable[[], dict[str, Any]]:
    from research.surgery.controls import Recorded
    from research.surgery.records import arm_record, steps_of

    def compute() -> dict[str, Any]:
        method = methods()[CONTROL if arm == LONG else arm](config.seed)
        steps = config.epochs * (config.steps_per_epoch or 0)
        train(config, run, None, Recorded(method, steps))
        return steps_of(run, config.epochs) if arm == LONG else arm_record(run)

    return compute


if __name__ == "__main__":
    sys.exit(main())
