"""The study as a whole: probe, simulate, train, and write the page.

Every step is a piece (see `pieces`); study.json says which pieces belong to the page, so that the
page can be written again without computing anything.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bert_mtl_demo.errors import CheckpointError
from research.conflicts.options import ARMS, Options
from research.conflicts.pieces import Pieces, about, key, read_json, write_json

INDEX = "study.json"
PUBLISHED = {"steps": 18_000, "epochs": 10}  # the size of the run whose counts were published
# What a piece does not depend on: where things lie, and how its run was watched.
ELSEWHERE = ("output", "device", "cache", "checkpoint_every", "max_nonfinite")


def run(options: Options) -> Path:
    """Do what is not done yet, and write the page.

    Args:
        options: the settings.

    Returns:
        The page, conflicts.md in the output folder.
    """
    from research.conflicts import page

    pieces = Pieces(options.directory / "pieces")
    index: dict[str, Any] = {
        "options": _plain(options.to_dict()),
        "about": about(options.device, options.threads),
        "pieces": {},
    }
    index["pieces"] |= _probe(options, pieces)
    index["pieces"]["simulation"] = _simulate(options, pieces, index["pieces"]["probes"])
    index["pieces"]["runs"] = _compare(options, pieces)
    write_json(options.directory / INDEX, index)
    return page.write(options.directory)


def load(directory: Path) -> dict[str, Any]:
    """The index with every file name replaced by what the file holds."""
    index: dict[str, Any] = read_json(directory / INDEX)

    def opened(entry: Any) -> Any:
        if isinstance(entry, str):
            return read_json(directory / "pieces" / entry)["result"]
        if isinstance(entry, list):
            return [opened(each) for each in entry]
        return {name: opened(each) for name, each in entry.items()}

    return {**index, "pieces": opened(index["pieces"])}


def _simulate(options: Options, pieces: Pieces, probes: Mapping[str, str]) -> dict[str, str]:
    """The model-free curve at the published size and at this study's."""
    from research.conflicts.simulation import alterations

    own = {"steps": options.steps, "epochs": options.epochs, "seeds": 64}
    measured = _measured([read_json(pieces.directory / name)["result"] for name in probes.values()])
    found = {}
    for title, settings in (
        *((f"published size, mean {mean:g}", {**PUBLISHED, "mean": mean}) for mean in (0.05, 0.0)),
        *((f"own size, mean {mean:g}", {**own, "mean": mean}) for mean in (0.05, 0.0)),
        ("own size, as measured", {**own, **measured}),
    ):
        name = f"simulation, {title}"
        pieces.get(name, settings, partial(alterations, **settings))
        found[title] = pieces.path(name, settings).name
    return found


def _measured(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread of each ordered pair's cosine at the size of a step's batch, over all stages.

    Rounded, so that the simulation is not another one on a machine that adds in another order.
    """
    from research.conflicts import estimate

    stages = [estimate.Probed.of(record) for record in records]
    tasks = range(len(stages[0].tasks))
    found = [
        np.concatenate(
            [
                estimate.cosines(probed.level(min(probed.levels)))[:, :, i, :, j].ravel()
                for probed in stages
            ]
        )
        for i, j in permutations(tasks, 2)
    ]
    return {
        "mean": [round(float(np.nanmean(pair)), 4) for pair in found],
        "sd": [round(float(np.nanstd(pair)), 4) for pair in found],
        "pairs": len(found),
    }


def _compare(options: Options, pieces: Pieces) -> dict[str, dict[str, str]]:
    """Train every arm with every seed; the files' names by arm and seed."""
    jobs = [(arm, seed) for seed in options.seeds for arm in ARMS]
    waiting = [job for job in jobs if not _path(options, pieces, *job).exists()]
    print(f"{len(waiting)} of {len(jobs)} runs to train")
    if options.jobs == 1 or len(waiting) < 2:
        for job in tqdm(waiting, unit="run", disable=None):
            train_one(options, *job)
    else:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
            futures = [pool.submit(train_one, options, *job) for job in waiting]
            try:
                for future in tqdm(futures, unit="run", disable=None):
                    future.result()
            except BrokenProcessPool:
                raise CheckpointError(
                    "a run was killed, as happens for want of memory; the same command goes on, "
                    "with fewer --jobs if need be"
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return {
        arm: {str(seed): _path(options, pieces, arm, seed).name for seed in options.seeds}
        for arm in ARMS
    }


def train_one(options: Options, arm: str, seed: int) -> None:
    """One run and its piece."""
    from research.conflicts.training import compared

    _set_threads(options)
    pieces, settings = Pieces(options.directory / "pieces"), run_settings(options, arm, seed)
    config = options.config(arm, seed)
    place = options.directory / "runs" / f"{config.method}-{seed}-{key(settings)}"
    pieces.get(f"run {arm} {seed}", settings, lambda: compared(replace(config, output=str(place))))


def _path(options: Options, pieces: Pieces, arm: str, seed: int) -> Path:
    return pieces.path(f"run {arm} {seed}", run_settings(options, arm, seed))


def run_settings(options: Options, arm: str, seed: int, **changes: Any) -> dict[str, Any]:
    """What decides a run's outcome."""
    values = options.config(arm, seed, **changes).to_dict()
    return {name: value for name, value in values.items() if name not in ELSEWHERE}


def _probe(options: Options, pieces: Pieces) -> dict[str, Any]:
    """The staged run of the plain sum: its layer map, and a probe at every stage."""
    from research.conflicts import stages

    _set_threads(options)
    seed = options.seeds[0]
    settings = run_settings(options, "sum", seed, grouping="layer")
    size = {"batches": options.probe_batches, "blocks": options.blocks}
    place = options.directory / "runs" / f"stages-{seed}-{key(settings)}"
    config = options.config("sum", seed, grouping="layer", output=str(place))
    staged = stages.Staged(config, options.stages(), **size)
    found = {}
    for stage in options.stages():
        each = {**settings, **size, "stage": stage, "step": options.stages()[stage]}
        pieces.get(f"probe {stage}", each, partial(staged.probe, stage))
        found[stage] = pieces.path(f"probe {stage}", each).name
    pieces.get("layers", settings, staged.layers)
    staged.close()
    return {"probes": found, "layers": pieces.path("layers", settings).name}


def _set_threads(options: Options) -> None:
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for the page: a folder of this machine is nobody else's business."""
    named = options["data"] in ("sample", "hub")
    return {**options, "output": "DIR", "data": options["data"] if named else "DIR"}
