"""A finished run, loaded to answer: what `evaluate` and `predict` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_mtl_demo.config import Config
from bert_mtl_demo.data import Examples
from bert_mtl_demo.data.tokenization import encode
from bert_mtl_demo.errors import CheckpointError, ConfigError, DemoError, unknown
from bert_mtl_demo.model.encoder import Source, blank_encoder, load_tokenizer
from bert_mtl_demo.model.multitask import MultitaskModel, new_model
from bert_mtl_demo.model.pooling import needs_pooler
from bert_mtl_demo.pretraining.cache import cache_directory
from bert_mtl_demo.runtime import PRECISIONS, Precision, choose_device
from bert_mtl_demo.tasks import Task
from bert_mtl_demo.training.checkpoint import RunDirectory, read_weights
from bert_mtl_demo.training.features import with_features
from bert_mtl_demo.training.inference import Answers, answer
from bert_mtl_demo.training.run_settings import edited


@dataclass(frozen=True)
class LoadedRun:
    """The best weights of a run with all they need to answer."""

    run: RunDirectory
    config: Config
    model: MultitaskModel
    tokenizer: Any
    precision: Precision

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of the run, in order."""
        return tuple(self.config.definitions.values())

    def answer(self, examples: Examples, *, cached: bool = False) -> Answers:
        """The model's answers, in the order of the examples.

        `cached` takes the sentences' vectors from the cache, if the run did.
        """
        length, pairs = self.config.max_length, self.config.pairs
        encoded = encode(examples, examples.task, self.tokenizer, length, pairs)
        if cached and self.config.cache_features:
            cache = cache_directory(self.config.cache)
            name = examples.task.name
            encoded = with_features(self.model, {name: encoded}, self.precision, cache)[name]
        return answer(self.model, encoded, self.precision)

    def ask(self, task: str, first: Sequence[str], second: Sequence[str] | None = None) -> Answers:
        """The model's answers to sentences, or pairs of sentences, that have no labels.

        Args:
            task: one of the run's.
            first: N sentences.
            second: N sentences, for a task of pairs.

        Returns:
            `values` [N], classes or scores on the labels' scale; `probabilities` [N, C] of classes.

        Raises:
            DemoError: for a task that the run has not.
            ValueError: for `second` where a task takes one sentence, or the other way round.
        """
        if task not in self.config.definitions:
            raise DemoError(f"{self.run.path}: {unknown('task', task, self.config.definitions)}")
        pairs = None if second is None else list(second)
        unlabelled = [0] * len(first)
        return self.answer(Examples(self.config.definitions[task], list(first), pairs, unlabelled))


def load_run(directory: str | Path, device: str | None = None, amp: str | None = None) -> LoadedRun:
    """The best weights of a run, in the precision it was trained in or in another one.

    >>> load_run("no-such-run")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bert_mtl_demo.errors.CheckpointError: no-such-run: is not a run directory ...
    """
    run = RunDirectory(Path(directory))
    config = run.load_config()
    if amp is not None and amp not in ("auto", *PRECISIONS):
        raise ConfigError(f"amp = {amp}: {unknown('precision', amp, ('auto', *PRECISIONS))}")
    chosen = choose_device(device or "auto")
    weights, made_with = read_weights(run.best)
    edited(config, made_with.get("settings", {}), run.config)  # 0.1.0 kept none
    run.refuse_changed(made_with.get("files", {}))
    tokenizer = load_tokenizer(Source(str(run.encoder), local=True))
    model = new_model(config, blank_encoder(run.encoder, pooler=needs_pooler(config)))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{run.best}: does not fit {run.config} ({reason})") from None
    return LoadedRun(
        run, config, model.to(chosen).eval(), tokenizer, Precision(amp or config.amp, chosen)
    )
