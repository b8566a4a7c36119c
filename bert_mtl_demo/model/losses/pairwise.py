"""Losses that draw two sentences together or push them apart, with a neighbour as the negative.

Where a pair needs a sentence that does not belong to it, that is one of the next pair in the batch,
and of the first pair for the last one. Batches are random, so it is as random as
a draw would be, and a resumed run has nothing to remember.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bert_mtl_demo.model.losses.inputs import LossInputs
from bert_mtl_demo.tasks import TOP

MIDDLE = TOP / 2  # TOP: the label of two sentences that mean the same


def cosine_embedding(inputs: LossInputs) -> Tensor:
    """1 - cos(u, v) where the label is above 2.5, max(0, cos(u, v)) elsewhere, averaged.

    The mtl_surgery_mlm report takes its targets "from the labels" and does not say how. This loss
    knows targets of 1 and -1 only, so they are cut at the middle of the scale.

    >>> u, v = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> cosine_embedding(LossInputs(torch.zeros(2), torch.tensor([5.0, 0.0]), u, v)).item()
    0.5
    """
    u, v = inputs.pair()
    target = torch.where(inputs.labels > MIDDLE, 1.0, -1.0)
    return F.cosine_embedding_loss(u, v, target)


def triplet(inputs: LossInputs) -> Tensor:
    """max(|u - v| - |u - u'| + 1, 0) * label / 5, averaged, with u' of the next pair.

    Euclidean distance and margin are those of Reimers and Gurevych (2019), section 3. The negative
    (the first sentence of another pair) and the weight (the less alike a pair, the less it should
    be drawn together) are the pals_gradvac report's.

    >>> u, v = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])
    >>> triplet(LossInputs(torch.zeros(2), torch.tensor([5.0, 5.0]), u, v)).item()  # (0 + 2) / 2
    1.0
    """
    u, v = inputs.pair()
    if len(u) < 2:
        return inputs.nothing()
    near = torch.linalg.vector_norm(u - v, dim=-1)
    far = torch.linalg.vector_norm(u - u.roll(-1, 0), dim=-1)
    return (torch.relu(near - far + 1) * inputs.labels / TOP).mean()


def negative_sampling(inputs: LossInputs) -> Tensor:
    """-[t log sigmoid(s) + (1 - t) log sigmoid(-s)] - log sigmoid(-s'), averaged; t = label / 5.

    s is the head's answer to the pair before it is brought to the scale of the labels (a score of
    0 to 5 is no logit: none is below one half), s' that to u with the next pair's v. The
    pals_gradvac report names the loss and gives no formula; this is that of Mikolov et al. (2013),
    eq. 4, with one negative, and a pair that counts as a positive to the degree of its label.

    >>> from bert_mtl_demo.model.heads import Cosine
    >>> u, v = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> alone = LossInputs(torch.zeros(1), torch.tensor([5.0]), u, v, Cosine())
    >>> round(negative_sampling(alone).item(), 4)  # no neighbour, no negative: log 2
    0.6931
    """
    u, v = inputs.pair()
    degree = inputs.labels.float() / TOP
    loss = F.binary_cross_entropy_with_logits(inputs.raw(u, v), degree)
    if len(u) > 1:
        loss = loss - F.logsigmoid(-inputs.raw(u, v.roll(-1, 0))).mean()
    return loss
