"""Adam's metric: dot products as the optimizer weighs them, g_i^T diag(1 / (sqrt(v) + eps)) g_j.

A step of Adam along task j's gradient changes task i's loss by minus the rate times this product,
so it says what one task's step does to another, where the plain product would say it of SGD. v are
the second moments of the run at the probed step; before the first step there are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

from torch import Tensor

from bert_mtl_demo.study.intervals import Interval
from research.conflicts import estimate
from research.conflicts.estimate import Probed


def scales(optimizer: Mapping[str, Any], names: Sequence[str]) -> list[Tensor]:
    """Factors per parameter, the root of 1 / (sqrt(v) + eps), so that scaled gradients have
    Adam's products.

    Args:
        optimizer: the state of an Adam whose groups name their parameters.
        names: of the parameters.

    Raises:
        KeyError: for a parameter that has no second moment.
    """
    factors: dict[str, Tensor] = {}
    for group in optimizer["param_groups"]:
        for name, index in zip(group["param_names"], group["params"], strict=True):
            state = optimizer["state"].get(index)
            if state is not None:
                correction = 1 - group["betas"][1] ** float(state["step"])
                root = (state["exp_avg_sq"] / correction).sqrt()
                factors[name] = (root + group["eps"]).rsqrt()
    return [factors[name] for name in names]


def in_adams_metric(record: Mapping[str, Any]) -> Probed | None:
    """The kept blocks of a stage's probe in Adam's metric; None before training."""
    if record.get("adam") is None:
        return None
    blocks = {**record["blocks"], "gram": record["adam"]}
    return Probed.of({**record, "levels": [], "blocks": blocks})


def side_effects(probed: Probed) -> dict[tuple[str, str], Interval]:
    """(i, j) -> what a step along j's expected gradient gives task i, of what i's own step gives.

    Below 0 it takes back; pairs of which one expected gradient cannot be told from zero are left
    out.

    Args:
        probed: in the metric of the optimizer whose steps are meant.
    """
    blocks, tasks = probed.kept(), probed.tasks
    known = {k for k in range(len(tasks)) if (estimate.length(blocks, k).low or 0.0) > 0}

    def ratio(i: int, j: int) -> Interval:
        def of(kept: Any) -> float:
            products = estimate.expected_products(kept)
            return float(products[i, j] / products[i, i])

        return estimate.jackknife(blocks, of)

    pairs = permutations(range(len(tasks)), 2)
    return {(tasks[i], tasks[j]): ratio(i, j) for i, j in pairs if {i, j} <= known}
