"""Grouping: which parameters are one segment, and what each segment decides for itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


def two_modules() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))


def prefixed(encoder: nn.Module, decoder: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (f"{module}.{name}", parameter)
        for module, owner in (("encoder", encoder), ("decoder", decoder))
        for name, parameter in owner.named_parameters()
    ]


def bases(encoder: nn.Module, decoder: nn.Module) -> list[Any]:
    """The ways to build a base of two modules, in which names repeat."""
    sgd = partial(torch.optim.SGD, lr=0.1)
    groups = [{"params": list(module.named_parameters())} for module in (encoder, decoder)]
    return [
        sgd(groups),
        sgd([*encoder.named_parameters(), *decoder.named_parameters()]),
        [sgd(encoder.named_parameters()), sgd(decoder.named_parameters())],
    ]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("grouping", ["layer", "tensor", lambda name: name])
def test_equal_names_of_two_modules_are_refused(number: int, grouping: Any) -> None:
    modules = two_modules()
    base = bases(*modules)[number]
    with pytest.raises(ValueError, match=r"0 and 2 are both called '0.weight'.*named_parameters="):
        GradientSurgery(base, PCGrad(), tasks=("a", "b"), grouping=grouping)


@pytest.mark.parametrize("number", range(3))
def test_equal_names_are_told_apart_by_names_that_are_passed(number: int) -> None:
    """Two segments, not one: the modules' gradients conflict in one of them."""
    modules = two_modules()
    optimizer = GradientSurgery(
        bases(*modules)[number],
        PCGrad(),
        tasks=("a", "b"),
        grouping="layer",
        named_parameters=prefixed(*modules),
    )
    upper, lower = (module[0].weight for module in modules)
    optimizer.join([upper.sum() + lower.sum(), upper.sum() - lower.sum()]).backward()
    segments = optimizer.conflicts.summary()["by_segment"]
    assert [row["segment"] for row in segments] == ["encoder.0", "decoder.0"]
    assert [row["pairs"][0]["conflicts"] for row in segments] == [0, 1]
    assert (upper.grad == 2).all()
    assert (lower.grad == 0).all()


def test_equal_names_do_not_matter_to_the_whole_model() -> None:
    encoder, decoder = two_modules()
    optimizer = GradientSurgery(bases(encoder, decoder)[0], PCGrad(), tasks=("a", "b"))
    loss = encoder[0].weight.sum() + decoder[0].weight.sum()
    optimizer.join([loss, 2 * loss]).backward()
    assert (decoder[0].weight.grad == 3).all()


def test_a_group_that_repeats_a_name_is_not_added() -> None:
    encoder, decoder = two_modules()
    base = torch.optim.SGD(encoder.named_parameters(), lr=0.1)
    optimizer = GradientSurgery(base, PCGrad(), tasks=("a", "b"), grouping="layer")
    with pytest.raises(ValueError, match="both called"):
        optimizer.add_param_group({"params": list(decoder.named_parameters())})
    assert len(optimizer.param_groups) == 1
