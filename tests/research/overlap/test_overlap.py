"""Shared words: what they alone can answer, and whether mistakes lie where they mislead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bert_mtl_demo.data import Examples, load
from bert_mtl_demo.study.claims import read_claims
from bert_mtl_demo.study.collected import Collected, write_collected
from bert_mtl_demo.study.findings import read_findings
from bert_mtl_demo.study.results import Evaluation, Result
from bert_mtl_demo.tasks import TASKS, resolve
from research.overlap.__main__ import QUANTITY, main
from research.overlap.words import by_bin, concentration, overlap_only, overlaps

PARA = TASKS["para"]
ROW = "multitask, pretrain mode"


def pairs(shared: list[int], labels: list[int]) -> Examples:
    """Pairs of nine words each, of which so many are shared."""
    first = [" ".join(f"w{n}" for n in range(9))] * len(shared)
    second = [
        " ".join([f"w{n}" for n in range(k)] + [f"v{n}" for n in range(9 - k)]) for k in shared
    ]
    return Examples(PARA, first, second, labels)


def test_overlap_is_that_of_sets_of_words() -> None:
    values = overlaps(pairs([0, 3, 9], [0, 0, 1]))
    np.testing.assert_allclose(values, [0, 3 / 15, 1])
    swapped = Examples(PARA, ["A b, a?"], ["b a"], [1])
    assert overlaps(swapped).tolist() == [1.0]


def test_overlap_alone_answers_as_most_of_train_do() -> None:
    train = pairs([0, 0, 0, 9, 9, 9], [0, 0, 1, 1, 1, 0])
    assert overlap_only(train, pairs([0, 9, 1, 8], [1, 0, 1, 0])).tolist() == [0, 1, 0, 0]


def test_mistakes_that_ignore_overlap_give_a_difference_around_zero() -> None:
    rng = np.random.default_rng(0)
    misled = rng.random(4000) < 0.3
    blind = {seed: (rng.random(4000) < 0.2).astype(float) for seed in range(4)}
    value = concentration(blind, misled)
    assert value.low is not None
    assert value.high is not None
    assert value.low < 0 < value.high
    drawn = {
        seed: np.where(misled, rng.random(4000) < 0.6, rng.random(4000) < 0.1) for seed in blind
    }
    value = concentration({seed: errors.astype(float) for seed, errors in drawn.items()}, misled)
    assert value.mean == pytest.approx(0.5, abs=0.03)
    assert value.low is not None
    assert value.low > 0.4


def test_bins_hold_every_pair_once() -> None:
    overlap = np.random.default_rng(0).choice([0.0, 0.5, 0.5, 1.0], 100)
    bins = by_bin(overlap, overlap)
    assert sum(count for _, _, count, _ in bins) == 100
    assert all(low <= mean <= high for low, high, _, mean in bins)


def study(directory: Path, labels: list[int], wrong: list[bool]) -> None:
    """Two seeds of a row that are wrong there."""
    found = tuple(float(label != flip) for label, flip in zip(labels, wrong, strict=True))
    score = 1 - sum(wrong) / len(wrong)
    dev = {"para": Evaluation(score, ((1, 1), (1, 1)), tuple(map(float, labels)), found)}
    runs = {f"r{seed}": Result({"para": score}, score, score, evaluation=dev) for seed in (0, 1)}
    rows = {ROW: {seed: (f"r{seed}",) for seed in (0, 1)}}
    write_collected(directory / "mtl_surgery_mlm.results.json", Collected(runs, rows))


def test_the_command_reads_kept_answers_and_leaves_a_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = load("sample", resolve(["para"]))[0]["para"]
    labels, baseline = splits.dev.labels, overlap_only(splits.train, splits.dev)
    misled = [bool(b != label) for b, label in zip(baseline, labels, strict=True)]
    study(tmp_path / "block", labels, misled)
    assert main(["--data", "sample", "--output", str(tmp_path)]) == 0
    name = QUANTITY.format(row=f"mtl_surgery_mlm: {ROW}")
    assert read_findings(tmp_path)["overlap"][name].mean == 1.0
    assert f"| mtl_surgery_mlm: {ROW} | 2 |" in (tmp_path / "overlap/overlap.md").read_text("utf-8")
    (asked,) = (claim.tests[0].score for claim in read_claims() if claim.id == "M7")
    assert asked == name
    # Answers to other pairs are not read.
    study(tmp_path / "block", labels[::-1], misled)
    assert main(["--data", "sample", "--output", str(tmp_path)]) == 2
    assert "hold answers to these" in capsys.readouterr().err
