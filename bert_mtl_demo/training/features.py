"""Fixed features: the vectors of a frozen encoder, computed once instead of at every step.

A frozen encoder is in evaluation mode, also during training: it draws no dropout, so a sentence has
the same vector in every epoch, and the heads' dropout draws the same numbers with and without the
cache. What differs is rounding alone, since a vector no longer depends on the padding of the batch
that it came in (about 1e-6 of its length in float32). So a setting decides, no key changes with it,
and the rows that qualify are those with `freeze_encoder`, no adapter, a pooling without weights of
its own (mean, cls, pooler), and pairs read apart.

The vectors are entries of the cache: runs of the same encoder on the same sentences, as those of
other seeds are, find them there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bert_mtl_demo import store
from bert_mtl_demo.data.tokenization import Batch, EncodedSet, Rows
from bert_mtl_demo.model.multitask import MultitaskModel
from bert_mtl_demo.runtime import Precision

BATCH_SIZE = 128  # sentences


def with_features(
    model: MultitaskModel, sets: Mapping[str, EncodedSet], precision: Precision, cache: Path
) -> dict[str, EncodedSet]:
    """The same examples with the vectors that the model's frozen encoder gives their sentences.

    Args:
        model: on its device; left in the mode that it is in.
        sets: by task, N examples each.
        precision: that the vectors are computed in.
        cache: the directory in which they are kept, and looked up.

    Returns:
        Sets with `vectors`, [N, W], or [2N, W] for pairs, on the CPU: first all first sentences.
    """
    from safetensors.torch import load_file, save_file

    encoder = _encoder_hash(model, precision)

    def known(examples: EncodedSet) -> EncodedSet:
        sentences = [*examples.first, *(examples.second or [])]

        def write(path: Path) -> None:
            save_file({"vectors": _vectors(model, sentences, examples.pad, precision)}, path)

        digest = encoder.copy()
        digest.update(json.dumps(sentences).encode())
        entry = cache / f"features-{digest.hexdigest()[:20]}.safetensors"
        return replace(examples, vectors=load_file(store.get_or_write(entry, write))["vectors"])

    return {name: known(examples) for name, examples in sets.items()}


@torch.no_grad()
def _vectors(
    model: MultitaskModel, sentences: list[list[int]], pad: int, precision: Precision
) -> Tensor:
    was_training = model.training
    model.eval()
    order = sorted(range(len(sentences)), key=lambda n: len(sentences[n]))  # little padding
    parts = []
    for start in range(0, len(order), BATCH_SIZE):
        chunk = [sentences[n] for n in order[start : start + BATCH_SIZE]]
        ids, mask = Rows(chunk).pad(torch.arange(len(chunk)), pad)
        batch = Batch(ids.to(precision.device), mask.to(precision.device), torch.zeros(len(chunk)))
        with precision.autocast():
            parts.append(model.sentences(batch).cpu())
    model.train(was_training)
    ordered = torch.cat(parts)
    vectors = torch.empty_like(ordered)
    vectors[order] = ordered
    return vectors


def _encoder_hash(model: MultitaskModel, precision: Precision) -> hashlib._Hash:
    """A hash of the encoder and the arithmetic, to be continued with the sentences."""
    digest = hashlib.sha256()
    encoder = {**model.encoder.config.to_dict(), "_name_or_path": None}
    settings = [encoder, model.config.pooling, str(precision.dtype), precision.device.type]
    digest.update(json.dumps([*settings, torch.__version__], sort_keys=True, default=str).encode())
    for name, tensor in model.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest
