"""Random and constant weights, and preferences."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from gradsurgery import Constant, DualProj, GradientSurgery, Method, Primary, RandomWeights, UPGrad
from tests.gradsurgery.problems import linear_losses, vectors, wrap

GRADS = vectors((1, 0, 0), (0, 1, 0), (0, 0, 1))


def step(optimizer: GradientSurgery, w: nn.Parameter, tasks: str = "abc") -> list[float]:
    """One step; the weights are the gradient."""
    losses = dict(zip("abc", linear_losses([w], GRADS), strict=True))
    optimizer.zero_grad()
    optimizer.join({task: losses[task] for task in tasks}).backward()
    optimizer.step()
    return w.grad.tolist()


def wrapped(method: Method) -> tuple[GradientSurgery, nn.Parameter]:
    w = nn.Parameter(torch.zeros(3))
    return wrap([w], method), w


def test_random_weights_are_those_of_the_paper() -> None:
    """Positive, of sum one, mean 1/K and the spread of a softmax of three normal numbers."""
    optimizer, w = wrapped(RandomWeights())
    weights = torch.tensor([step(optimizer, w) for _ in range(600)])
    assert (weights > 0).all()
    assert torch.allclose(weights.sum(1), torch.ones(600))
    assert torch.allclose(weights.mean(0), torch.full((3,), 1 / 3), atol=0.03)
    softmax = torch.softmax(torch.randn(100_000, 3, generator=torch.Generator()), 1)
    assert torch.allclose(weights.std(0), softmax.std(0), atol=0.02)


def test_random_weights_of_absent_tasks_go_to_the_others() -> None:
    optimizer, w = wrapped(RandomWeights())
    weights = step(optimizer, w, "ac")
    assert weights[1] == 0
    assert sum(weights) == pytest.approx(1)


def test_random_weights_follow_their_seed_and_no_global_generator() -> None:
    runs = []
    for seed, other in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(other)
        optimizer, w = wrapped(RandomWeights(seed))
        before = torch.get_rng_state()
        runs.append([step(optimizer, w) for _ in range(3)])
        assert torch.equal(torch.get_rng_state(), before)
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    "make", [RandomWeights, lambda: Primary("a", RandomWeights(3))], ids=["alone", "primary"]
)
def test_a_resumed_run_draws_the_same_weights(make: Callable[[], Method]) -> None:
    optimizer, w = wrapped(make())
    for _ in range(3):
        step(optimizer, w)
    saved = copy.deepcopy(optimizer.state_dict())
    resumed, v = wrapped(make())
    resumed.load_state_dict(saved)
    assert [step(optimizer, w) for _ in range(3)] == [step(resumed, v) for _ in range(3)]


def test_constant_weights() -> None:
    optimizer, w = wrapped(Constant([2, 0, -1.5]))
    assert step(optimizer, w) == [2, 0, -1.5]
    assert repr(optimizer.method) == "Constant([2.0, 0.0, -1.5])"


@pytest.mark.parametrize(
    ("make", "what"), [(Constant, "weights"), (UPGrad, "preference"), (DualProj, "preference")]
)
def test_numbers_that_do_not_fit_the_tasks_are_refused(
    make: Callable[[list[float]], Method], what: str
) -> None:
    with pytest.raises(ValueError, match=f"{what} is a finite number"):
        make([1, float("nan")])
    with pytest.raises(ValueError, match=f"{what} .* does not fit 3 tasks: give one number"):
        wrapped(make([1, 2]))


@pytest.mark.parametrize("make", [UPGrad, DualProj])
def test_a_preference_of_one_third_is_the_mean(make: type[UPGrad] | type[DualProj]) -> None:
    gram = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    gram = (gram @ gram.mT)[None]
    present = torch.ones(1, 3, dtype=torch.bool)
    mean, third, one = (
        make(preference)(gram, present=present, state={}).weights
        for preference in (None, [1 / 3] * 3, torch.tensor([0.0, 5.0, 0.0]))
    )
    assert torch.allclose(mean, third)
    assert one[0, 1] >= 5


def test_a_preference_is_not_negative() -> None:
    with pytest.raises(ValueError, match="finite number of at least 0 for each task"):
        UPGrad([1, -1])


@pytest.mark.parametrize("make", [UPGrad, DualProj])
def test_a_preference_is_shown(make: type[UPGrad] | type[DualProj]) -> None:
    assert repr(make()) == f"{make.__name__}()"
    assert repr(make([1, 2])) == f"{make.__name__}(preference=(1.0, 2.0))"
