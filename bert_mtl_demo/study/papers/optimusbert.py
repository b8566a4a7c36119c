"""OptimusBERT: PCGrad, multiple-negatives ranking, and weighting by uncertainty."""

from __future__ import annotations

from functools import partial

from bert_mtl_demo.study.published import STARTER, Paper, Row, scores

NAME = "optimusbert"

COMMON = {
    **STARTER,
    "para_loss": "bce",
    "sts_head": "linear",
    "sts_loss": "huber",
    "weight_decay": 1e-3,
}
STS_ONLY = {**COMMON, "untrained": ("sst", "para")}
JOINT = {**COMMON, "batching": "zipped"}
SURGERY = {**JOINT, "method": "pcgrad"}

_SCORED = "Trained on sts alone; the other two heads are scored as they were drawn."
_RANKING = (
    "The ranking loss takes the place of the Huber loss. The report calls its S the model's "
    "similarity scores, so S is the head's score of every two sentences of a batch (Henderson et "
    "al. 2017)."
)
_CANCELS = (
    "Under the report's one linear layer the part of the first sentence is the same for all "
    "candidates and cancels in the softmax: the loss ranks second sentences by themselves."
)


_row = partial(Row, NAME)

PAPER = Paper(
    NAME,
    "OptimusBERT: Exploring BERT Transformer with Multi-Task Fine-Tuning, Gradient Surgery, and "
    "Adaptive Multiple Negative Rank Loss Learning Fine-Tuning",
    (
        _row(
            "Baseline (trained on sts only)",
            "Figure 1",
            scores(0.132, 0.590, 0.360, leaderboard=0.467),
            STS_ONLY,
            _SCORED,
        ),
        _row(
            "+ cosine MNRL",
            "Figure 1",
            scores(0.124, 0.605, 0.379, leaderboard=0.473),
            {**STS_ONLY, "sts_loss": "mnrl_cosine"},
            f"{_SCORED} {_RANKING} {_CANCELS}",
        ),
        _row(
            "+ threshold MNRL",
            "Figure 1",
            scores(0.126, 0.567, 0.370, leaderboard=0.459),
            {**STS_ONLY, "sts_loss": "mnrl_label"},
            f"{_SCORED} {_RANKING} {_CANCELS}",
        ),
        _row(
            "multitask finetune", "Figure 1", scores(0.514, 0.774, 0.394, leaderboard=0.662), JOINT
        ),
        _row(
            "multitask + PCGrad",
            "Figure 1",
            scores(0.514, 0.774, 0.394, leaderboard=0.662),
            SURGERY,
            "Published with the very scores of the row without PCGrad.",
        ),
        _row(
            "cosine MNRL + multitask + PCGrad",
            "Figure 1",
            scores(0.481, 0.793, 0.369, leaderboard=0.653),
            {**SURGERY, "sts_loss": "mnrl_cosine"},
            f"{_RANKING} {_CANCELS}",
        ),
        _row(
            "threshold MNRL + multitask + PCGrad",
            "Figure 1",
            scores(0.505, 0.770, 0.367, leaderboard=0.653),
            {**SURGERY, "sts_loss": "mnrl_label"},
            f"{_RANKING} {_CANCELS}",
        ),
        _row(
            "multitask + homoscedastic + dropout (7 ep)",
            "Figure 3",
            scores(0.481, 0.782, 0.380, leaderboard=0.651),
            {**JOINT, "weighting": "uncertainty", "dropout": 0.4, "epochs": 7},
            "The text says dropout .4 for this row and .43 elsewhere; its test row adds PCGrad.",
        ),
        _row(
            "cosine MNRL + multitask + PCGrad + 2 hidden layers (7 ep)",
            "Figure 3",
            scores(0.496, 0.794, 0.362, leaderboard=0.657),
            {**SURGERY, "sts_loss": "mnrl_cosine", "hidden_layers": 2, "epochs": 7},
            _RANKING,
        ),
    ),
    baseline="multitask finetune",
    test_scores=(
        ("multitask + PCGrad", scores(0.528, 0.774, 0.338, leaderboard=0.657)),
        ("homoscedastic + PCGrad + dropout", scores(0.520, 0.784, 0.334, leaderboard=0.657)),
        ("cosine MNRL + PCGrad + hidden", scores(0.514, 0.792, 0.341, leaderboard=0.659)),
    ),
)
