"""The factorial as a whole: its runs as jobs of the runner, the replays, and the page.

study.json says which pieces belong to the page, so that the page can be written again without
computing anything. pieces.json beside the page holds both, and is all that the page, or a
study that goes on, needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bert_mtl_demo.config import Config
from bert_mtl_demo.store import write_json
from bert_mtl_demo.study.settings import NAMED, StudySettings
from research.conflicts.pieces import Piece, keep, read, restore
from research.conflicts.study import INDEX, about
from research.conflicts.study import batches_of as probe_size
from research.surgery.arms import LONG_EPOCHS, LONG_STEPS, config_of, long_config, methods
from research.surgery.jobs import LONG, job_of, piece_of, probe_job, probes_of

RESULTS = "pieces.json"
PROBE_BATCHES = 512  # of 32 examples: 16,384 of each task at each stage
BETAS = (0.001, 0.01, 0.05, 0.1)
PUBLISHED_STEPS = 18_000  # of an epoch, in the run whose counts were published


def run_study(
    settings: StudySettings, long_steps: int = LONG_STEPS, probe_seeds: Sequence[int] = ()
) -> int:
    """Do what is not done yet, and write the page; the exit code.

    Args:
        settings: of all runs.
        long_steps: of the run that the count law is checked on.
        probe_seeds: of the plain sum's runs in which the expected gradients are probed.
    """
    settings.refuse_missing()
    directory = settings.directory / "surgery"
    restore(directory, INDEX, RESULTS)
    if not settings.page_only:
        code = _compute(settings, long_steps, probe_seeds, directory)
        if code:
            return code
    from research.surgery import page

    print(f"page: {page.write(directory)}")
    keep(directory, INDEX, RESULTS)
    return 0


def _compute(
    settings: StudySettings, long_steps: int, probe_seeds: Sequence[int], directory: Path
) -> int:
    """All pieces, and the index that the page is written from."""
    configs = {seed: config_of(settings, seed) for seed in settings.seeds}
    long = long_config(settings, long_steps)
    # With the plain sum, grouping by layer changes nothing but the log.
    probed = {seed: replace(config_of(settings, seed), grouping="layer") for seed in probe_seeds}
    batches = probe_size(settings, default=PROBE_BATCHES)
    from bert_mtl_demo.study.runner import run_for_page

    # Seeds outside, so that all arms have their first; the long run last.
    jobs = {
        f"{arm} {seed}": job_of(directory, arm, config)
        for seed, config in configs.items()
        for arm in methods()
    } | {LONG: job_of(directory, LONG, long)}
    jobs |= {f"probes {s}": probe_job(directory, config, batches) for s, config in probed.items()}
    code = run_for_page("surgery", jobs, workers=settings.jobs, command=settings.command)
    if code:
        return code
    index = {
        "options": {
            **_options(settings, configs[settings.seeds[0]], long_steps),
            **({"probe_batches": batches, "probe_seeds": list(probe_seeds)} if probed else {}),
        },
        "about": about(settings),
        "pieces": {
            "runs": {
                arm: {
                    str(seed): piece_of(directory, arm, config).path.name
                    for seed, config in configs.items()
                }
                for arm in methods()
            },
            "long run": piece_of(directory, LONG, long).path.name,
            "replays": _replayed(directory, long).path.name,
            "published size": _simulated(directory),
            "probes": {
                str(seed): {
                    stage: piece.path.name
                    for stage, piece in probes_of(directory, config, batches).items()
                }
                for seed, config in probed.items()
            },
        },
    }
    write_json(directory / INDEX, index)
    return 0


def _replayed(directory: Path, config: Config) -> Piece:
    """The long run's gradients under several rates."""
    from research.surgery.count_law import replays

    long = piece_of(directory, LONG, config)
    piece = Piece(directory / "pieces", "replays", {**long.settings, "betas": list(BETAS)})
    piece.get(lambda: replays(read(long.path)["result"], BETAS))
    return piece


def _simulated(directory: Path) -> dict[str, str]:
    """Normal cosines at the published size, under several rates; the pieces' names."""
    from research.conflicts.simulation import alterations

    names = {}
    for beta in BETAS:
        settings: dict[str, Any] = {
            "steps": PUBLISHED_STEPS,
            "epochs": 3,
            "mean": 0.0,
            "beta": beta,
        }
        piece = Piece(directory / "pieces", f"simulation {beta:g}", settings)
        piece.get(partial(alterations, **settings))
        names[f"{beta:g}"] = piece.path.name
    return names


def _options(settings: StudySettings, config: Config, long_steps: int) -> dict[str, Any]:
    """The settings as the page shows them."""
    shown = ("batch_size", "steps_per_epoch", "lr", "dev_limit", "device", "amp")
    return {
        "data": config.data if config.data in NAMED else "DIR",
        "encoder": config.encoder if config.encoder == "minilm" else "DIR",
        "encoder_layers": list(config.encoder_layers),
        "seeds": list(settings.seeds),
        **{name: getattr(config, name) for name in shown},
        "long_steps": long_steps // LONG_EPOCHS * LONG_EPOCHS,
        "settings": dict(settings.set),
        "command": settings.portable_command,
    }


def load(directory: Path) -> dict[str, Any]:
    """The index with every file name replaced by what the file holds."""
    from research.conflicts import study

    return study.load(directory)
