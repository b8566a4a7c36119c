"""Grouping: which parameters are one segment, and what each segment decides for itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradsurgery import GradientSurgery, PCGrad
from gradsurgery.grouping import by_layer, segments
from tests.gradsurgery.problems import wrap


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("bert.encoder.layer.11.attention.self.query.weight", "bert.encoder.layer.11"),
        ("blocks.3.mlp.0.bias", "blocks.3"),
        ("0.weight", "0"),
        ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm"),
        ("conv2d.weight", "conv2d"),
        ("scale", "scale"),
    ],
)
def test_layers(name: str, layer: str) -> None:
    assert by_layer(name) == layer


def test_tensors_need_no_names() -> None:
    indices, names = segments([None, "b", None], "tensor")
    assert indices == [0, 1, 2]
    assert names == ["parameter 0", "b", "parameter 2"]


def conflict_below_agreement_above(grouping: object, named: bool = True) -> tuple[float, float]:
    """Gradients (1, 1) and (-0.5, 2): they conflict on the first layer only. Their sums there."""
    model = nn.ParameterDict({"low": torch.zeros(1), "high": torch.zeros(1)})
    base = torch.optim.SGD(model.named_parameters() if named else model.parameters(), lr=0.1)
    options = {} if named else {"named_parameters": model.named_parameters()}
    optimizer = GradientSurgery(base, PCGrad(), tasks=("a", "b"), grouping=grouping, **options)  # type: ignore[arg-type]
    low, high = model["low"], model["high"]
    optimizer.join([(low + high).sum(), (2 * high - 0.5 * low).sum()]).backward()
    return low.grad.item(), high.grad.item()


@pytest.mark.parametrize("named", [True, False])
def test_each_segment_is_a_problem_of_its_own(named: bool) -> None:
    assert conflict_below_agreement_above("model", named) == (0.5, 3.0)
    assert conflict_below_agreement_above("layer", named) == (0.0, 3.0)
    assert conflict_below_agreement_above("tensor", named) == (0.0, 3.0)
    assert conflict_below_agreement_above(lambda name: name[0], named) == (0.0, 3.0)
    assert conflict_below_agreement_above(lambda name: 1, named) == (0.5, 3.0)


def test_weights_differ_by_segment_but_the_summary_adds_up() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = wrap([first, second], tasks=("a", "b"), grouping="tensor")
    optimizer.join([(first + second).sum(), (second - first).sum()]).backward()
    summary = optimizer.conflicts.summary()
    pair = summary["pairs"][0]
    assert summary["segments"] == 2
    assert (pair["possible"], pair["conflicts"], pair["altered"]) == (2, 1, 1)
    assert [s["pairs"][0]["cosine"]["mean"] for s in summary["by_segment"]] == [-1, 1]
    assert [s["segment"] for s in summary["by_segment"]] == ["parameter 0", "parameter 1"]
    assert summary["gradients"] == {"possible": 2, "altered": 2}
