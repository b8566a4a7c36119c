"""The conflict page's sentences on made-up numbers: every answer, and only what numbers carry."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from research.conflicts import by_layer, counts, figures, findings
from research.conflicts.counter import Array, upper_levels
from research.conflicts.estimate import Probed
from research.conflicts.simulation import alterations

TASKS = ["sst", "para", "sts"]


def probed(cosines: Array, noise: float, seed: int = 0) -> Probed:
    """16 blocks of 8 examples in one part: unit expectations at those cosines, plus noise."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(200, 3)))
    blocks = np.linalg.cholesky(cosines) @ basis.T + noise * rng.normal(size=(16, 3, 200))
    gram = np.einsum("ain,bjn->aibj", blocks, blocks)[None]
    levels = upper_levels(gram)
    return Probed(TASKS, ["all"], {8 * 2**n: level for n, level in enumerate(levels)}, gram)


CLEAR = np.array([[1, -0.6, 0.5], [-0.6, 1, 0], [0.5, 0, 1]])


def test_each_pair_gets_its_own_answer() -> None:
    said = findings.expectation("halfway", {"halfway": probed(CLEAR, noise=0.1)})
    conflict, agree, unclear = said.split("; those of ")
    assert conflict.startswith("Halfway, the expected gradients of sst/para (-0.5")
    assert conflict.endswith("pull against each other")
    assert agree.startswith("sst/sts (+0.")
    assert agree.endswith("pull to the same side")
    assert unclear.startswith("para/sts (")
    assert unclear.endswith("cannot tell from 0.")


def test_no_answer_without_expectations() -> None:
    nothing = probed(1e-6 * np.eye(3), noise=1.0)
    assert "cannot be compared" in findings.expectation("halfway", {"halfway": nothing})
    assert "no limit can be given" in findings.resized("halfway", nothing)
    answer = by_layer.layer_answer({"halfway": nothing})
    assert answer.endswith("3 n/a (an expected gradient cannot be told from zero).")


def test_layers_are_counted_beside_chance() -> None:
    probes = {"before": probed(CLEAR, 0.1), "after": probed(CLEAR, 0.1, seed=1)}
    answer = by_layer.layer_answer(probes)
    assert "of 6 cosines" in answer
    assert "2 conflict (below 0), 2 agree (above 0) and 2 open" in answer
    assert "intervals that hold all at once" in answer
    rows = by_layer.layer_table(probes).splitlines()[2:]
    assert [row.split(" | ")[-1].strip(" |") for row in rows] == ["conflict", "agree", "open"] * 2
    assert "nan" not in "".join(rows)
    assert "in 0.00% to 100% of the batches" in by_layer.layer_conflicts(probes)


def test_a_few_batches_are_no_target_for_gradvac() -> None:
    found = probed(CLEAR, noise=1.0)
    assert len(figures.changes(found.level(8), "gradvac")) == 16
    assert figures.changes(found.level(64), "gradvac") == []
    assert len(figures.changes(found.level(64), "pcgrad")) == 2


def runs(shares: dict[str, list[tuple[int, int]]]) -> dict[str, Any]:
    """Arm -> seed -> record with that many of 100 altered in each of two epochs."""

    def pairs(altered: int, target: float | None) -> list[dict[str, Any]]:
        counted = {"possible": 100, "conflicts": 50, "altered": altered, "mean": 0.01}
        return [{"i": i, "j": j, "target": target, **counted} for i, j in permutations(TASKS, 2)]

    return {
        arm: {
            str(seed): {"epochs": [{"pairs": pairs(n, -0.1 * (e + seed))} for e, n in enumerate(s)]}
            for seed, s in enumerate(seeds)
        }
        for arm, seeds in shares.items()
    }


@pytest.mark.parametrize(
    ("copied", "says"),
    [
        ([(50, 20), (52, 24), (48, 16)], "fell from 50% in the first epoch to 20% in the last (-3"),
        ([(20, 50), (24, 52), (16, 48)], "rose from 20%"),
        ([(50, 49), (48, 52), (52, 50)], "went from 50% in the first epoch to 50% in the last (in"),
        (
            [(50, 20)],
            "went from 50% in the first epoch to 20% in the last (one seed, one",
        ),
    ],
)
def test_a_fall_is_one_only_outside_the_noise(copied: list[tuple[int, int]], says: str) -> None:
    said = findings.rules(runs({"gradvac, on_alter": copied, "gradvac, always": [(50, 51)] * 3}))
    assert f"the copied rule's share of altered pairs {says}" in said
    assert "the paper's rule's went from 50%" in said


def test_pairs_are_shown_epoch_by_epoch_with_their_target() -> None:
    table = counts.pair_table(runs({"gradvac, on_alter": [(50, 20), (40, 10)]}))
    row = next(line for line in table.splitlines() if line.startswith("| gradvac"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # Seeds end at targets -.1 and -.2: -.15 +- t(1) * .05
    assert cells[2:] == ["400", "+0.0100", "50%", "30%", "45%", "15%", "-0.1500 ± 0.6353"]


def test_the_published_curve_is_given_in_its_own_unit() -> None:
    found = alterations(steps=18_000, epochs=2, seeds=2)
    said = findings.published({"published size, mean 0.05": found})
    share = 100 * found["on_alter"][0] / 54_000
    assert math.isclose(share, 4.2, abs_tol=0.3)
    assert f"that would be {findings.percent(share)} and " in said
    assert "of 54,000 gradients, beside the published 3.7%" in said
    assert "the paper's rule a steady 50% in every epoch" in said
