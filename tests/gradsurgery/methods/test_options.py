"""Options that act on the tasks' gradients, with methods that have none of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gradsurgery import DynamicWeightAverage
from tests.gradsurgery.problems import wrap


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"task_only": "plain"}, "task_only='plain' does not go with DynamicWeightAverage"),
        ({"reduction": "mean"}, "reduction='mean' does not go with .*divide the joined loss"),
        ({"smoothing": 0.9}, "smoothing=0.9 does not go with"),
    ],
)
def test_options_of_gradients_are_refused_for_weights_of_losses(
    option: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        wrap([nn.Parameter(torch.zeros(1))], DynamicWeightAverage(), **option)


def test_the_default_options_are_not() -> None:
    wrap([nn.Parameter(torch.zeros(1))], DynamicWeightAverage(), task_only="weighted")
