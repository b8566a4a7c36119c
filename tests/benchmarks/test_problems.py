from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import passes
from benchmarks.options import Options
from benchmarks.problems import encoders, gradients
from benchmarks.problems.multitask import problem
from gradsurgery import functional

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "elements", "tensors"),
    [
        ("minilm", 22_565_376, 101),
        ("bert-base", 108_891_648, 197),
        ("bert-large", 334_092_288, 389),
    ],
)
def test_shapes_are_those_of_the_published_encoders(name: str, elements: int, tensors: int) -> None:
    parameters = encoders.parameters(name)
    assert (parameters.elements, len(parameters.names)) == (elements, tensors)
    assert "encoder.layer.0.attention.self.query.weight" in parameters.names


def test_crumbs_are_tiny_and_have_layers() -> None:
    parameters = encoders.parameters("10000 tiny tensors")
    sizes = {shape.numel() for shape in parameters.shapes}
    assert (len(parameters.shapes), min(sizes), max(sizes)) == (10_000, 1, 64)
    assert parameters.names[250].startswith("layer.2.")


@pytest.mark.parametrize(("elements", "tensors"), [(4096, 4), (4097, 5), (1000, 1)])
def test_slices_add_up(elements: int, tensors: int) -> None:
    parameters = encoders.sliced(elements, size=1024)
    assert (parameters.elements, len(parameters.shapes)) == (elements, tensors)


@pytest.mark.parametrize("conflicts", ["one", "all"])
def test_gradients_have_the_cosines_that_were_asked_for(conflicts: str) -> None:
    wanted = gradients.conflict_cosines(3, conflicts)
    grads = gradients.random_gradients([torch.Size([200, 300])], 3, CPU, cosines=wanted)
    gram = functional.gram(grads)[0]
    length = gram.diagonal().sqrt()
    assert torch.allclose((gram / length / length[:, None]).float(), wanted, atol=0.03)
    pairs = [gram[0, 1] < 0, gram[0, 2] < 0, gram[1, 2] < 0]
    assert [bool(pair) for pair in pairs] == [True, conflicts == "all", conflicts == "all"]


def test_valueless_parameters_take_no_memory_and_have_gradients() -> None:
    [(name, parameter)] = gradients.valueless(encoders.sliced(1000, 1000), CPU, torch.bfloat16)
    assert (name, parameter.untyped_storage().nbytes()) == ("slice.0", 2)
    parameter.grad = torch.ones(1000, dtype=torch.bfloat16)


def test_the_first_two_tasks_of_the_model_conflict(tmp_path: Path) -> None:
    model = problem(Options(CPU, tmp_path, quick=True), dropout=0.0)
    losses = model.shared().losses.values()
    grads = [list(torch.autograd.grad(loss, model.trunk, retain_graph=True)) for loss in losses]
    assert functional.gram(grads)[0, 0, 1] < 0


def test_mixing_weights_sum_to_one() -> None:
    assert passes.mixing(4).tolist() == pytest.approx([0.5, 0.5 / 3, 0.5 / 3, 0.5 / 3])
    assert passes.mixing(1).tolist() == [0.5]
