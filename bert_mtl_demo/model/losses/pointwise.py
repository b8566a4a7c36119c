"""Losses of each example on its own: how far its answer is from its label.

All of them work in float32 whatever the model ran in: a loss is a mean over few examples, and bf16
would round it to two digits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bert_mtl_demo.model.losses.inputs import LossInputs


def cross_entropy(inputs: LossInputs) -> Tensor:
    """-log softmax(logits)[label], averaged.

    >>> round(cross_entropy(LossInputs(torch.zeros(1, 2), torch.tensor([1]))).item(), 4)
    0.6931
    """
    return F.cross_entropy(inputs.answer.float(), inputs.labels)


def bce(inputs: LossInputs) -> Tensor:
    """-log sigmoid(+-logit), averaged: two classes told apart by one logit.

    >>> round(bce(LossInputs(torch.zeros(1), torch.tensor([1]))).item(), 4)
    0.6931
    """
    return F.binary_cross_entropy_with_logits(inputs.answer.float(), inputs.labels.float())


def squared_probability(inputs: LossInputs) -> Tensor:
    """(sigmoid(logit) - label)^2, averaged.

    The bert_mastery report trains paraphrase with a mean squared error and does not say of what.
    This takes the sigmoid of one logit, which its code base rounds to predict: so the error and the
    prediction are about the same number.

    >>> squared_probability(LossInputs(torch.zeros(1), torch.tensor([1]))).item()
    0.25
    """
    return F.mse_loss(torch.sigmoid(inputs.answer.float()), inputs.labels.float())


def mse(inputs: LossInputs) -> Tensor:
    """(score - label)^2, averaged.

    >>> mse(LossInputs(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 5.0]))).item()
    2.0
    """
    return F.mse_loss(inputs.answer.float(), inputs.labels.float())


def huber(inputs: LossInputs) -> Tensor:
    """d^2 / 2 where d = |score - label| is at most 1, d - 1/2 beyond it, averaged.

    >>> huber(LossInputs(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 5.0]))).item()
    1.0
    """
    return F.huber_loss(inputs.answer.float(), inputs.labels.float(), delta=1.0)
