"""PALs and Gradient Vaccine: what is built into the model, and what is done to its gradients.

An epoch is 18,000 batches of each task ("the model will see each data point in each of the tasks at
least once": 141,506 pairs in batches of 8 are 17,689). With one task per step that is 54,000 steps;
with GradVac, whose log counts 54,000 gradients per epoch, it is 18,000 steps of three gradients.
"""

from __future__ import annotations

from typing import Any

from bert_mtl_demo.study.published import STARTER, Paper, Row, scores

NAME = "pals_gradvac"
BATCHES = 18_000

COMMON = {**STARTER, "sts_head": "concat"}
TURNS = {**COMMON, "batching": "round_robin", "steps_per_epoch": 3 * BATCHES}
# The rule of the code that the report builds on; the conflict study has the paper's beside it.
VACCINE = {
    **COMMON,
    "method": "gradvac",
    "gradvac_update": "on_alter",
    "batching": "zipped",
    "steps_per_epoch": BATCHES,
}
STS_ONLY = {
    **COMMON,
    "tasks": ("sts",),
    "batching": "zipped",
    "epochs": 1,
    "steps_per_epoch": BATCHES,
}

_RULE = (
    "GradVac's targets move only when a gradient is altered, as in the code the report builds on; "
    "the paper moves them at every step. The conflict study shows both."
)


def _row(name: str, published: dict[str, float], settings: dict[str, Any], note: str = "") -> Row:
    return Row(NAME, name, "Table 1", published, settings, note)


def _short(name: str, published: dict[str, float], settings: dict[str, Any], note: str) -> Row:
    return Row(NAME, name, "Section 6.4", published, settings, note)


PAPER = Paper(
    NAME,
    "PALs and Gradient Vaccine for NLP Multitask Learning",
    (
        _row(
            "Baseline (separate)",
            scores(0.516, 0.783, 0.361, mean=0.553),
            {**TURNS, "freeze_encoder": True, "batching": "sequential"},
            "One trained layer per task on the frozen encoder, task after task.",
        ),
        _row("Naive multitask", scores(0.498, 0.765, 0.364, mean=0.542), TURNS),
        _row("Gradient Vaccine multitask", scores(0.494, 0.771, 0.367, mean=0.544), VACCINE, _RULE),
        _row(
            "PALs multitask", scores(0.501, 0.773, 0.363, mean=0.546), {**TURNS, "adapter": "pals"}
        ),
        _row(
            "Cosine similarity",
            scores(0.492, 0.769, 0.757, mean=0.673),
            {**TURNS, "sts_head": "cosine"},
        ),
        _row(
            "Combined (PALs + GradVac + cosine)",
            scores(0.499, 0.787, 0.727, mean=0.671),
            {**VACCINE, "adapter": "pals", "sts_head": "cosine"},
            _RULE,
        ),
        _short(
            "STS only: linear baseline",
            scores(sts=0.341),
            {**STS_ONLY, "freeze_encoder": True},
            "The report's STS baseline after one epoch; its baselines freeze the encoder.",
        ),
        _short(
            "STS only: multiple-negatives ranking loss",
            scores(sts=0.008),
            {**STS_ONLY, "sts_loss": "mnrl_one"},
            "A batch holds one pair with a label above 3; the report's p - log(sum e^n) is made "
            "large, on the head's scores.",
        ),
        _short(
            "STS only: triplet loss",
            scores(sts=0.116),
            {**STS_ONLY, "sts_loss": "triplet", "sts_head": "cosine"},
            "The report subtracts distances and weighs by the label; margin and distance are those "
            "of Sentence-BERT. The loss trains vectors, no head, so the cosine is scored.",
        ),
        _short(
            "STS only: negative sampling",
            {},
            {**STS_ONLY, "sts_loss": "negative_sampling"},
            "Named without a formula or a score; taken as in Mikolov et al. (2013).",
        ),
    ),
    baseline="Naive multitask",
    test_scores=(
        ("Cosine similarity", scores(0.505, 0.501, 0.773, mean=0.579)),
        ("Combined (PALs + GradVac + cosine)", scores(0.512, 0.500, 0.703, mean=0.572)),
    ),
)
