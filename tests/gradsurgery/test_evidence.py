"""Evidence of conflict: windows add up, the error rate is the nominal one, and conflicts are found.

The simulations are seeded, so their rates are fixed numbers; the bounds allow for the binomial
error of so many runs.
"""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradsurgery import ConflictLog, ConflictStatistics, Sum, report
from gradsurgery.evidence import BATCH, Evidence, expected_cosine, sentence, student

stats = pytest.importorskip("scipy.stats")

RUNS = 2000
EXACT = st.integers(-8, 8).map(lambda n: n / 8)  # their sums and squares are exact
BATCHES = st.lists(st.lists(EXACT, max_size=BATCH), max_size=20)


def evidence_of(cosines: Tensor) -> Evidence:
    """The evidence of one run's cosines, [T]."""
    batches = [Evidence.of_batch(batch.tolist()) for batch in cosines.split(BATCH)]
    return sum(batches, Evidence())


def rate(cosines: Tensor, pairs: int = 1) -> float:
    """The share of runs, [R, T], that are called a conflict."""
    verdicts = [evidence_of(run).verdict(pairs) for run in cosines]
    return verdicts.count("conflict") / len(verdicts)


def noise(steps: int, runs: int = RUNS, memory: float = 0.0, seed: int = 0) -> Tensor:
    """Stationary autoregressive noise of variance 1, [R, T]; ``memory`` is its correlation."""
    draws = torch.randn(runs, steps, generator=torch.Generator().manual_seed(seed)).double()
    values = [draws[:, 0]]
    for draw in draws[:, 1:].unbind(1):
        values.append(memory * values[-1] + math.sqrt(1 - memory**2) * draw)
    return torch.stack(values, 1)


def gram_of(gradients: Tensor) -> Tensor:
    """[1, K, K] of [K, P]."""
    return (gradients @ gradients.T)[None].double()


def counted(conflicts: ConflictStatistics, gradients: Tensor) -> None:
    """Count a step of [K, P] gradients in one segment."""
    gram = gram_of(gradients)
    active = gram[0].diagonal() > 0
    conflicts.update(gram, Sum()(gram, state={}), ["model"], active)


# ---------------------------------------------------------------------- the estimator


def test_the_interval_is_students_over_batch_means() -> None:
    """With full batches the ratio's variance is that of the mean of batch means."""
    cosines = -0.02 + 0.1 * noise(200, runs=1)[0]
    pair = evidence_of(cosines)
    means = cosines.view(-1, BATCH).mean(1).numpy()
    low, high = stats.t.interval(0.95, 19, means.mean(), stats.sem(means))
    row = pair.to_json()
    assert (row["cosine"], row["low"], row["high"]) == pytest.approx((means.mean(), low, high))


@pytest.mark.parametrize("pairs", [1, 3, 28])
@pytest.mark.parametrize("freedom", [7, 9, 30, 1000])
def test_quantiles_are_students(freedom: int, pairs: int) -> None:
    level = 1 - 0.025 / pairs
    assert student(level, freedom) == pytest.approx(stats.t.ppf(level, freedom), rel=1e-3)


@given(BATCHES, BATCHES)
def test_windows_add_up_and_survive_their_json(
    first: list[list[float]], last: list[list[float]]
) -> None:
    def total(batches: list[list[float]]) -> Evidence:
        return sum(map(Evidence.of_batch, batches), Evidence())

    whole = total(first + last)
    assert total(first) + total(last) == whole
    if whole.steps:
        assert Evidence.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    assert Evidence.from_json(None) == Evidence()


@given(BATCHES, st.integers(1, 5))
def test_the_opposite_run_has_the_opposite_interval(batches: list[list[float]], pairs: int) -> None:
    pair = sum(map(Evidence.of_batch, batches), Evidence())
    opposite = sum((Evidence.of_batch([-x for x in b]) for b in batches), Evidence())
    assert opposite.half(pairs) == pair.half(pairs)
    turned = {"conflict": "no conflict", "no conflict": "conflict"}
    verdict = pair.verdict(pairs)
    assert opposite.verdict(pairs) == turned.get(verdict, verdict)


def test_orthogonal_up_to_rounding_is_no_evidence() -> None:
    assert evidence_of(torch.full((200,), -1e-9)).verdict() == "no evidence"
    assert evidence_of(torch.full((200,), -1e-3)).verdict() == "conflict"


# ---------------------------------------------------------------------- calibration and power


@pytest.mark.parametrize("steps", [80, 100, 1000])
def test_without_conflict_the_verdict_is_at_most_as_frequent_as_promised(steps: int) -> None:
    """One side of a 95% interval: 2.5%, and three standard errors of 2000 runs."""
    assert rate(0.2 * noise(steps)) <= 0.025 + 0.0105


def test_dependent_steps_do_not_raise_the_rate_beyond_5_percent() -> None:
    """Steps correlated by 0.5: taken as independent they would say conflict in 13% of runs."""
    cosines = 0.2 * noise(400, memory=0.5)
    assert rate(cosines) <= 0.05
    assert rate(0.2 * noise(400, memory=0.8)) <= 0.07  # as the module admits
    naive = cosines.mean(1) + stats.t.ppf(0.975, 399) * cosines.std(1) / 20 < 0
    assert naive.double().mean() > 0.1


def test_several_pairs_are_corrected() -> None:
    """Of 10 pairs without conflict, any is called one in at most 2.5% of runs."""
    pairs = 10
    verdicts = [
        [evidence_of(row).verdict(pairs) for row in group]
        for group in (0.2 * noise(200, runs=400 * pairs)).split(pairs)
    ]
    assert sum("conflict" in group for group in verdicts) / 400 <= 0.025 + 0.0235


def test_the_promised_conflict_is_found() -> None:
    """A mean of -0.1 with scatter 0.25 in 100 steps, and half of it in 400: nine of ten runs."""
    assert rate(-0.1 + 0.25 * noise(100)) >= 0.9
    assert rate(-0.05 + 0.25 * noise(400, runs=500)) >= 0.9
    assert rate(-0.1 + 0.25 * noise(300, runs=500, memory=0.5)) >= 0.9


@pytest.mark.parametrize(("cosine", "least", "most"), [(0.0, 0.0, 0.04), (-0.1, 0.9, 1.0)])
def test_of_gradients_with_noise(cosine: float, least: float, most: float) -> None:
    """Expected gradients at this cosine in batches whose noise is as long as they: floors 1/2.

    In 100 dimensions single cosines scatter by 0.09 around half of it: 300 steps find -0.05.
    """
    generator = torch.Generator().manual_seed(1)
    runs, steps, size = 300, 300, 100
    expected = torch.zeros(2, size)
    expected[0, 0], expected[1, 0], expected[1, 1] = 1, cosine, math.sqrt(1 - cosine**2)
    gradients = torch.randn(2, runs, steps, size, generator=generator) / math.sqrt(size)
    gradients += expected[:, None, None]
    cosines = torch.cosine_similarity(*gradients, dim=-1).double()
    assert cosines.mean() == pytest.approx(cosine / 2, abs=0.002)
    assert least <= rate(cosines) <= most


# ---------------------------------------------------------------------- of expected gradients


def halves(cosine: float, noise: float, steps: int, seed: int) -> dict[str, Evidence]:
    """The evidence on two tasks' half batches, in noise ``noise`` times as long as they are."""
    size, generator = 100, torch.Generator().manual_seed(seed)
    expected = torch.zeros(4, 1, size)
    expected[:2, :, 0], expected[2:, :, 0] = 1, cosine
    expected[2:, :, 1] = math.sqrt(1 - cosine**2)
    gradients = torch.randn(4, steps, size, generator=generator) * noise / math.sqrt(size)
    units = torch.nn.functional.normalize(gradients + expected, dim=-1).double()
    return {
        f"{i}/{j}": evidence_of((units[a] * units[b]).sum(-1))
        for (a, i), (b, j) in combinations(enumerate(("a", "A", "b", "B")), 2)
    }


@pytest.mark.parametrize(
    ("cosine", "noise", "conflicts"),
    [(0.0, 1.0, 0), (0.0, 4.0, 0), (-0.3, 3.0, 60), (-0.9, 4.0, 60)],
)
def test_the_cosine_of_expected_gradients(cosine: float, noise: float, conflicts: int) -> None:
    """Whatever the noise, where the mean cosine of single batches is a tenth of it or less."""
    runs = [
        expected_cosine(halves(cosine, noise, 200, seed), ("a", "A"), ("b", "B"))
        for seed in range(60)
    ]
    intervals = [run for run in runs if run is not None]
    points = [run.cosine for run in intervals]
    assert sum(points) / 60 == pytest.approx(cosine, abs=0.03)
    assert sum(run.low <= cosine <= run.high for run in intervals) >= 57  # 95% of 60
    assert sum(run.high < 0 for run in intervals) == conflicts


def test_halves_that_are_all_noise_say_nothing() -> None:
    pairs = halves(0.0, 1e9, 100, 0) | {"a/A": evidence_of(torch.full((100,), -0.01))}
    result = expected_cosine(pairs, ("a", "A"), ("b", "B"))
    assert result is not None
    assert math.isnan(result.cosine)
    assert result.low == -1
    assert result.high == 1


def test_the_cosine_of_expected_gradients_takes_steps_and_halves() -> None:
    assert expected_cosine(halves(0.0, 1.0, 70, 0), ("a", "A"), ("b", "B")) is None
    with pytest.raises(ValueError, match="no evidence on a/C, only on a/A, a/b"):
        expected_cosine(halves(0.0, 1.0, 100, 0), ("a", "C"), ("b", "B"))


def test_more_pairs_have_wider_intervals() -> None:
    pairs = halves(-0.3, 2.0, 200, 0)
    few, many = (expected_cosine(pairs, ("a", "A"), ("b", "B"), compared=n) for n in (1, 20))
    assert few is not None
    assert many is not None
    assert few == expected_cosine(pairs, ("A", "a"), ("B", "b"))
    assert many.low < few.low < few.cosine == many.cosine < few.high < many.high


# ---------------------------------------------------------------------- in statistics and logs


def steps_of(count: int, tasks: int = 3, seed: int = 0) -> Tensor:
    """Random gradients, [T, K, P], some of them absent."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(count, tasks, 20, generator=generator)
    return gradients * (torch.rand(count, tasks, 1, generator=generator) < 0.8)


def test_statistics_hold_the_evidence_of_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent tasks leave steps out of a batch, and the batch goes on."""
    gradients = steps_of(97)
    norms = gradients.double().norm(dim=-1)
    met = (norms[:, 0] > 0) & (norms[:, 1] > 0)
    cosines = (gradients[:, 0] * gradients[:, 1]).double().sum(-1) / (norms[:, 0] * norms[:, 1])
    batches = zip(cosines.split(BATCH), met.split(BATCH), strict=True)
    expected = sum((Evidence.of_batch(c[m].tolist()) for c, m in batches), Evidence())
    summaries = []
    for waiting in (1, 7, 1000):
        monkeypatch.setattr("gradsurgery.statistics.WAITING", waiting)
        conflicts = ConflictStatistics(("a", "b", "c"), "Sum()")
        for row in gradients:
            counted(conflicts, row)
        summaries.append(conflicts.summary())
    assert summaries[0] == summaries[1] == summaries[2]
    pairs = {(pair["i"], pair["j"]): pair for pair in summaries[0]["pairs"]}
    assert pairs["a", "b"]["evidence"]["sums"] == pytest.approx(expected.sums, rel=1e-5)
    assert [names for names, pair in pairs.items() if "evidence" in pair] == [
        *(("a", "b"), ("a", "c"), ("b", "c")),
    ]


@pytest.mark.parametrize("stop", [5, 20, 33])
def test_a_batch_goes_on_after_a_checkpoint(stop: int, tmp_path: Path) -> None:
    whole = ConflictStatistics(("a", "b", "c"), "Sum()")
    begun, resumed = (ConflictStatistics(whole.tasks, "Sum()") for _ in range(2))
    gradients = steps_of(47)
    for n, row in enumerate(gradients):
        counted(whole, row)
        if n == stop:
            torch.save(begun.state_dict(), tmp_path / "conflicts.pt")
            resumed.load_state_dict(torch.load(tmp_path / "conflicts.pt", weights_only=True))
        counted(begun if n < stop else resumed, row)
    assert resumed.summary() == whole.summary()


def test_windows_of_a_log_are_one_run(tmp_path: Path) -> None:
    """Windows of whole batches, and reading between them, change nothing."""
    whole, windows = (ConflictStatistics(("a", "b", "c"), "Sum()") for _ in range(2))
    log = ConflictLog(tmp_path / "conflicts.jsonl")
    for step, row in enumerate(steps_of(120), start=1):
        counted(whole, row)
        counted(windows, row)
        windows.summary()
        if step % (4 * BATCH) == 0:
            log.write(windows, step=step)
    pairs = report.evidence(report.read([log.path]))
    for pair in whole.summary()["pairs"]:
        if "evidence" in pair:
            sums = pairs[f"{pair['i']}/{pair['j']}"].sums
            assert sums == pytest.approx(pair["evidence"]["sums"], abs=1e-9)
    assert report.verdict(report.read([log.path])) == whole.verdict()


def test_the_pair_is_judged_by_the_whole_model_and_each_segment_by_its_own() -> None:
    """Against each other in a short segment, together in a long one: together."""
    conflicts = ConflictStatistics(("a", "b"), "Sum()")
    gram = torch.tensor([[[1.0, -0.9], [-0.9, 1.0]], [[9.0, 8.0], [8.0, 9.0]]]).double()
    for _ in range(100):
        conflicts.update(gram, Sum()(gram, state={}), ["short", "long"], torch.tensor([True] * 2))
    summary = conflicts.summary()
    assert summary["pairs"][0]["evidence"]["cosine"] == pytest.approx(7.1 / 10)
    short, long = (part["pairs"][0]["evidence"] for part in summary["by_segment"])
    assert (short["verdict"], long["verdict"]) == ("conflict", "no conflict")
    assert short["cosine"] == pytest.approx(-0.9)


# ---------------------------------------------------------------------- in words


def test_the_report_says_what_was_found_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """a and b pull against each other in a fixed direction; c is noise."""
    conflicts = ConflictStatistics(("a", "b", "c"), "Sum()")
    log = ConflictLog(tmp_path / "conflicts.jsonl")
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 201):
        gradients = torch.randn(3, 50, generator=generator)
        gradients[0, 0] += 4
        gradients[1, 0] -= 4
        counted(conflicts, gradients)
        if step == 50:
            assert conflicts.verdict().startswith("Too few steps")
        if step == 200:
            assert conflicts.verdict().startswith("a/b conflicts: ")
            log.write(conflicts, step=step)
    assert report.main([str(log.path), "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    ab, ac, bc = (row for row in out.splitlines() if row.startswith("- "))
    assert ab.startswith("- a/b: -0.2")
    assert ab.endswith(", conflict")
    assert ac.endswith(", no evidence of conflict")
    assert bc.endswith(", no evidence of conflict")
    assert "Verdict: a/b conflicts: " in out
    assert "try PCGrad()" in out
    assert "where tasks share a batch" in out


def test_without_conflict_the_sentence_says_what_is_ruled_out() -> None:
    pairs = {"a/b": evidence_of(0.1 * noise(400, runs=1)[0]), "a/c": Evidence.of_batch([0.1])}
    text = sentence(pairs)
    assert text.startswith("Of 2 pairs, 1 judged, none shows evidence of conflict")
    low = pairs["a/b"].to_json(2)["low"]
    assert f"single batches below {low:+.4f} is ruled out), so stay with Sum()" in text
    assert sentence({"a/b": pairs["a/b"]}).startswith("No pair shows evidence of conflict")


def test_logs_of_the_version_before_have_no_verdict() -> None:
    lines = report.read([Path(__file__).parents[2] / "docs/study/first-run/gradvac.jsonl"])
    assert report.evidence(lines) == {}
    assert report.verdict(lines) is None
    assert report.judgement(lines) == ""


def test_a_window_of_the_version_before_goes_on() -> None:
    """Its state has no batches: they begin with the first step of this version."""
    conflicts, old = (ConflictStatistics(("a", "b"), "Sum()") for _ in range(2))
    first, second = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0))
    counted(conflicts, first)
    state = conflicts.state_dict()
    del state["begun"], state["sums"]["open"], state["sums"]["closed"]
    old.load_state_dict(state)
    counted(old, second)
    pair = old.summary()["pairs"][0]
    assert (pair["possible"], pair["evidence"]["sums"][2]) == (2, 1)
