"""Natural language inference: the classification objective of Reimers & Gurevych 2019, section 3.

o = softmax(W [u; v; |u - v|]) with u and v the mean-pooled sentence vectors. The sbert_simcse
report says neither what its stage minimises nor whether it keeps the neutral pairs. Taken here are
this objective and the two classes that it names, entailment and contradiction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bert_mtl_demo.config import Config
from bert_mtl_demo.data import Examples, Skipped, load_inference
from bert_mtl_demo.pretraining.objective import Objective, Pairs, Start


def load(config: Config) -> tuple[Examples, list[Skipped]]:
    """The pairs."""
    return load_inference(config.data, refuse=config.bad_rows == "refuse")


class Inference(Objective):
    """Say whether the first sentence entails or contradicts the second."""

    def __init__(self, start: Start, examples: Examples) -> None:
        pairs = Pairs.of(examples, start)
        remark = (
            "the sample has no inference pairs; its paraphrases stand in, a paraphrase as an "
            "entailment and any other pair as a contradiction"
        )
        sample = start.config.data == "sample"
        super().__init__(start.encoder, pairs.lengths(), remark if sample else "")
        self.pairs = pairs
        self.labels = [int(label) for label in examples.labels]
        self.head = nn.Linear(3 * start.encoder.config.hidden_size, examples.task.classes or 1)

    def loss(self, indices: Sequence[int]) -> Tensor:
        """Mean cross-entropy."""
        u, v = self.pairs.vectors(self.encoder, indices)
        logits = self.head(torch.cat([u, v, (u - v).abs()], dim=-1)).float()
        labels = torch.tensor([self.labels[i] for i in indices], device=logits.device)
        return F.cross_entropy(logits, labels)
