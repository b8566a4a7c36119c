"""SimCSE: pull the two sentences of a positive pair together, push all others of the batch away.

Supervised SimCSE without hard negatives, Gao et al. 2021, eq. 1 and 5: with h_i, h_i+ the vectors
of pair i, of N in the batch, sim the cosine, and tau the temperature,

    l_i = -log( exp(sim(h_i, h_i+) / tau) / sum_j exp(sim(h_i, h_j+) / tau) )

The vectors are mean-pooled, as in the sbert_simcse report. Positive pairs are the paraphrases of
the train set (and extra ones, where the data have them) and the train pairs whose similarity is
above 4.

The variant with SST: the report does not say how single sentences become pairs. Taken is the
paper's own definition, eq. 4: a sentence is its own positive under another dropout mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bert_mtl_demo import data
from bert_mtl_demo.config import Config
from bert_mtl_demo.data import DataError, Examples, Skipped
from bert_mtl_demo.data.pretraining import POSITIVES
from bert_mtl_demo.model.losses.in_batch import ranked
from bert_mtl_demo.model.losses.inputs import all_cosines
from bert_mtl_demo.pretraining.objective import Objective, Pairs, Start
from bert_mtl_demo.tasks import resolve

SIMILAR = 4.0  # a pair above it is a positive


def load(config: Config) -> tuple[Examples, list[Skipped]]:
    """Positive pairs: paraphrases, extra paraphrases, and pairs of high similarity."""
    return _load(config, ("para", "sts"))


def load_with_sst(config: Config) -> tuple[Examples, list[Skipped]]:
    """The same, and every train sentence of SST with itself."""
    return _load(config, ("para", "sts", "sst"))


def _load(config: Config, tasks: Sequence[str]) -> tuple[Examples, list[Skipped]]:
    splits, skipped = data.load(config.data, resolve(tasks), bad_rows=config.bad_rows)
    extra, more = data.load_positives(config.data, refuse=config.bad_rows == "refuse")
    # What a run may not train on, its stages may not see either.
    train = {name: split.train.limited(config.train_limit) for name, split in splits.items()}
    first, second = _positives(train, extra)
    if len(first) < 2:
        raise DataError(
            f"SimCSE needs at least two positive pairs and found {len(first)}: paraphrases, and "
            f"pairs with a similarity above {SIMILAR:g}. Give more data, or take the stage out of "
            "--pretrain."
        )
    return Examples(POSITIVES, first, second, [1] * len(first)), skipped + more


def _positives(train: dict[str, Examples], extra: Examples) -> tuple[list[str], list[str]]:
    pairs: list[tuple[str, ...]] = []
    for examples, least in ((train["para"], 0.0), (extra, 0.0), (train["sts"], SIMILAR)):
        kept = [row for row, label in enumerate(examples.labels) if label > least]
        pairs += examples.take(kept).texts()
    if "sst" in train:
        pairs += [(text, text) for (text,) in train["sst"].texts()]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


class Contrast(Objective):
    """Tell a sentence's partner from the other partners in the batch."""

    def __init__(self, start: Start, examples: Examples) -> None:
        pairs = Pairs.of(examples, start)
        super().__init__(start.encoder, pairs.lengths())
        self.pairs = pairs
        self.temperature = start.config.temperature

    def loss(self, indices: Sequence[int]) -> Tensor:
        """The mean of l_i over the batch."""
        return contrast(*self.pairs.vectors(self.encoder, indices), self.temperature)


def contrast(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The mean of l_i, for vectors [B, H] and [B, H].

    >>> far = torch.eye(2)
    >>> round(contrast(far, far, temperature=1.0).item(), 4)  # -log(e / (e + 1))
    0.3133
    """
    partners = torch.eye(len(first), dtype=torch.bool, device=first.device)
    return ranked(all_cosines(first, second) / temperature, partners)
