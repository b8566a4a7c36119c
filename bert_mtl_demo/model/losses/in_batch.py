"""Losses in which the pairs of a batch compete: the right second sentence against all others.

    ranked(S, P) = - mean over (i, j) in P of (S_ij - log sum_k exp S_ik)

with S [B, B] how well first sentence i and second sentence j go together, and P the positives. The
losses differ in what S is, and in which pairs are positive. A batch without a positive costs zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bert_mtl_demo.model.losses.inputs import LossInputs


def ranked(scores: Tensor, positive: Tensor) -> Tensor:
    """The formula above, of scores [B, B] and positives [B, B] bool, at least one of them True.

    >>> round(ranked(torch.zeros(4, 4), torch.eye(4, dtype=torch.bool)).item(), 4)
    1.3863
    """
    return -torch.log_softmax(scores, dim=-1)[positive].mean()


def mnrl_one(inputs: LossInputs) -> Tensor:
    """-(p - log sum_n exp n): the score of a similar pair against those of dissimilar pairs.

    Scores are the head's. Similar is a label above 3, dissimilar any other: of a 3 the pals_gradvac
    report says once that it is neither and once that it is similar; the batches made for this loss
    count it as dissimilar, and so does the loss. The report prints "p - log(e^n)", with n the sum
    of the negatives' scores. Taken is what the loss of that name is: the sum inside the logarithm
    is over exp(n), and the sign is the one that raises p. It is made for batches with one similar
    pair; of several the mean is taken. As printed, p is no part of the sum, so the loss has no
    lower bound but the head's.

    >>> scores, labels = torch.tensor([2.0, 1.0, 1.0]), torch.tensor([5.0, 0.0, 1.0])
    >>> round(mnrl_one(LossInputs(scores, labels)).item(), 4)  # log 2 + 1 - 2
    -0.3069
    """
    scores, labels = inputs.answer.float(), inputs.labels
    similar, dissimilar = scores[labels > 3], scores[labels <= 3]
    if not len(similar) or not len(dissimilar):
        return inputs.nothing()
    return torch.logsumexp(dissimilar, 0) - similar.mean()


def mnrl_label(inputs: LossInputs) -> Tensor:
    """ranked(the head's scores; label >= 4.4 + .05 (epoch - 1)): optimusbert's threshold MNRL.

    Henderson et al. (2017), section 4.3, with all second sentences of the batch as candidates. The
    report calls S both "our predicted similarity scores" and their Pearson correlation with the
    labels; a correlation has no value for one pair, so S is the head's score. From epoch 14 on the
    threshold is above 5 and no pair is positive; the report trains for 10.

    Under a linear head, which is the report's, S_ij = a u_i + b v_j, and a u_i cancels in the
    softmax: the loss ranks second sentences by themselves and is the same whatever u is.
    """
    positive = torch.diag(inputs.labels >= 4.4 + 0.05 * (inputs.epoch - 1))
    return ranked(inputs.all_scores(), positive) if positive.any() else inputs.nothing()


def mnrl_cosine(inputs: LossInputs) -> Tensor:
    """ranked(the head's scores; cos(u_i, v_j) >= .8 + .02 (epoch - 1)): optimusbert's cosine MNRL.

    The report compares "all possible pairs" of a batch: whichever first and second sentence are
    close are positive, whether or not they are a pair of the data. From epoch 12 on none is.
    """
    positive = inputs.all_cosines().detach() >= 0.8 + 0.02 * (inputs.epoch - 1)
    return ranked(inputs.all_scores(), positive) if positive.any() else inputs.nothing()


def simcse(inputs: LossInputs) -> Tensor:
    """ranked(cos(u, v) / temperature; label > 4): supervised SimCSE, Gao et al. (2021), eq. 5.

    Without its hard negatives, which the data do not have. Candidates are all second sentences of
    the batch. No head takes part: one with parameters would not learn.

    >>> same = torch.eye(2)
    >>> inputs = LossInputs(torch.zeros(2), torch.tensor([5.0, 5.0]), same, same, temperature=1.0)
    >>> round(simcse(inputs).item(), 4)  # log(e + 1) - 1
    0.3133
    """
    positive = torch.diag(inputs.labels > 4)
    cosines = inputs.all_cosines() / inputs.temperature
    return ranked(cosines, positive) if positive.any() else inputs.nothing()
