"""The batches of each step: the streams of all tasks under one scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch

from bert_mtl_demo.batching.alternating import (
    Annealed,
    Interleaved,
    Proportional,
    RoundRobin,
    Sequential,
    Sqrt,
)
from bert_mtl_demo.batching.joint import Method1, Method2, Method3, UniformPartial, Zipped
from bert_mtl_demo.batching.scheme import Frame, Scheme
from bert_mtl_demo.batching.streams import OnePositive, Stream, seed_of
from bert_mtl_demo.config import Config
from bert_mtl_demo.data.tokenization import EncodedSet

# The names and their order are those of `config.BATCHINGS`.
SCHEMES: dict[str, type[Scheme]] = {
    "zipped": Zipped,
    "method_1": Method1,
    "method_2": Method2,
    "method_3": Method3,
    "uniform_partial": UniformPartial,
    "round_robin": RoundRobin,
    "proportional": Proportional,
    "sqrt": Sqrt,
    "annealed": Annealed,
    "sequential": Sequential,
    "interleaved": Interleaved,
}


@final
class Batches:
    """The streams of all tasks under one scheme.

    Args:
        lengths: task -> tokens of each of its examples, in the order of the tasks.
        scheme: a name in `SCHEMES`.
        batch_size, seed: those of the settings.
        partial_batch, epochs, steps_per_epoch: those of the settings.
        epochs_per_pass: without `steps_per_epoch`, an epoch is this part of the scheme's pass.
        fraction: of an epoch's steps that are taken.
        sizes: examples of each task that the scheme is laid out for, if the sets were limited.
        one_positive: task -> labels, where a batch must be one positive pair and negatives.

    >>> batches = Batches({"sst": [3, 4], "sts": [5]}, scheme="zipped", batch_size=1, seed=0)
    >>> list(batches.at(0))
    ['sst', 'sts']
    """

    def __init__(
        self,
        lengths: Mapping[str, Sequence[int]],
        *,
        scheme: str,
        batch_size: int,
        seed: int,
        partial_batch: int = 4,
        epochs: int = 1,
        steps_per_epoch: int | None = None,
        epochs_per_pass: int = 1,
        fraction: float = 1.0,
        sizes: Mapping[str, int] | None = None,
        one_positive: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        sizes = sizes or {name: len(rows) for name, rows in lengths.items()}
        frame = Frame(
            *(sizes, batch_size, partial_batch, epochs, steps_per_epoch, epochs_per_pass, fraction)
        )
        self.scheme = SCHEMES[scheme](frame)
        self.generator = torch.Generator().manual_seed(seed_of(f"{seed}/draws"))
        labels, parts = one_positive or {}, self.scheme.batch_sizes()
        fewest = self.scheme.fewest()
        self.streams: dict[str, Stream | OnePositive] = {
            name: OnePositive(rows, labels[name], parts[name], seed, name, fewest[name])
            if name in labels
            else Stream(rows, parts[name], seed_of(f"{seed}/{name}"))
            for name, rows in lengths.items()
        }

    def at(self, step: int) -> dict[str, list[int]]:
        """Indices of the next batch of each task that takes part in the step after `step` steps.

        Steps are asked for in order, each once: asking is what moves the streams on.
        """
        if self.scheme.fresh_epochs and step % self.steps_per_epoch == 0:
            for stream in self.streams.values():
                stream.restart()
        return {
            name: self.streams[name].next() if count is None else self.streams[name].take(count)
            for name, count in self.scheme.turn(step, self.generator).items()
        }

    @property
    def steps_per_epoch(self) -> int:
        """Steps from one evaluation to the next: as asked for, or as the scheme has it."""
        return self.scheme.steps_per_epoch

    @property
    def horizon(self) -> int:
        """Steps of all epochs."""
        return self.scheme.horizon

    def epoch(self, step: int) -> int:
        """The epoch, from 1, of the step after `step` steps."""
        return self.scheme.epoch(step)

    def steps_per_pass(self) -> int:
        """Steps in one way through the data, as the scheme has it."""
        return self.scheme.steps_per_pass()

    def state_dict(self) -> dict[str, Any]:
        """The state of every stream, and of the generator that draws tasks."""
        streams = {name: stream.state_dict() for name, stream in self.streams.items()}
        return {"streams": streams, "draws": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue everything where the state was taken."""
        for name, stream in self.streams.items():
            stream.load_state_dict(state["streams"][name])
        self.generator.set_state(state["draws"])


def build_batches(config: Config, train: Mapping[str, EncodedSet]) -> Batches:
    """The batches that the settings ask for."""
    ranked = config.trained_of("similarity") if config.sts_loss == "mnrl_one" else ()
    whole = None
    if config.fraction is not None:
        whole = {name: examples.whole or len(examples) for name, examples in train.items()}
    return Batches(
        {name: examples.lengths() for name, examples in train.items()},
        scheme=config.batching,
        batch_size=config.batch_size,
        seed=config.seed,
        partial_batch=config.partial_batch,
        epochs=config.epochs,
        steps_per_epoch=config.steps_per_epoch,
        # Two epochs of a third fit into two minutes on two CPU cores, and show a second evaluation.
        epochs_per_pass=3 if config.data == "sample" and not config.task and whole is None else 1,
        fraction=1.0 if config.fraction is None else config.fraction,
        sizes=whole,
        one_positive={name: train[name].labels for name in ranked},
    )
