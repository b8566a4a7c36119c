"""Probe and estimates: sums against direct sums, Grams against float64, and what is unbiased."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bert_mtl_demo.config import Config
from gradsurgery import GradientSurgery, GradVac, PCGrad
from research.conflicts import estimate
from research.conflicts.counter import Counter, Vectors, upper_levels
from research.conflicts.estimate import Probed
from research.conflicts.gradients import Sampler, load_material, shared
from research.conflicts.limit import expected_change
from research.conflicts.metrics import in_adams_metric, scales, side_effects
from research.conflicts.probe import packed, probe, probe_model, unpacked


class Gaussians:
    """Gradients of two segments with known expectations; keeps what it gave."""

    def __init__(self, means: torch.Tensor, noise: float, seed: int, batch: int = 8) -> None:
        self.means, self.noise = means.to(torch.float64), noise  # [K, N]
        self.generator = torch.Generator().manual_seed(seed)
        self.tasks = [f"t{k}" for k in range(len(means))]
        self.segments, self.segment_of = ["low", "high"], [0, 1, 0]
        self.material = SimpleNamespace(config=SimpleNamespace(batch_size=batch))
        self.given: list[torch.Tensor] = []

    def draw(self) -> Vectors:
        shape = self.means.shape
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        rows = self.means + self.noise * noise
        self.given.append(rows.clone())
        third = shape[1] // 3
        return [[part.clone() for part in row.split([third, third, shape[1] - 2 * third])]
                for row in rows]  # fmt: skip


def means(cosine: float, size: int = 60) -> torch.Tensor:
    """Two unit vectors at that cosine, spread over all coordinates."""
    basis, _ = torch.linalg.qr(torch.randn(size, 2, generator=torch.Generator().manual_seed(3)))
    a, b = basis.T
    return torch.stack([a, cosine * a + (1 - cosine**2) ** 0.5 * b])


def segment_columns(size: int) -> list[list[int]]:
    third = size // 3
    return [[*range(third), *range(2 * third, size)], [*range(third, 2 * third)]]


def test_merged_blocks_and_their_products_are_those_of_direct_sums() -> None:
    source: Any = Gaussians(means(0.4), noise=1.0, seed=0)
    record = probe(source, batches=16, blocks=4)
    given = torch.stack(source.given)  # [16, K, N]
    probed = Probed.of(record)
    assert list(probed.levels) == [8, 16, 32, 64]
    for level, grams in enumerate(probed.levels.values()):
        sums = given.reshape(-1, 2, 2**level, 2, 60).sum(2)  # [R, 2, K, N]
        assert len(grams) == len(sums)
        for s, columns in enumerate(segment_columns(60)):
            part = sums[..., columns]
            direct = torch.einsum("rhin,rgjn->rhigj", part, part)
            np.testing.assert_allclose(grams[:, s], direct, rtol=1e-6, atol=1e-6)
    whole = given.reshape(4, 4, 2, 60).sum(1)
    direct = torch.einsum("ain,bjn->aibj", whole, whole)
    np.testing.assert_allclose(probed.kept(), direct, rtol=1e-6, atol=1e-6)


def test_the_counter_holds_one_block_a_level() -> None:
    counter = Counter(5, lambda level, left, right: None)
    held = []
    for n in range(32):
        done = counter.add([[torch.tensor([float(n)])]])
        held.append(len(counter.waiting))
    assert done is not None
    assert done[0][0].item() == sum(range(32))
    assert max(held) == 5
    assert held[-1] == 0


def test_upper_levels_and_packing_lose_nothing() -> None:
    vectors = np.random.default_rng(0).normal(size=(8, 3, 5))
    gram = np.einsum("ain,bjn->aibj", vectors, vectors)
    flat = gram.reshape(24, 24)
    again = unpacked(packed(torch.from_numpy(flat)), 24)
    np.testing.assert_allclose(again, flat, rtol=1e-7)
    top = upper_levels(gram[None])[-1]
    halves = vectors.reshape(2, 4, 3, 5).sum(1)
    direct = np.einsum("hin,gjn->higj", halves, halves)
    np.testing.assert_allclose(top[0, 0], direct)


def test_probed_gradients_are_the_models_own(settings: Callable[..., Config]) -> None:
    material = load_material(settings(method="sum"))
    sampler = Sampler(material, seed=5)
    record = probe_model(sampler, batches=4, blocks=4, seed=9)
    assert record["segments"] == ["embeddings", "layer 1", "layer 2"]
    # Again by hand, in float64: same examples, same dropout.
    generator = torch.Generator().manual_seed(5)
    parameters = [p for _, p in shared(material.model)]
    rows = []
    with torch.random.fork_rng():
        torch.manual_seed(9)
        for _ in range(4):
            for name, examples in material.sets.items():
                indices = torch.randint(len(examples), (4,), generator=generator).tolist()
                loss = material.model.loss(name, examples.collate(indices, "cpu"))
                grads = torch.autograd.grad(loss, parameters, allow_unused=True)
                filled = [torch.zeros_like(p) if g is None else g
                          for g, p in zip(grads, parameters, strict=True)]  # fmt: skip
                rows.append(torch.cat([g.flatten() for g in filled]).double())
    vectors = torch.stack(rows)
    direct = (vectors @ vectors.T).reshape(4, 3, 4, 3).numpy()
    kept = Probed.of(record).kept()
    scale = np.sqrt(np.einsum("aiai->ai", direct))
    error = np.abs(kept - direct) / (scale[:, :, None, None] * scale)
    assert error.max() < 1e-5


def test_a_probe_moves_no_weight_and_no_generator(settings: Callable[..., Config]) -> None:
    material = load_material(settings(method="sum"))
    before = {name: value.clone() for name, value in material.model.state_dict().items()}
    state = torch.get_rng_state()
    found = [probe_model(Sampler(material, 1), batches=4, blocks=4, seed=2) for _ in range(2)]
    assert found[0] == found[1]
    assert torch.equal(state, torch.get_rng_state())
    after = material.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("truth", [-0.5, 0.0, 0.6])
def test_the_expected_cosine_is_found_where_the_plain_one_is_attenuated(truth: float) -> None:
    covered, found, plain = 0, [], []
    for seed in range(40):
        # Noise as long as the signal at 60 / 0.64 = 94 batches: floor(8 examples) = 0.026.
        source: Any = Gaussians(means(truth), noise=0.8, seed=seed)
        probed = Probed.of(probe(source, batches=128, blocks=16))
        estimated = estimate.expected(probed.kept(), 0, 1).cosine
        assert estimated is not None
        assert estimated.low is not None
        assert estimated.high is not None
        covered += estimated.low <= truth <= estimated.high
        found.append(estimated.mean)
        plain.append(np.mean(estimate.between(probed.level(8), 0, 1)))
        floor = np.mean(estimate.floor(probed.level(8), 0))
    assert covered >= 33  # 95% of 40 is 38; the jackknife is a little off, luck may be too
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(truth, abs=4 * error + 0.02)
    assert abs(np.mean(plain)) <= 0.05 * abs(truth) + 0.005
    assert floor < 0.1


def test_gradients_of_no_expectation_have_no_cosine() -> None:
    answers = []
    for seed in range(20):
        source: Any = Gaussians(torch.zeros(2, 60), noise=1.0, seed=seed)
        probed = Probed.of(probe(source, batches=32, blocks=8))
        answers.append(estimate.expected(probed.kept(), 0, 1).verdict)
    assert answers.count("n/a") >= 17


def test_expected_products_are_means_over_all_pairs_of_different_blocks() -> None:
    vectors = np.random.default_rng(1).normal(size=(5, 2, 7))
    blocks = np.einsum("ain,bjn->aibj", vectors, vectors)
    direct = np.mean([np.outer(vectors[a, 0] @ vectors[b].T, [1.0])[:, 0]
                      for a in range(5) for b in range(5) if a != b], axis=0)  # fmt: skip
    np.testing.assert_allclose(estimate.expected_products(blocks)[0, 0], direct[0])
    both = [vectors[a, 0] @ vectors[b, 1] for a in range(5) for b in range(5) if a != b]
    np.testing.assert_allclose(estimate.expected_products(blocks)[0, 1], np.mean(both))


@pytest.mark.parametrize("aim", [None, 0.3])
def test_the_change_is_that_of_the_combined_gradients(aim: float | None) -> None:
    """Two tasks: no visiting order, so the optimizer itself is the reference."""
    rows = torch.randn(6, 2, 11, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    grams = torch.einsum("rin,rjn->rij", rows, rows).numpy()
    target = None if aim is None else np.full((2, 2), aim)
    found = estimate.change(grams, target)
    for row, change in zip(rows, found, strict=True):
        weight = torch.nn.Parameter(torch.zeros(11, dtype=torch.float64))
        method = PCGrad() if aim is None else GradVac(beta=0.0, target=aim)
        optimizer = GradientSurgery(torch.optim.SGD([weight], lr=1.0), method, tasks=("a", "b"))
        optimizer.join([row[0] @ weight, row[1] @ weight]).backward()
        assert weight.grad is not None
        plain = row.sum(0)
        direct = (weight.grad - plain).norm() / plain.norm()
        assert change == pytest.approx(direct.item(), rel=1e-9, abs=1e-12)


def test_the_change_in_the_limit_is_zero_where_expectations_agree() -> None:
    agree: Any = Gaussians(means(0.5), noise=0.1, seed=0)
    conflict: Any = Gaussians(means(-0.5), noise=0.1, seed=0)
    kept = [Probed.of(probe(source, batches=16, blocks=8)).kept() for source in (agree, conflict)]
    none, half = (expected_change(each) for each in kept)
    assert none is not None
    assert half is not None
    assert (none.mean, none.half) == (0, 0)
    # Unit vectors at 120 degrees: each receives half of the other, so half of the sum is added.
    assert half.mean == pytest.approx(0.5, abs=0.05)
    assert half.low is not None
    assert half.high is not None
    assert 0 < half.low < 0.5 < half.high < 0.6
    limit = estimate.change(estimate.batches_of(Probed.of(probe(agree, batches=8, blocks=8))
                                                .level(32)))  # fmt: skip
    assert limit.max() == 0


@pytest.mark.parametrize(("i", "j"), [(0, 1), (0, 0)])
def test_few_halves_borrow_their_interval_from_all_blocks(i: int, j: int) -> None:
    """Unit means, noise .8 in 60 coordinates: E |g(b)|^2 = 1 + .64 * 60 * 8 / b."""
    truth, covered, found = {}, 0, []
    for seed in range(40):
        source: Any = Gaussians(means(0.6), noise=0.8, seed=seed)
        probed = Probed.of(probe(source, batches=128, blocks=16))
        for batch in probed.levels:
            truth[batch] = (0.6 if i != j else 1.0) / (1 + 0.64 * 60 * 8 / batch)
        few = estimate.cosine_at(probed, 512, i, j)
        assert few.low is not None
        assert few.high is not None
        covered += few.low <= truth[512] <= few.high
        found.append(few.mean)
    assert covered >= 33
    assert np.mean(found) == pytest.approx(truth[512], abs=0.02)
    # With enough halves it is their mean.
    many = estimate.floor(probed.level(8), i) if i == j else estimate.between(probed.level(8), i, j)
    assert estimate.cosine_at(probed, 8, i, j).mean == pytest.approx(np.mean(many))


def test_a_part_by_itself_has_its_own_cosine() -> None:
    source: Any = Gaussians(means(0.6), noise=0.1, seed=0)
    probed = Probed.of(probe(source, batches=16, blocks=8))
    low, _ = segment_columns(60)
    part = means(0.6)[:, low].double()
    direct = (part[0] @ part[1] / (part[0].norm() * part[1].norm())).item()
    assert estimate.cosine_at(probed, 64, 0, 1, "low").mean == pytest.approx(direct, abs=0.05)


def test_a_statistic_that_fails_without_a_block_has_no_bounds() -> None:
    """Left-out NaNs would make the interval narrower than what is known."""
    blocks = np.ones((4, 1, 4, 1))
    blocks[2] = blocks[:, :, 2] = 5.0
    found = estimate.jackknife(blocks, lambda kept: 1.0 if kept.max() > 1 else float("nan"))
    assert (found.mean, found.low, found.high) == (1.0, None, None)
    assert estimate.Expected(found).verdict == "n/a"


def test_products_in_adams_metric_are_those_that_the_next_step_of_adam_sees() -> None:
    """A parameter's product is g_i g_j / (sqrt(v) + eps), with v corrected as Adam corrects it."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = torch.optim.AdamW([{"params": [("weight", weight)]}], lr=1e-3, eps=1e-3)
    squares = torch.zeros(5, dtype=torch.float64)
    for _ in range(3):
        weight.grad = torch.randn(5, generator=generator, dtype=torch.float64)
        squares = 0.999 * squares + 0.001 * weight.grad**2
        optimizer.step()
    (factor,) = scales(optimizer.state_dict(), ["weight"])
    metric = 1 / ((squares / (1 - 0.999**3)).sqrt() + 1e-3)
    torch.testing.assert_close(factor**2, metric)
    with pytest.raises(KeyError, match="bias"):
        scales(optimizer.state_dict(), ["bias"])


def test_a_probe_keeps_its_blocks_in_both_metrics() -> None:
    factors = [torch.full((20,), f, dtype=torch.float64) for f in (1.0, 2.0, 3.0)]
    source: Any = Gaussians(means(0.4), noise=0.0, seed=0)
    record = probe(source, batches=8, blocks=4, scales=factors)
    plain, adam = Probed.of(record), in_adams_metric(record)
    assert adam is not None
    assert list(adam.levels) == [16, 32]
    # Segment "high" is the second parameter alone, so its products are 4 times as large.
    np.testing.assert_allclose(adam.kept("high"), 4 * plain.kept("high"), rtol=1e-6)
    scaled = means(0.4).to(torch.float64) * torch.cat(factors)
    effect = float(scaled[0] @ scaled[1] / (scaled[0] @ scaled[0]))
    assert side_effects(adam)["t0", "t1"].mean == pytest.approx(effect, rel=1e-6)
    assert in_adams_metric({**record, "adam": None}) is None
