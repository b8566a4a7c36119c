"""What K backward passes multiply is told where the graph shows it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import PCGrad, SurgeryWarning
from tests.gradsurgery.problems import wrap


class AddAuxiliaryLoss(torch.autograd.Function):
    """As mixtures of experts balance their router: the backward begins one more loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.new_ones(())


def test_a_loss_that_a_node_adds_for_several_tasks() -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer = wrap([w], PCGrad(), tasks=("a", "b"))
    for step in range(2):
        out = AddAuxiliaryLoss.apply(w, w.square().sum())  # type: ignore[no-untyped-call]
        joined = optimizer.join([out.sum(), out[0]])
        if step == 0:
            with pytest.warns(SurgeryWarning, match="AddAuxiliaryLossBackward adds .* 2 times"):
                joined.backward()
        else:
            joined.backward()  # told once


def test_a_loss_that_a_node_adds_for_one_task() -> None:
    """With a forward for each task, plain training adds it as often."""
    w = nn.Parameter(torch.ones(2))
    optimizer = wrap([w], PCGrad(), tasks=("a", "b"))
    outs = [AddAuxiliaryLoss.apply(w, w.square().sum()) for _ in "ab"]  # type: ignore[no-untyped-call]
    optimizer.join([out.sum() for out in outs]).backward()


@pytest.mark.parametrize("zero", [0, 0.0])
def test_a_term_of_zero_is_told_once(zero: float) -> None:
    trunk, *heads = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = wrap([trunk, *heads], tasks=("a", "b"))

    def joined() -> Tensor:
        losses = [(trunk * head).sum() for head in heads]
        return optimizer.join([losses[0] + zero * heads[1].sum(), losses[1]])

    with pytest.warns(SurgeryWarning, match="multiplied by the number 0.*0 \\* p.sum"):
        joined().backward()
    joined().backward()


def test_other_products_are_not_spoken_of() -> None:
    w, scale = (nn.Parameter(torch.zeros(())) for _ in range(2))
    optimizer = wrap([w, scale], tasks=("a", "b"))
    mask = torch.zeros(3)
    optimizer.join([(w * scale).sum(), (2 * w * mask).sum()]).backward()
