"""The study's pictures: each function takes what pieces hold, and writes one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bert_mtl_demo.study.intervals import Interval, interval
from research.conflicts import estimate
from research.conflicts.estimate import Probed

COLORS = {"always": "tab:blue", "on_alter": "tab:red"}
MODEL_FREE = (("mean 0.05", "--"), ("mean 0", ":"))


def alterations(
    simulated: Mapping[str, Any], runs: Mapping[str, Any], epochs: int, path: Path
) -> Path:
    """Alterations per epoch under both rules: without a model at two sizes, and of real gradients.

    Args:
        simulated: the simulation pieces by name.
        runs: arm -> seed -> record.
        epochs: of the runs.
        path: the PNG.
    """
    figure, (left, right) = _panels(2, 1, width=5)
    shown = [(left, f"published size, {mean}", style) for mean, style in MODEL_FREE]
    shown.append((right, "own size, as measured", "--"))
    for axes, title, style in shown:
        found = simulated[title]
        ticks = np.arange(1, found["epochs"] + 1)
        for rule, color in COLORS.items():
            share = 100 * np.array(found[rule]) / (found["steps"] * found["pairs"])
            label = f"{rule}, no model, {title.split(', ')[1]}"
            axes.plot(ticks, share, style, color=color, marker=".", label=label)
        axes.set(xlabel="epoch", ylabel="% of ordered pairs altered")
        axes.set_xticks(ticks)
    for rule, color in COLORS.items():
        for n, record in enumerate(runs[f"gradvac, {rule}"].values()):
            share = [altered_share(epoch["pairs"]) for epoch in record["epochs"]]
            own = None if n else f"{rule}, trained runs"
            right.plot(range(1, epochs + 1), share, "-o", color=color, alpha=0.6, label=own)
    left.set(title="no model, 18,000 steps an epoch", yscale="log")
    right.set(title="this study's runs", ylim=(0, None))
    for axes in (left, right):
        axes.legend(fontsize=7)
    return _save(figure, path)


def altered_over_time(runs: Mapping[str, Any], path: Path) -> Path:
    """Share of altered pairs, window by window, under both rules."""
    figure, (axes,) = _panels(1, 1, width=6)
    for rule, color in COLORS.items():
        for n, record in enumerate(runs[f"gradvac, {rule}"].values()):
            steps = [window["step"] for window in record["windows"]]
            share = [altered_share(window["pairs"]) for window in record["windows"]]
            axes.plot(steps, share, "-", color=color, alpha=0.7, label=None if n else rule)
    axes.axhline(50, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="step", ylabel="% of ordered pairs altered", ylim=(0, 100))
    axes.legend()
    return _save(figure, path)


def altered_share(pairs: Sequence[Mapping[str, Any]]) -> float:
    """Percent of the possible ordered pairs that were altered; NaN if none was possible.

    >>> altered_share([{"possible": 4, "altered": 1}, {"possible": 4, "altered": 1}])
    25.0
    """
    possible = sum(pair["possible"] for pair in pairs)
    return 100 * sum(pair["altered"] for pair in pairs) / possible if possible else float("nan")


def layer_maps(layers: Mapping[str, Any], path: Path) -> Path:
    """Mean cosine by layer and time, one map per pair of tasks."""
    pairs, names = layers["pairs"], [_short(name) for name in layers["segments"]]
    values = {
        pair: np.array([[np.nan if x is None else x for x in row] for row in rows])
        for pair, rows in pairs.items()
    }
    limit = max(float(np.nanmax(np.abs(found))) for found in values.values()) or 1.0
    figure = Figure(figsize=(2.2 + 3.6 * len(pairs), 1.6 + 0.24 * len(names)), layout="constrained")
    columns = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
    for axes, (pair, found) in zip(columns, values.items(), strict=True):
        image = axes.imshow(found, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit)
        axes.set(title=pair, xlabel="step")
        shown = range(0, len(layers["steps"]), max(1, len(layers["steps"]) // 6))
        axes.set_xticks(shown, [str(layers["steps"][n]) for n in shown])
        axes.set_yticks(range(len(names)), names, fontsize=7)
    figure.colorbar(image, ax=columns, label="mean cosine")
    return _save(figure, path)


def cosine_by_batch(probes: Mapping[str, Probed], path: Path) -> Path:
    """Cosine against effective batch size, with the noise floors: a row per stage, a column per
    pair."""
    first = next(iter(probes.values()))
    pairs = list(combinations(range(len(first.tasks)), 2))
    figure, panels = _panels(len(pairs), len(probes), width=4)
    for (stage, probed), row in zip(probes.items(), _rows(panels, len(pairs)), strict=True):
        sizes = list(probed.levels)
        for axes, (i, j) in zip(row, pairs, strict=True):
            series = [estimate.cosine_at(probed, size, i, j) for size in sizes]
            _band(axes, sizes, series, "tab:red", f"{probed.tasks[i]} and {probed.tasks[j]}")
            for k, color in ((i, "tab:blue"), (j, "tab:green")):
                own = [estimate.cosine_at(probed, size, k, k) for size in sizes]
                _band(axes, sizes, own, color, f"two halves of {probed.tasks[k]}", style="--")
            found = estimate.expected(probed.kept(), i, j).cosine
            if found is not None and found.low is not None and found.high is not None:
                axes.axhspan(found.low, found.high, color="tab:red", alpha=0.12, lw=0)
                axes.axhline(
                    found.mean, color="tab:red", lw=0.8, ls=":", label="expected gradients"
                )
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set(title=stage, ylim=(-1.02, 1.02))
            _batch_axis(axes, sizes)
            axes.legend(fontsize=6, loc="lower right")
    return _save(figure, path)


def expected_by_layer(probes: Mapping[str, Probed], path: Path) -> Path:
    """The expected gradients' cosine in every layer, a panel per pair."""
    first = next(iter(probes.values()))
    pairs = list(combinations(range(len(first.tasks)), 2))
    figure, panels = _panels(len(pairs), 1, width=4.4)
    for axes, (i, j) in zip(panels, pairs, strict=True):
        for n, (stage, probed) in enumerate(probes.items()):
            places = np.arange(len(probed.segments)) + 0.2 * (n - 1)
            found = [estimate.expected(probed.kept(name), i, j).cosine for name in probed.segments]
            known = [(p, c) for p, c in zip(places, found, strict=True) if c is not None]
            middle, half = [c.mean for _, c in known], [c.half or 0.0 for _, c in known]
            axes.errorbar([p for p, _ in known], middle, half, fmt="o", capsize=3, label=stage)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(first.segments)), first.segments, rotation=40, ha="right")
        axes.set(title=f"{first.tasks[i]}, {first.tasks[j]}", ylabel="cosine", ylim=(-1.1, 1.1))
        axes.set_xlim(-0.5, len(first.segments) - 0.5)
    panels[0].legend(fontsize=7)
    return _save(figure, path)


def change_by_batch(probes: Mapping[str, Probed], path: Path) -> Path:
    """How far surgery moves the update, against effective batch size."""
    figure, (axes,) = _panels(1, 1, width=6)
    for n, (stage, probed) in enumerate(probes.items()):
        sizes = list(probed.levels)
        for method, style in (("pcgrad", "-"), ("gradvac", "--")):
            series = [interval(changes(probed.level(batch), method)) for batch in sizes]
            _band(axes, sizes, series, f"C{n}", f"{method}, {stage}", style=style)
        _batch_axis(axes, sizes)
    axes.set(ylabel="|update - sum| / |sum|")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)
    return _save(figure, path)


def changes(grams: Any, method: str) -> list[float]:
    """The change in each replicate; GradVac's targets stand where they settle at this size.

    None for GradVac with few replicates, whose mean is no target but very nearly each of them.
    """
    if method == "gradvac" and len(grams) < estimate.FEW:
        return []
    target = estimate.usual_cosines(grams) if method == "gradvac" else None
    return [float(x) for x in estimate.change(estimate.batches_of(grams), target)]


def _band(
    axes: Any,
    x: Sequence[int],
    series: Sequence[Interval],
    color: str,
    label: str,
    style: str = "-",
) -> None:
    axes.plot(x, [found.mean for found in series], style, marker=".", color=color, label=label)
    # Two or three replicates have an interval, but one that hides everything else.
    many = [found if found.n > 3 else None for found in series]
    low = [np.nan if found is None or found.low is None else found.low for found in many]
    high = [np.nan if found is None or found.high is None else found.high for found in many]
    axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)


def _batch_axis(axes: Any, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("examples of a task")


def _short(name: str) -> str:
    """The end of a segment's name, which tells it apart.

    >>> _short("encoder.encoder.layer.3"), _short("encoder.embeddings.LayerNorm")
    ('layer 4', 'embeddings LayerNorm')
    """
    *_, before, last = ("", *name.split("."))
    if before == "layer" and last.isdigit():
        return f"layer {int(last) + 1}"
    return f"{before} {last}" if last == "LayerNorm" else last


def _rows(panels: list[Any], width: int) -> list[list[Any]]:
    return [panels[start : start + width] for start in range(0, len(panels), width)]


def _panels(columns: int, rows: int, width: float) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width * columns, 3.4 * rows), layout="constrained")
    found = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in found:
        axes.grid(alpha=0.3)
    return figure, found


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=100)
    return path
