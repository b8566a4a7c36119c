"""Fixed features: the vectors of a frozen encoder, computed once instead of at every step.

A frozen encoder is in evaluation mode, also during training: it draws no dropout, so a sentence has
the same vector in every epoch, and the heads' dropout draws the same numbers with and without the
cache. What differs is rounding alone, since a vector no longer depends on the padding of the batch
that it came in (about 1e-6 of its length in float32). So a setting decides, no key changes with it,
and the rows that qualify are those with `freeze_encoder`, no adapter, a pooling without weights of
its own (mean, cls, pooler), and pairs read apart.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from bert_mtl_demo.data.tokenization import Batch, EncodedSet, Rows
from bert_mtl_demo.model.multitask import MultitaskModel
from bert_mtl_demo.runtime import Precision

BATCH_SIZE = 128  # sentences


@torch.no_grad()
def with_features(model: MultitaskModel, examples: EncodedSet, precision: Precision) -> EncodedSet:
    """The same examples with the vectors that the model's frozen encoder gives their sentences.

    Args:
        model: on its device; left in the mode that it is in.
        examples: N of them.
        precision: that the vectors are computed in.

    Returns:
        A set with `vectors`, [N, W], or [2N, W] for pairs, on the CPU: first all first sentences.
    """
    was_training = model.training
    model.eval()
    sentences = examples.first + (examples.second or [])
    order = sorted(range(len(sentences)), key=lambda n: len(sentences[n]))  # little padding
    parts = []
    for start in range(0, len(order), BATCH_SIZE):
        chunk = [sentences[n] for n in order[start : start + BATCH_SIZE]]
        ids, mask = Rows(chunk).pad(torch.arange(len(chunk)), examples.pad)
        batch = Batch(ids.to(precision.device), mask.to(precision.device), torch.zeros(len(chunk)))
        with precision.autocast():
            parts.append(model.sentences(batch).cpu())
    model.train(was_training)
    ordered = torch.cat(parts)
    vectors = torch.empty_like(ordered)
    vectors[order] = ordered
    return replace(examples, vectors=vectors)
