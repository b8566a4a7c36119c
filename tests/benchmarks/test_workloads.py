from __future__ import annotations

import pytest
import torch

from benchmarks import steps, workloads
from benchmarks.options import Setting
from benchmarks.themes import scaling, surgery
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
    work = workloads.workload(name)
    assert (work.elements, len(work.names)) == (elements, tensors)
    assert "encoder.layer.0.attention.self.query.weight" in work.names


def test_crumbs_are_tiny_and_have_layers() -> None:
    work = workloads.workload("10000 tiny tensors")
    sizes = {shape.numel() for shape in work.shapes}
    assert (len(work.shapes), min(sizes), max(sizes)) == (10_000, 1, 64)
    assert work.names[250].startswith("layer.2.")


@pytest.mark.parametrize(("elements", "tensors"), [(4096, 4), (4097, 5), (1000, 1)])
def test_slices_add_up(elements: int, tensors: int) -> None:
    work = workloads.sliced(elements, size=1024)
    assert (work.elements, len(work.shapes)) == (elements, tensors)


@pytest.mark.parametrize("conflicts", ["one", "all"])
def test_gradients_have_the_cosines_that_were_asked_for(conflicts: str) -> None:
    wanted = workloads.conflict_cosines(3, conflicts)
    grads = workloads.gradients([torch.Size([200, 300])], 3, CPU, cosines=wanted)
    gram = functional.gram(grads)[0]
    length = gram.diagonal().sqrt()
    assert torch.allclose((gram / length / length[:, None]).float(), wanted, atol=0.03)
    pairs = [gram[0, 1] < 0, gram[0, 2] < 0, gram[1, 2] < 0]
    assert [bool(pair) for pair in pairs] == [True, conflicts == "all", conflicts == "all"]


def test_bearers_take_no_memory_and_bear_gradients() -> None:
    [(name, parameter)] = workloads.bearers(workloads.sliced(1000, 1000), CPU, torch.bfloat16)
    assert (name, parameter.untyped_storage().nbytes()) == ("slice.0", 2)
    parameter.grad = torch.ones(1000, dtype=torch.bfloat16)


def test_the_first_two_tasks_of_the_model_conflict() -> None:
    problem = steps.problem(steps.SIZES["quick"], CPU, dropout=0.0)
    parameters = list(problem.model.encoder.parameters())
    losses = problem.losses()
    grads = [
        list(torch.autograd.grad(loss, parameters, retain_graph=True)) for loss in losses.values()
    ]
    assert functional.gram(grads)[0, 0, 1] < 0


def test_a_case_too_large_for_the_memory_is_refused_with_the_sizes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    setting = Setting(CPU, results=None)  # type: ignore[arg-type]
    monkeypatch.setattr(workloads, "free_bytes", lambda device: 1 << 30)
    reason = surgery.obstacle(surgery.Case("bert-base", 2), setting)
    assert reason == "gradients of 0.8 GiB exceed half of the free 1.0 GiB"
    assert surgery.obstacle(surgery.Case("minilm", 2), setting) is None
    assert scaling.fitting(setting, [2, 64], [1 << 22]) == ([2], [1 << 22])


def test_mixing_weights_sum_to_one() -> None:
    assert surgery.mixing(4).tolist() == pytest.approx([0.5, 0.5 / 3, 0.5 / 3, 0.5 / 3])
    assert surgery.mixing(1).tolist() == [0.5]
