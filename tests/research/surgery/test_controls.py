"""The controls: laws first, then what each keeps of surgery."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bert_mtl_demo.training.sham import Sham
from gradsurgery import GradientSurgery, GradVac, Method, PCGrad, Sum
from gradsurgery.methods.base import check_method
from research.surgery.arms import methods
from research.surgery.controls import (
    DenoisedPCGrad,
    EqualNorms,
    NoiseWeights,
    Recorded,
    cosines_of,
    noise_weights,
)
from tests.gradsurgery.problems import state_of

TASKS = ("a", "b")
ORDER = torch.stack([torch.roll(torch.arange(3), -n) for n in range(3)])
every_arm = pytest.mark.parametrize("arm", methods())


def grams(steps: int, seed: int = 0, mean: Tensor | None = None, width: int = 400) -> Tensor:
    """Gram matrices [T, 1, 3, 3] of Gaussian gradients around a mean [3, width]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, 3, width, generator=generator, dtype=torch.float64)
    noise = noise * torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)[:, None]
    gradients = noise if mean is None else noise + mean
    return (gradients @ gradients.transpose(1, 2))[:, None]


def decide(method: Method, steps: Tensor, seed: int = 1) -> list[Tensor]:
    """The weights [1, K] of every step."""
    generator = torch.Generator().manual_seed(seed)
    state, weights = method.init(1, steps.shape[-1]), []
    for gram in steps:
        order = torch.stack([torch.randperm(3, generator=generator) for _ in range(3)])
        facts: dict[str, Any] = {"order": order} if "order" in method.needs else {}
        verdict = method(gram, state=state, **facts)
        state = verdict.state
        weights.append(verdict.weights)
    return weights


@every_arm
def test_an_arm_is_a_method_of_the_public_contract(arm: str) -> None:
    """It is accepted, is pure, keeps its state's shapes, and its state survives a checkpoint."""
    method = methods()[arm](0)
    check_method(method)
    state, gram = method.init(1, 3), grams(1)[0]
    before = {name: value.clone() for name, value in state.items()}
    facts: dict[str, Any] = {"order": ORDER} if "order" in method.needs else {}
    one, other = (method(gram, state=state, **facts) for _ in range(2))
    assert torch.equal(one.weights, other.weights)
    assert one.weights.dtype == torch.float64
    assert {n: v.shape for n, v in one.state.items()} == {n: v.shape for n, v in state.items()}
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert all(len(value) == 1 for value in state.values())


@every_arm
def test_the_scale_of_the_losses_changes_no_weight(arm: str) -> None:
    steps = grams(5)
    for one, other in zip(
        decide(methods()[arm](0), steps), decide(methods()[arm](0), 1e6 * steps), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@every_arm
def test_segments_are_separate_problems(arm: str) -> None:
    method, two = methods()[arm](0), torch.cat([grams(1, 1)[0], grams(1, 2)[0]])
    facts: dict[str, Any] = {"order": ORDER} if "order" in method.needs else {}
    both = method(two, state=method.init(2, 3), **facts).weights
    for n in range(2):
        alone = method(two[n : n + 1], state=method.init(1, 3), **facts).weights
        torch.testing.assert_close(both[n : n + 1], alone)


@every_arm
def test_a_zero_gradient_changes_nothing_for_the_others(arm: str) -> None:
    """Its own weight multiplies zero; no weight becomes NaN."""
    steps = grams(4)
    steps[:, :, 2], steps[:, :, :, 2] = 0.0, 0.0
    for weights in decide(methods()[arm](0), steps):
        assert bool(weights.isfinite().all())
    if arm in ("fixed weights", "equal norms"):
        two = [method[0, :2] for method in decide(methods()[arm](0), steps)]
        pairs = decide(methods()[arm](0), steps[:, :, :2, :2])
        for one, other in zip(two, pairs, strict=True):
            torch.testing.assert_close(one, other[0])


def test_sham_gives_each_step_the_weights_of_the_one_before() -> None:
    steps = grams(6)
    surgery, sham = decide(PCGrad(), steps), decide(Sham(), steps)
    assert sham[0].tolist() == [[1.0, 1.0, 1.0]]
    assert all(torch.equal(one, other) for one, other in zip(surgery[:-1], sham[1:], strict=True))


def test_noise_alone_gives_pcgrad_the_weights_of_the_formula() -> None:
    """4,000 steps of independent noise: to a tenth of what is above 1."""
    steps = grams(4000)
    mean = torch.stack(decide(PCGrad(), steps)).mean(0)[0]
    spread, norms = cosines_of(steps).std(0)[0], steps.diagonal(dim1=-2, dim2=-1).sqrt().mean(0)[0]
    predicted = noise_weights(spread, norms)
    assert bool((mean - 1 > 0.01).all())
    torch.testing.assert_close(mean - 1, predicted - 1, rtol=0.1, atol=0)
    by_hand = 1 + sum(
        float(spread[i, 0] / math.sqrt(2 * math.pi) * norms[i] / norms[0]) for i in (1, 2)
    )
    assert float(predicted[0]) == pytest.approx(by_hand, rel=1e-12)


def test_fixed_weights_settle_on_that_formula_and_ignore_the_step() -> None:
    """Rate 1 / 500: the mean of the last weights is PCGrad's own mean; from step to step they
    move less than a tenth of what PCGrad's do."""
    steps = grams(4000)
    surgery = torch.stack(decide(PCGrad(), steps))[1000:, 0]
    fixed = torch.stack(decide(NoiseWeights(rate=0.002), steps))[1000:, 0]
    torch.testing.assert_close(fixed.mean(0) - 1, surgery.mean(0) - 1, rtol=0.1, atol=0)
    assert bool((fixed.std(0) < surgery.std(0) / 10).all())
    assert torch.equal(decide(NoiseWeights(), steps[:1])[0], torch.ones(1, 3, dtype=torch.float64))


def test_equal_norms_stretches_every_gradient_to_the_mean_length() -> None:
    gram = grams(1)[0]
    weights = EqualNorms()(gram, {}).weights
    lengths = weights * gram.diagonal(dim1=-2, dim2=-1).sqrt()
    torch.testing.assert_close(lengths, lengths.mean(-1, keepdim=True).expand_as(lengths))
    torch.testing.assert_close(lengths.mean(), gram.diagonal(dim1=-2, dim2=-1).sqrt().mean())


def test_denoised_surgery_leaves_noise_alone_and_meets_a_conflict() -> None:
    """On noise it does a tenth of PCGrad; on a lasting conflict its first step is PCGrad's."""
    noise = grams(2000)
    raw, denoised = (
        (torch.stack(decide(method, noise))[1000:] - 1).abs().mean()
        for method in (PCGrad(), DenoisedPCGrad(rate=0.001))
    )
    assert denoised < raw / 10
    mean = torch.zeros(3, 400, dtype=torch.float64)
    mean[0, 0], mean[1, 0] = 20.0, -40.0
    conflict = grams(300, mean=mean)
    last = decide(DenoisedPCGrad(), conflict)[-1]
    assert bool((last[0, :2] > 1.1).all())
    assert torch.equal(decide(DenoisedPCGrad(), conflict[:1])[0], decide(PCGrad(), conflict[:1])[0])
    assert DenoisedPCGrad(rate=1.0).init(1, 3)["cosine"].shape == (1, 3, 3)
    one, other = (decide(method, conflict) for method in (PCGrad(), DenoisedPCGrad(rate=1.0)))
    for a, b in zip(one, other, strict=True):  # without memory it is PCGrad
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    for make in (NoiseWeights, DenoisedPCGrad):
        with pytest.raises(ValueError, match=f"not {rate}"):
            make(rate=rate)


@pytest.mark.parametrize("method", [Sum(), GradVac(beta=0.3), Sham()], ids=repr)
def test_a_record_holds_every_step_and_changes_none(method: Method) -> None:
    """Also through a saved and loaded optimizer; steps past its room are decided all the same."""

    def train(method: Method, halt: int | None) -> tuple[Tensor, dict[str, Any]]:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(5))
        optimizer = GradientSurgery(torch.optim.SGD([weight], lr=0.1), method, tasks=TASKS)
        data = torch.randn(6, 2, 5)
        for step, targets in enumerate(data):
            if step == halt:
                saved = optimizer.state_dict()
                optimizer = GradientSurgery(torch.optim.SGD([weight], lr=0.1), method, tasks=TASKS)
                optimizer.load_state_dict(saved)
            optimizer.zero_grad()
            for task, target in zip(("a", "b"), targets, strict=True):
                with optimizer.task(task):
                    (weight - target).square().sum().backward()
            optimizer.combine()
            optimizer.step()
        return weight.detach(), state_of(optimizer)

    plain, _ = train(method, None)
    kept, state = train(Recorded(method, 4), None)
    resumed, again = train(Recorded(method, 4), 3)
    assert torch.equal(plain, kept)
    assert torch.equal(kept, resumed)
    assert state["kept"].tolist() == [6]
    assert state["kept_gram"].shape == (1, 4, 2, 2)
    assert bool((state["kept_gram"].diagonal(dim1=-2, dim2=-1) > 0).all())
    assert all(torch.equal(state[name], again[name]) for name in Recorded.KEPT)


def test_a_record_of_a_method_with_other_needs_is_refused() -> None:
    class Losses(Method):
        needs = frozenset({"losses"})

        def __call__(self, gram: Tensor, state: Any, losses: Tensor) -> Any:
            raise NotImplementedError

    with pytest.raises(TypeError, match="needs"):
        Recorded(Losses(), 3)
