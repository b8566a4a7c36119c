"""Laws of batching: each example once a pass, in a reproducible order, from any point on."""

from __future__ import annotations

import pytest
import torch

from bert_mtl_demo.batching import CHUNK, Batches, Stream, bucketed

SIZES = [1, 2, 7, 8, 9, 200]


def lengths(size: int) -> list[int]:
    return torch.randint(3, 40, (size,), generator=torch.Generator().manual_seed(size)).tolist()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_example_is_seen_once_per_pass(size, batch_size):
    stream = Stream(lengths(size), batch_size, seed=0)
    for number in (1, 2, 3):  # a small set is cycled
        batches = [stream.next() for _ in range(-(-size // batch_size))]
        assert sorted(i for batch in batches for i in batch) == list(range(size))
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        assert stream.passes == number


def test_passes_differ_and_so_do_seeds():
    one, other = Stream(lengths(100), 8, seed=0), Stream(lengths(100), 8, seed=1)
    first = [one.next() for _ in range(13)]
    second = [one.next() for _ in range(13)]
    assert first != second
    assert first != [other.next() for _ in range(13)]


def test_the_same_seed_gives_the_same_batches():
    one, other = (Stream(lengths(50), 8, seed=3) for _ in range(2))
    torch.rand(5)  # the global generator plays no part
    assert [one.next() for _ in range(20)] == [other.next() for _ in range(20)]


@pytest.mark.parametrize("taken", [0, 1, 6, 7, 8, 20])
def test_a_resumed_stream_goes_on_as_if_never_stopped(taken):
    whole = Stream(lengths(50), 8, seed=0)  # 7 batches a pass
    for _ in range(taken):
        whole.next()
    resumed = Stream(lengths(50), 8, seed=99)
    resumed.load_state_dict(whole.state_dict())
    assert [whole.next() for _ in range(20)] == [resumed.next() for _ in range(20)]
    assert whole.passes == resumed.passes


def test_a_state_is_a_snapshot():
    stream = Stream(lengths(50), 8, seed=0)
    state = stream.state_dict()
    expected = [stream.next() for _ in range(20)]
    again = Stream(lengths(50), 8, seed=0)
    again.load_state_dict(state)
    assert [again.next() for _ in range(20)] == expected


def test_bucketing_saves_most_of_the_padding():
    rows = lengths(8 * CHUNK)

    def padded(batches: list[list[int]]) -> int:
        return sum(len(batch) * max(rows[i] for i in batch) for batch in batches)

    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(len(rows), generator=generator).tolist()
    plain = [shuffled[i : i + 8] for i in range(0, len(rows), 8)]
    waste = padded(bucketed(rows, 8, generator)) - sum(rows)
    assert waste < 0.25 * (padded(plain) - sum(rows))


def test_short_sentences_do_not_always_come_first():
    batches = bucketed(lengths(200), 8, torch.Generator().manual_seed(0))
    means = [sum(lengths(200)[i] for i in batch) / len(batch) for batch in batches]
    assert means != sorted(means)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="at least one example"):
        Stream([], 8, seed=0)


@pytest.mark.parametrize(("scheme", "times"), [("zipped", 6), ("round_robin", 2)])
def test_every_task_gets_its_turn(scheme, times):
    names = ["sst", "para", "sts"]
    batches = Batches({name: lengths(30) for name in names}, scheme=scheme, batch_size=8, seed=0)
    assert [name for step in range(6) for name in batches.at(step)] == names * times


@pytest.mark.parametrize("counts", [[3] * 40, [8] * 20, [1, 20, 2, 60, 7]])
def test_taking_counts_goes_through_the_same_examples(counts):
    """`take` cuts the row of examples that `next` gives elsewhere, and changes nothing else."""
    one, other = (Stream(lengths(50), 8, seed=0) for _ in range(2))
    taken = [one.take(count) for count in counts]
    assert [len(part) for part in taken] == counts
    row = [index for _ in range(40) for index in other.next()]
    assert [index for part in taken for index in part] == row[: sum(counts)]


def test_a_restarted_stream_begins_a_pass_unless_it_just_did():
    stream = Stream(lengths(50), 8, seed=0)
    first = stream.plan
    stream.restart()
    assert stream.plan is first
    stream.take(5)
    stream.restart()
    assert (stream.passes, stream.position, stream.rest) == (2, 0, [])
    assert sorted(stream.take(50)) == list(range(50))


@pytest.mark.parametrize("size", [*SIZES, 1000])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_bucketing_is_what_its_sentence_says(size, batch_size):
    """Against a second reading of it: chunk by chunk, with Python's sort."""
    rows = lengths(size)
    generator = torch.Generator().manual_seed(5)
    found = bucketed(rows, batch_size, torch.Generator().manual_seed(5))
    order = torch.randperm(size, generator=generator).tolist()
    batches = []
    for start in range(0, size, CHUNK * batch_size):
        chunk = sorted(order[start : start + CHUNK * batch_size], key=rows.__getitem__)
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    assert found == [batches[i] for i in shuffled]


@pytest.mark.parametrize(("scheme", "steps"), [("zipped", 25), ("round_robin", 75)])
def test_an_epoch_is_one_pass_over_the_largest_set(scheme, steps):
    sizes = {"sst": 30, "para": 200, "sts": 60}
    batches = Batches(
        {name: lengths(size) for name, size in sizes.items()}, scheme=scheme, batch_size=8, seed=0
    )
    assert batches.steps_per_pass() == steps
    seen: dict[str, list[int]] = {name: [] for name in sizes}
    for step in range(steps):
        for name, indices in batches.at(step).items():
            seen[name] += indices
    assert sorted(seen["para"]) == list(range(200))
    assert all(len(set(seen[name])) == size for name, size in sizes.items())


def test_a_task_more_does_not_change_the_others_batches():
    few = Batches({"sst": lengths(30)}, scheme="zipped", batch_size=8, seed=0)
    many = Batches({"sts": lengths(9), "sst": lengths(30)}, scheme="zipped", batch_size=8, seed=0)
    for step in range(10):
        assert few.at(step)["sst"] == many.at(step)["sst"]


def test_two_tasks_of_one_size_are_not_in_step():
    batches = Batches({"a": [5] * 40, "b": [5] * 40}, scheme="zipped", batch_size=8, seed=0)
    found = batches.at(0)
    assert found["a"] != found["b"]
