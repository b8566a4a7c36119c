"""Laws of the schemes: who shares a step, how often, in which batches, and from any state."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter

import pytest
import torch

from bert_mtl_demo.batching import SCHEMES, Batches, OnePositive
from bert_mtl_demo.batching.alternating import Annealed, Drawn, Proportional, Sqrt
from bert_mtl_demo.batching.scheme import Frame
from bert_mtl_demo.config import ALTERNATING, BATCHINGS
from bert_mtl_demo.errors import ConfigError

SIZES = {"sst": 30, "para": 200, "sts": 60}
TOGETHER = [name for name in BATCHINGS if name not in (*ALTERNATING, "uniform_partial")]


def lengths(size: int) -> list[int]:
    return torch.randint(3, 40, (size,), generator=torch.Generator().manual_seed(size)).tolist()


def batches_of(scheme, sizes=SIZES, batch_size=8, seed=0, **more) -> Batches:
    rows = {name: lengths(size) for name, size in sizes.items()}
    return Batches(rows, scheme=scheme, batch_size=batch_size, seed=seed, **more)


def taken(batches: Batches, start: int, stop: int) -> list[dict[str, list[int]]]:
    return [batches.at(step) for step in range(start, stop)]


def seen(steps: list[dict[str, list[int]]], task: str) -> list[int]:
    return [index for step in steps for index in step.get(task, [])]


# ------------------------------------------------------------------------------ all of them


def test_the_table_has_the_settings_names_in_their_order():
    assert tuple(SCHEMES) == BATCHINGS


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_seed_gives_the_same_steps_and_another_does_not(scheme):
    one, same, other = (batches_of(scheme, seed=seed, epochs=2) for seed in (3, 3, 4))
    steps = taken(one, 0, 40)
    torch.rand(5)  # the global generator plays no part
    assert steps == taken(same, 0, 40)
    assert steps != taken(other, 0, 40)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("special", [False, True], ids=["plain", "one_positive"])
def test_from_any_state_on_the_steps_are_those_of_the_run_that_never_stopped(scheme, special):
    more = {"one_positive": {"sts": [1.0, 5.0] * 30}} if special else {}
    sizes = {"sst": 12, "para": 50, "sts": 60}
    if special and scheme == "method_1":
        sizes["para"] = 60  # else too few sts a batch

    def make(seed: int) -> Batches:
        return batches_of(scheme, sizes, 6, seed, epochs=3, steps_per_epoch=11, **more)

    whole = make(0)
    states = []
    steps = []
    for step in range(33):
        states.append(copy.deepcopy(whole.state_dict()))
        steps.append(whole.at(step))
    for at in range(0, 33, 3):
        resumed = make(99)
        resumed.load_state_dict(states[at])
        assert taken(resumed, at, 33) == steps[at:]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_state_is_a_snapshot(scheme):
    batches = batches_of(scheme)
    taken(batches, 0, 5)
    state = batches.state_dict()
    expected = taken(batches, 5, 40)
    again = batches_of(scheme)
    again.load_state_dict(state)
    assert taken(again, 5, 40) == expected


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_step_names_tasks_in_their_order_with_examples_they_have(scheme):
    names = list(SIZES)
    for step in taken(batches_of(scheme), 0, 60):
        assert step
        assert list(step) == [name for name in names if name in step]
        for name, indices in step.items():
            assert indices
            assert all(0 <= index < SIZES[name] for index in indices)


@pytest.mark.parametrize("scheme", ALTERNATING)
def test_alternating_schemes_give_a_step_one_task(scheme):
    """`config.ALTERNATING` promises that no two gradients meet."""
    assert {len(step) for step in taken(batches_of(scheme), 0, 60)} == {1}


@pytest.mark.parametrize("scheme", TOGETHER)
def test_together_means_everybody(scheme):
    assert all(list(step) == list(SIZES) for step in taken(batches_of(scheme), 0, 60))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_task_alone_is_trained_by_every_scheme(scheme):
    batches = batches_of(scheme, {"sts": 20}, batch_size=4, epochs=2)
    assert batches.steps_per_pass() == 5
    assert sorted(seen(taken(batches, 0, 5), "sts")) == list(range(20))


@pytest.mark.parametrize(
    ("scheme", "steps"),
    [
        ("zipped", 25),
        ("method_1", 25),
        ("method_2", 25),
        ("method_3", 4),
        ("uniform_partial", 37),  # ceil(290 / 8)
        ("round_robin", 75),
        ("proportional", 4 + 25 + 8),
        ("sqrt", 4 + 25 + 8),
        ("annealed", 4 + 25 + 8),
        ("sequential", 4 + 25 + 8),
        ("interleaved", 4 + 25 + 8),
    ],
)
def test_steps_in_a_pass_an_epoch_and_a_run(scheme, steps):
    batches = batches_of(scheme, epochs=3)
    assert (batches.steps_per_pass(), batches.steps_per_epoch) == (steps, steps)
    assert batches.horizon == 3 * steps
    assert [batches.epoch(step) for step in (0, steps - 1, steps, 3 * steps - 1)] == [1, 1, 2, 3]
    asked = batches_of(scheme, epochs=3, steps_per_epoch=5)
    assert (asked.steps_per_pass(), asked.steps_per_epoch, asked.horizon) == (steps, 5, 15)
    third = batches_of(scheme, epochs=3, epochs_per_pass=3)
    assert third.steps_per_epoch == math.ceil(steps / 3)


# ------------------------------------------------------------------ epochs that start anew


@pytest.mark.parametrize("scheme", ["method_1", "method_2", "method_3"])
def test_every_epoch_starts_every_set_anew(scheme):
    batches = batches_of(scheme, {"sst": 30, "para": 100, "sts": 61}, epochs=3)
    epochs = [
        taken(batches, n * batches.steps_per_epoch, (n + 1) * batches.steps_per_epoch)
        for n in range(3)
    ]
    for steps in epochs:
        for name, size in {"sst": 30, "para": 100, "sts": 61}.items():
            first = seen(steps, name)[:size]
            assert len(set(first)) == len(first)  # nothing twice before everything once
    for name in SIZES:
        assert len({tuple(seen(steps, name)) for steps in epochs}) == 3  # in new orders


def test_without_fresh_epochs_a_pass_runs_across_their_border():
    """What tells `zipped` from `method_2`: 60 = 25 x 8 - 140 examples of sts in epoch 1."""
    zipped, fresh = batches_of("zipped", epochs=2), batches_of("method_2", epochs=2)
    assert taken(zipped, 0, 25) == taken(fresh, 0, 25)
    second = [seen(taken(one, 25, 26), "sst") for one in (zipped, fresh)]
    assert second[0] != second[1]


def test_method_1_has_batches_in_proportion():
    """By hand: n = ceil(200 / 8) = 25; ceil(30 / 25), ceil(200 / 25), ceil(60 / 25)."""
    batches = batches_of("method_1")
    assert batches.scheme.batch_sizes() == {"sst": 2, "para": 8, "sts": 3}
    steps = taken(batches, 0, 25)
    assert sorted(seen(steps, "para")) == list(range(200))
    assert set(seen(steps, "sst")) == set(range(30))  # 15 steps; then it goes on
    assert max(Counter(seen(steps, "sst")).values()) == 2


def test_method_1_on_the_sizes_of_the_reports():
    sizes = {"sst": 8544, "para": 141506, "sts": 6041}
    scheme = SCHEMES["method_1"](Frame(sizes, batch_size=32))
    assert scheme.steps_per_pass() == 4423
    assert scheme.batch_sizes() == {"sst": 2, "para": 32, "sts": 2}


def test_method_2_sees_the_largest_set_once_an_epoch():
    batches = batches_of("method_2", epochs=2)
    for start in (0, 25):
        steps = taken(batches, start, start + 25)
        assert sorted(seen(steps, "para")) == list(range(200))
        assert set(seen(steps, "sst")) == set(range(30))


def test_method_3_ends_its_epoch_with_the_smallest_set():
    batches = batches_of("method_3", epochs=8)
    union = set()
    for epoch in range(8):
        steps = taken(batches, 4 * epoch, 4 * epoch + 4)
        assert sorted(seen(steps, "sst")) == list(range(30))
        assert len(set(seen(steps, "para"))) == len(seen(steps, "para")) < 40
        union |= set(seen(steps, "para"))
    assert len(union) > 100  # other examples come up in other epochs


# --------------------------------------------------------------------------- drawn tasks


def assert_frequencies(counts: Counter[str], probabilities: dict[str, float]) -> None:
    """Pearson's statistic, which for two degrees of freedom is above 13.8 once in a thousand."""
    total = sum(counts.values())
    statistic = sum(
        (counts[name] - total * p) ** 2 / (total * p) for name, p in probabilities.items()
    )
    assert statistic < 13.8, (counts, probabilities)


@pytest.mark.parametrize(("scheme", "alpha"), [("proportional", 1.0), ("sqrt", 0.5)])
def test_tasks_are_drawn_as_often_as_their_size_to_the_alpha(scheme, alpha):
    batches = batches_of(scheme)
    counts = Counter(name for step in taken(batches, 0, 4000) for name in step)
    weights = {name: size**alpha for name, size in SIZES.items()}
    total = sum(weights.values())
    assert_frequencies(counts, {name: weight / total for name, weight in weights.items()})


def test_annealed_draws_flatten_from_epoch_to_epoch():
    batches = batches_of("annealed", epochs=2, steps_per_epoch=3000)
    for epoch, alpha in ((0, 1.0), (1, 0.2)):
        steps = taken(batches, 3000 * epoch, 3000 * (epoch + 1))
        weights = {name: size**alpha for name, size in SIZES.items()}
        total = sum(weights.values())
        counts = Counter(name for step in steps for name in step)
        assert_frequencies(counts, {name: weight / total for name, weight in weights.items()})


@pytest.mark.parametrize("epochs", [2, 3, 25])
def test_annealing_goes_from_one_to_a_fifth(epochs):
    frame = Frame(SIZES, 8, epochs=epochs)
    scheme = Annealed(frame)
    alphas = [scheme.alpha(epoch) for epoch in range(1, epochs + 1)]
    assert alphas[0] == 1.0
    assert alphas[-1] == pytest.approx(0.2)
    drops = [one - other for one, other in itertools.pairwise(alphas)]
    assert drops == pytest.approx([0.8 / (epochs - 1)] * (epochs - 1))
    assert torch.equal(scheme.probabilities(1), Proportional(frame).probabilities(1))


def test_annealing_over_one_epoch_is_proportional():
    assert Annealed(Frame(SIZES, 8, epochs=1)).alpha(1) == 1.0


@pytest.mark.parametrize("kind", [Proportional, Sqrt, Annealed])
@pytest.mark.parametrize("factor", [2, 1000])
def test_probabilities_depend_on_the_sizes_ratios_only(kind: type[Drawn], factor):
    bigger = {name: factor * size for name, size in SIZES.items()}
    for epoch in (1, 2):
        few, many = (
            kind(Frame(sizes, 8, epochs=2)).probabilities(epoch) for sizes in (SIZES, bigger)
        )
        torch.testing.assert_close(few, many, rtol=1e-12, atol=0)
        assert few.dtype == torch.float64
        assert few.sum().item() == pytest.approx(1)


def test_tasks_of_one_size_are_drawn_alike():
    for kind in (Proportional, Sqrt, Annealed):
        assert kind(Frame({"a": 5, "b": 5}, 2)).probabilities(1).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("scheme", ["proportional", "sqrt", "annealed", "round_robin"])
def test_a_drawn_task_goes_on_with_its_pass(scheme):
    steps = taken(batches_of(scheme, epochs=2), 0, 300)
    for name, size in SIZES.items():
        found = seen(steps, name)
        for start in range(0, len(found) - size, size):
            assert sorted(found[start : start + size]) == list(range(size))


# ------------------------------------------------------------------------ uniform_partial


@pytest.mark.parametrize(("batch_size", "partial"), [(16, 4), (8, 8), (6, 4), (3, 8), (5, 1)])
def test_partial_batches_fill_the_step_exactly(batch_size, partial):
    batches = batches_of("uniform_partial", batch_size=batch_size, partial_batch=partial)
    draws = math.ceil(batch_size / partial)
    last = batch_size - (draws - 1) * partial
    for step in taken(batches, 0, 200):
        assert sum(len(indices) for indices in step.values()) == batch_size
        assert len(step) <= draws
        for indices in step.values():
            assert len(indices) % partial in (0, last % partial)


def test_partial_draws_are_uniform_and_with_replacement():
    batches = batches_of("uniform_partial", batch_size=16, partial_batch=4)
    steps = taken(batches, 0, 1500)
    counts = Counter({name: len(seen(steps, name)) // 4 for name in SIZES})
    assert sum(counts.values()) == 6000
    assert_frequencies(counts, dict.fromkeys(SIZES, 1 / 3))
    # Of 4 draws from 3 tasks all go to one task with probability 3 / 81.
    alone = Counter(str(len(step) == 1) for step in steps)
    assert_frequencies(alone, {"True": 3 / 81, "False": 78 / 81})


def test_partial_draws_see_each_example_once_a_pass():
    steps = taken(batches_of("uniform_partial", batch_size=16, partial_batch=4), 0, 300)
    for name, size in SIZES.items():  # neither 30 nor 200 nor 60 need be whole partial batches
        found = seen(steps, name)
        for start in range(0, len(found) - size, size):
            assert sorted(found[start : start + size]) == list(range(size))


# ----------------------------------------------------------------------------- sequential


def order(batches: Batches, steps: int) -> list[str]:
    return [name for step in taken(batches, 0, steps) for name in step]


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_sequential_gives_each_task_its_own_passes_in_order(epochs):
    batches = batches_of("sequential", epochs=epochs)
    assert order(batches, batches.horizon) == (
        ["sst"] * 4 * epochs + ["para"] * 25 * epochs + ["sts"] * 8 * epochs
    )
    other = dict(reversed(SIZES.items()))
    turned = batches_of("sequential", other, epochs=epochs)
    assert order(turned, turned.horizon)[:: turned.horizon - 1] == ["sts", "sst"]


def test_sequential_passes_are_whole():
    steps = taken(batches_of("sequential", epochs=2), 0, 74)
    for name, size in SIZES.items():
        assert sorted(seen(steps, name)) == sorted(2 * list(range(size)))


def test_sequential_with_a_number_of_steps_has_equal_parts():
    batches = batches_of("sequential", epochs=2, steps_per_epoch=6)
    assert order(batches, 12) == ["sst"] * 4 + ["para"] * 4 + ["sts"] * 4
    uneven = order(batches_of("sequential", epochs=1, steps_per_epoch=10), 10)
    assert sorted(Counter(uneven).values()) == [3, 3, 4]


def test_a_part_of_a_pass_is_divided_like_the_whole():
    batches = batches_of("sequential", epochs=3, epochs_per_pass=3)  # 13 steps an epoch, 39
    counts = Counter(order(batches, batches.horizon))
    for name, passes in {"sst": 4, "para": 25, "sts": 8}.items():
        assert counts[name] == pytest.approx(39 * passes / 37, abs=1)


# ----------------------------------------------------------------- one positive in a batch

LABELS = [3.0, 3.2, 0.0, 5.0, 2.8, 1.0, 3.0, 4.4, 2.0, 0.4]
POSITIVE = {1, 3, 7}


@pytest.mark.parametrize("scheme", ["zipped", "method_2", "uniform_partial", "sequential"])
def test_every_batch_has_exactly_one_positive(scheme):
    sizes = {"sst": 12, "sts": len(LABELS)}
    batches = batches_of(scheme, sizes, 6, partial_batch=3, one_positive={"sts": LABELS})
    steps = [step for step in taken(batches, 0, 60) if "sts" in step]
    assert len(steps) > 20
    for step in steps:
        assert sum(index in POSITIVE for index in step["sts"]) == 1
        assert all(LABELS[index] <= 3 for index in step["sts"] if index not in POSITIVE)
    assert set(seen(steps, "sts")) == set(range(len(LABELS)))


def test_positives_and_negatives_are_each_seen_once_before_any_twice():
    stream = OnePositive([5] * len(LABELS), LABELS, batch_size=3, seed=0, task="sts")
    found = [stream.next() for _ in range(21)]
    for wanted in (POSITIVE, set(range(len(LABELS))) - POSITIVE):
        order = [index for batch in found for index in batch if index in wanted]
        for start in range(0, len(order) - len(wanted), len(wanted)):
            assert set(order[start : start + len(wanted)]) == wanted


@pytest.mark.parametrize(
    ("labels", "kind"), [([1.0, 3.0, 2.9], "positive"), ([3.1, 5.0, 4.0], "negative")]
)
def test_labels_without_a_contrast_are_refused(labels, kind):
    with pytest.raises(ConfigError, match=f"none of the 3 pairs of sts is {kind}"):
        OnePositive([5, 5, 5], labels, batch_size=2, seed=0, task="sts")


@pytest.mark.parametrize(
    ("scheme", "batch_size", "partial"),
    [("zipped", 1, 4), ("uniform_partial", 9, 4), ("uniform_partial", 8, 1), ("method_1", 8, 4)],
)
def test_batches_without_room_for_a_negative_are_refused(scheme, batch_size, partial):
    sizes = {"para": 1000, "sts": len(LABELS)}
    with pytest.raises(ConfigError, match="a batch of 1 example of sts"):
        batches_of(scheme, sizes, batch_size, partial_batch=partial, one_positive={"sts": LABELS})


# ----------------------------------------------------------------------------- interleaved


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_interleaved_gives_every_epoch_a_whole_pass_of_each_task_in_order(epochs):
    batches = batches_of("interleaved", epochs=epochs)
    assert order(batches, batches.horizon) == (["sst"] * 4 + ["para"] * 25 + ["sts"] * 8) * epochs


def test_interleaved_with_a_number_of_steps_has_equal_parts():
    batches = batches_of("interleaved", epochs=2, steps_per_epoch=6)
    assert order(batches, 12) == (["sst"] * 2 + ["para"] * 2 + ["sts"] * 2) * 2


# ------------------------------------------------------------------- fractions, whole sizes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_fraction_is_of_every_epoch(scheme):
    whole, part = (batches_of(scheme, epochs=3, fraction=f) for f in (1.0, 0.2))
    assert part.steps_per_epoch == math.ceil(round(whole.steps_per_epoch / 5, 6))
    assert part.horizon == 3 * part.steps_per_epoch
    asked = batches_of(scheme, epochs=3, steps_per_epoch=50, fraction=0.1)
    assert asked.steps_per_epoch == 5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_laid_out_for_whole_sets_does_not_see_the_limit(scheme):
    few = dict.fromkeys(SIZES, 10)
    whole, rows = batches_of(scheme, epochs=2), {name: lengths(10) for name in few}
    limited = Batches(rows, scheme=scheme, batch_size=8, seed=0, epochs=2, sizes=SIZES)
    assert limited.steps_per_epoch == whole.steps_per_epoch
    turns = [[list(step) for step in taken(b, 0, whole.horizon)] for b in (whole, limited)]
    assert turns[0] == turns[1]
    assert all(set(seen(taken(limited, 0, 40), name)) <= set(range(10)) for name in few)
