"""Masked language modelling on plain texts: Devlin et al. 2018, section 3.1, task 1.

15% of the tokens are chosen; of these 80% become [MASK], 10% a random token, 10% stay; the loss is
the cross-entropy of the chosen tokens. The choice is made anew whenever a text is read, as in
Liu et al. 2019, section 4.1 (dynamic masking). A text is one sequence, cut at `max_length`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from bert_mtl_demo.config import Config
from bert_mtl_demo.data import Examples, Skipped, load_texts
from bert_mtl_demo.data.tokenization import tokenise
from bert_mtl_demo.errors import EncoderError
from bert_mtl_demo.model.encoder import ATTENTION, Source, quiet
from bert_mtl_demo.pretraining.objective import Objective, Start

IGNORED = -100  # the collator's label of a token that was not chosen


def load(config: Config) -> tuple[Examples, list[Skipped]]:
    """The texts."""
    return load_texts(config.data, refuse=config.bad_rows == "refuse")


class MaskedWords(Objective):
    """Guess the words behind the masks.

    The head is BERT's own: dense, GELU, LayerNorm, and the word embeddings again as output matrix.
    An encoder that was published without it (all-MiniLM) starts with a fresh one, whose output
    matrix is all the same the embeddings it has.
    """

    def __init__(self, start: Start, examples: Examples) -> None:
        rows = tokenise(start.tokenizer, examples.first, start.config.max_length)
        head, fresh = load_head(start.source, start.encoder)
        remark = "the encoder brings no head for masked words, so a fresh one is used"
        super().__init__(start.encoder, [len(row) for row in rows], remark if fresh else "")
        self.head = head
        self.rows = rows
        self.masker = masker(start.tokenizer, start.config.seed)

    def loss(self, indices: Sequence[int]) -> Tensor:
        """Mean cross-entropy of the chosen tokens; 0 when none was."""
        ids, mask, labels = (
            part.to(self.encoder.device)
            for part in mask_rows(self.masker, [self.rows[i] for i in indices])
        )
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, T, H]
        chosen = labels != IGNORED
        # Only these need the output matrix, which is most of the work.
        logits = self.head(hidden[chosen]).float()  # [M, vocabulary]
        total = F.cross_entropy(logits, labels[chosen], reduction="sum")
        return total / chosen.sum().clamp(min=1)


def load_head(source: Source, encoder: Any) -> tuple[Any, bool]:
    """BERT's head for masked words on top of `encoder`, and whether it is untrained."""
    from transformers import BertForMaskedLM

    # Any: the stubs do not know that output_loading_info makes it two.
    load: Any = BertForMaskedLM.from_pretrained
    with quiet():
        model, info = load(
            source.place,
            local_files_only=source.local,
            attn_implementation=ATTENTION,
            dtype=encoder.dtype,
            output_loading_info=True,
        )
    model.bert = encoder
    model.tie_weights()
    missing = [name for name in info["missing_keys"] if "transform.dense.weight" in name]
    return model.cls, bool(missing)


def masker(tokenizer: Any, seed: int) -> Any:
    """The collator that masks tokens, with its own generator."""
    from transformers import DataCollatorForLanguageModeling

    if tokenizer.mask_token is None:
        raise EncoderError(
            "stage mlm: the encoder's tokenizer has no mask token. Name another encoder, or take "
            "mlm out of --pretrain."
        )
    return DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=seed)


def mask_rows(masker: Any, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows of ids as ids with masks [B, T], what is real [B, T], and labels [B, T], int64."""
    special = set(masker.tokenizer.all_special_ids) - {masker.tokenizer.unk_token_id}
    batch = masker(
        [
            {"input_ids": list(row), "special_tokens_mask": [int(i in special) for i in row]}
            for row in rows
        ]
    )
    ids, mask, labels = (batch[key].long() for key in ("input_ids", "attention_mask", "labels"))
    return ids, mask, labels
