"""Parameters of one task, plain or weighted, and updates that are sums or means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradsurgery import GradientSurgery
from tests.gradsurgery.problems import linear_losses, wrap
from tests.methods import METHODS, every_method
from tests.throwaway import DWA, MGDA, Unit

ROWS = {"a": ([3.0, 4.0], [1.0, -2.0]), "b": ([0.0, 2.0], [0.5, 8.0])}  # trunk, head


def model(dtype: torch.dtype = torch.float64) -> dict[str, nn.Parameter]:
    return {
        name: nn.Parameter(torch.zeros(2, dtype=dtype))
        for name in ("trunk.weight", "a.weight", "b.weight")
    }


def losses(parameters: dict[str, nn.Parameter], tasks: str = "ab") -> dict[str, Tensor]:
    made = {}
    for task in tasks:
        columns = [parameters["trunk.weight"], parameters[f"{task}.weight"]]
        rows = [torch.tensor(row, dtype=columns[0].dtype) for row in ROWS[task]]
        (made[task],) = linear_losses(columns, [rows])
    return made


def step(
    optimizer: GradientSurgery, parameters: dict[str, nn.Parameter], tasks: str = "ab"
) -> None:
    optimizer.join(losses(parameters, tasks)).backward()


def optimizer_of(
    parameters: dict[str, nn.Parameter], method: object, **options: object
) -> GradientSurgery:
    base = torch.optim.SGD(parameters.items(), lr=0.1)
    return GradientSurgery(base, method, tasks=("a", "b"), **options)  # type: ignore[arg-type]


def decided(optimizer: GradientSurgery) -> list[float]:
    weights = optimizer.conflicts.summary()["weights"]
    return [weights["a"], weights["b"]]


@every_method
def test_weighted_heads_get_their_tasks_weight_and_plain_ones_do_not(name: str) -> None:
    for choice in ("plain", "weighted"):
        parameters, method = model(), METHODS[name].make(0)
        optimizer = optimizer_of(parameters, method, task_only=choice)
        step(optimizer, parameters)
        for task, weight in zip("ab", decided(optimizer), strict=True):
            expected = (weight if choice == "weighted" else 1.0) * torch.tensor(ROWS[task][1])
            assert torch.allclose(parameters[f"{task}.weight"].grad, expected.double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_weighted_head_is_rounded_once(dtype: torch.dtype) -> None:
    parameters = model(dtype)
    optimizer = optimizer_of(parameters, Unit(), task_only="weighted")
    step(optimizer, parameters)
    head = parameters["a.weight"].grad
    assert torch.equal(head, (0.2 * torch.tensor(ROWS["a"][1]).double()).to(dtype))


def test_with_several_segments_it_is_the_weight_in_the_parameters_own() -> None:
    """The heads are a segment of their own here, in which no task shares anything."""
    parameters = model()
    optimizer = optimizer_of(parameters, Unit(), task_only="weighted", grouping="layer")
    step(optimizer, parameters)
    assert parameters["a.weight"].grad.tolist() == ROWS["a"][1]
    parameters = model()
    optimizer = optimizer_of(
        parameters,
        Unit(),
        task_only="weighted",
        grouping=lambda name: "rest" if name == "b.weight" else "first",
    )
    step(optimizer, parameters)
    assert parameters["a.weight"].grad.tolist() == pytest.approx([0.2, -0.4])
    assert parameters["b.weight"].grad.tolist() == ROWS["b"][1]


def test_a_task_by_itself_is_left_alone() -> None:
    parameters = model()
    optimizer = optimizer_of(parameters, MGDA(), task_only="weighted", reduction="mean")
    step(optimizer, parameters, "a")
    assert parameters["trunk.weight"].grad.tolist() == ROWS["a"][0]
    assert parameters["a.weight"].grad.tolist() == ROWS["a"][1]


def test_sparse_heads_are_weighted() -> None:
    trunk, table = nn.Parameter(torch.zeros(2)), nn.Embedding(5, 2, sparse=True)
    optimizer = wrap([trunk, table.weight], Unit(), tasks=("a", "b"), task_only="weighted")
    rows = table(torch.tensor([1, 3, 3]))
    optimizer.join([rows.sum() + (trunk * torch.tensor([3.0, 4.0])).sum(), trunk.sum()]).backward()
    grad = table.weight.grad
    assert grad.is_sparse
    expected = torch.zeros(5, 2)
    expected[1], expected[3] = 0.2, 0.4
    assert torch.allclose(grad.to_dense(), expected)


@pytest.mark.parametrize("task_only", ["plain", "weighted"])
def test_a_step_that_is_not_finite_weights_nothing(task_only: str) -> None:
    parameters = model()
    optimizer = optimizer_of(parameters, Unit(), task_only=task_only)
    made = losses(parameters)
    made["a"] = made["a"] + (parameters["trunk.weight"] * torch.inf).sum()
    optimizer.join(made).backward()
    assert parameters["b.weight"].grad.tolist() == ROWS["b"][1]


@every_method
def test_a_mean_is_the_sum_over_the_number_of_tasks_that_ran(name: str) -> None:
    grads = {}
    for reduction in ("sum", "mean"):
        w = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        head = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = wrap(
            [w, head], METHODS[name].make(0), tasks=("a", "b", "c"), reduction=reduction
        )
        rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
        joint = {t: (w * row).sum() for t, row in zip("abc", rows, strict=True)}
        optimizer.join({"a": joint["a"] + head.sum(), "c": joint["c"]}).backward()
        grads[reduction] = w.grad
        assert head.grad.item() == 1  # nobody's mean: as in code that takes it of shared gradients
    assert torch.equal(grads["mean"], grads["sum"] / 2)


def test_statistics_do_not_see_the_reduction() -> None:
    summaries = []
    for reduction in ("sum", "mean"):
        parameters = model()
        optimizer = optimizer_of(parameters, DWA(), reduction=reduction)
        step(optimizer, parameters)
        summaries.append(optimizer.conflicts.summary())
    assert summaries[0] == summaries[1]
    assert summaries[0]["change"]["mean"] == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"task_only": "heavy"}, "task_only is one of None, 'plain', 'weighted', not 'heavy'"),
        ({"reduction": "max"}, "reduction is one of 'sum', 'mean', not 'max'"),
        ({"smoothing": 1.0}, "smoothing is at least 0 and below 1, not 1.0"),
        ({"smoothing": -0.1}, "smoothing is at least 0 and below 1, not -0.1"),
    ],
)
def test_other_options_are_refused(option: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimizer_of(model(), Unit(), **option)
