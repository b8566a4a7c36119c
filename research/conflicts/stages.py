"""A run of the plain sum that is stopped at each stage, probed as it stands there, and goes on.

With the plain sum, grouping by layer changes nothing but the log, so the same run also gives the
map of cosines over layers and time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bert_mtl_demo.config import Config
from bert_mtl_demo.training.checkpoint import RunDirectory, load_state
from research.conflicts.gradients import Material, Sampler, load_material
from research.conflicts.probe import probe_model, seed_of
from research.conflicts.training import drop_weights, layer_map, read, train_to


class Staged:
    """The run, its model in memory, and its stages.

    Args:
        config: of the run, with its output.
        stages: name -> steps trained before it, in order.
        batches, blocks: as in `probe.probe`.
    """

    def __init__(
        self, config: Config, stages: Mapping[str, int], *, batches: int, blocks: int
    ) -> None:
        self.config, self.stages = config, stages
        self.size = {"batches": batches, "blocks": blocks}

    @cached_property
    def material(self) -> Material:
        """Loaded once, when the first stage needs it."""
        return load_material(self.config)

    def probe(self, stage: str) -> dict[str, Any]:
        """Train up to the stage, and probe: the plain values of `probe.probe`, step and scores."""
        step, scores = self.stages[stage], None
        untrained, model = self._untrained, self.material.model
        if step:
            run = train_to(self.config, step)
            model.load_state_dict(load_state(run.last)["model"])
            scores = read(run)["scores"]
        else:
            model.load_state_dict(untrained)
        seed = seed_of(self.config.seed, stage)
        with tqdm(total=self.size["batches"], desc=f"probe {stage}", disable=None) as bar:
            found = probe_model(
                Sampler(self.material, seed), **self.size, seed=seed, tick=bar.update
            )
        return {"stage": stage, "step": step, "scores": scores, **found}

    @cached_property
    def _untrained(self) -> Any:
        """The weights before training, taken before any others are loaded over them."""
        return {name: tensor.clone() for name, tensor in self.material.model.state_dict().items()}

    def layers(self) -> dict[str, Any]:
        """The map of cosines over layers and time, from the whole run."""
        return layer_map(train_to(replace(self.config, max_steps=None)))

    def close(self) -> None:
        """Delete the weights; the pieces are there."""
        drop_weights(RunDirectory(Path(str(self.config.output))))
