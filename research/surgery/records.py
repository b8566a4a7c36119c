"""Records of the factorial's runs: what their methods kept of every step, in plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bert_mtl_demo.study.collected import anonymous
from bert_mtl_demo.study.results import Result
from research.conflicts.records import record_of
from research.surgery.controls import cosines_of, noise_weights, norms_of


def arm_record(run: Path) -> dict[str, Any]:
    """The record of an arm's finished run.

    Returns:
        scores, sizes and change: as `conflicts.records.record_of` gives them, of the last epoch;
        evaluation: by task, score, labels and answers; weights and the rest: see `summary`.
    """
    record = record_of(run)
    grams, weights = kept_steps(run)
    return {
        "scores": record["scores"],
        "sizes": record["sizes"],
        "change": record["epochs"][-1]["change"],
        "evaluation": answers_of(run),
        **summary(grams, weights),
    }


def answers_of(run: Path) -> dict[str, Any]:
    """The answers of a run's weights to dev, by task; no sentences, five decimals."""
    from bert_mtl_demo.evaluate import evaluate

    evaluate(run, output=run.parent)
    content = json.loads((run.parent / "evaluation.json").read_text(encoding="utf-8"))
    scores: dict[str, Any] = {"scores": {}, "mean": None, "leaderboard": None}
    result = anonymous(Result.from_dict({**scores, "evaluation": content["tasks"]})).to_dict()
    evaluation: dict[str, Any] = result["evaluation"]
    return evaluation


def kept_steps(run: Path) -> tuple[Tensor, Tensor]:
    """What `Recorded` kept in the last checkpoint: Gram matrices [T, K, K] and weights [T, K]."""
    from bert_mtl_demo.training.checkpoint import RunDirectory, load_state

    groups = load_state(RunDirectory(run).last)["optimizer"]["param_groups"]
    state = next(group["surgery"] for group in groups if "surgery" in group)
    steps = int(state["kept"][0])
    gram, weights = (
        torch.as_tensor(state[name], dtype=torch.float64) for name in ("kept_gram", "kept_weights")
    )
    return gram[0, :steps], weights[0, :steps]


def summary(grams: Tensor, weights: Tensor) -> dict[str, Any]:
    """Means over steps, in the order of the tasks.

    Args:
        grams: [T, K, K], of the steps.
        weights: [T, K], that the update was summed with.

    Returns:
        weights: mean, [K]; noise: mean weights that PCGrad would have given cosines of the same
        spread around 0, [K] (`controls.noise_weights`); fixed: the part of the squared change of
        the update that the mean weights alone make, None without any change; cosine, spread:
        [K][K], mean and standard deviation over steps; norms: mean, [K].

    >>> grams = torch.eye(2, dtype=torch.float64).expand(4, 2, 2)
    >>> summary(grams, torch.ones(4, 2, dtype=torch.float64))["weights"]
    [1.0, 1.0]
    """
    cosines, norms = cosines_of(grams), norms_of(grams)
    spread = cosines.std(0)
    moved, mean = weights - 1, weights.mean(0)
    whole, fixed = _squared(moved, grams), _squared((mean - 1).expand_as(moved), grams)
    return {
        "weights": mean.tolist(),
        "noise": noise_weights(spread.expand_as(cosines), norms).mean(0).tolist(),
        "fixed": fixed / whole if whole > 0 else None,
        "cosine": cosines.mean(0).tolist(),
        "spread": spread.tolist(),
        "norms": norms.mean(0).tolist(),
    }


def _squared(weights: Tensor, grams: Tensor) -> float:
    """Sum over steps of |sum_k weights[k] g_k|^2."""
    return float(torch.einsum("ti,tij,tj->", weights, grams, weights))


def steps_of(run: Path, epochs: int) -> dict[str, Any]:
    """Every step of the long run, for the count law's replays; rounded to a few digits.

    Returns:
        epochs; norms [T][K]; cosines [T][pairs i < j].
    """
    grams, _ = kept_steps(run)
    tasks = grams.shape[-1]
    i, j = torch.triu_indices(tasks, tasks, offset=1).unbind()
    cosines = cosines_of(grams)[:, i, j]
    return {
        "epochs": epochs,
        "norms": [[float(f"{norm:.4g}") for norm in row] for row in norms_of(grams).tolist()],
        "cosines": [[round(cosine, 6) for cosine in row] for row in cosines.tolist()],
    }


def by_task(values: list[float], scores: Mapping[str, Any]) -> dict[str, float]:
    """Values by the tasks' names, which the scores begin with.

    >>> by_task([1.0, 2.0], {"sst": 0.5, "sts": 0.3, "mean": 0.4})
    {'sst': 1.0, 'sts': 2.0}
    """
    return dict(zip(scores, values, strict=False))
