"""What surgery met and did, drawn: by epoch, and by pair of tasks (report A, Figure 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bert_mtl_demo.reporting.plots import new_panels, save
from bert_mtl_demo.study.outcomes import Outcomes, added
from bert_mtl_demo.study.published import Row
from bert_mtl_demo.study.style import MOST_LINES, Picture, chosen, height, labels, style_of
from bert_mtl_demo.tasks import TASKS


def draw_conflicts_by_epoch(outcomes: Outcomes, place: Path) -> Picture | None:
    """Conflicts and alterations of every two tasks by epoch, of rows whose gradients met."""
    rows = outcomes.selected(outcomes.surgical(), MOST_LINES)
    if not rows:
        return None
    pairs = _unordered(outcomes, rows)
    epochs = sorted({pair.epoch for row in rows for pair in outcomes.pairs(row)})
    figure, panels = new_panels(2 * len(pairs), len(pairs), (4.2, 3.0))
    for n, axes in enumerate(panels):
        what, pair = ("conflicts", "altered")[n // len(pairs)], pairs[n % len(pairs)]
        for number, row in enumerate(rows):
            share = _share_by_epoch(outcomes, row, pair, what)
            axes.plot(*_columns(share), **style_of(number), markersize=5, label=row.name)
        axes.axhline(50, color="grey", linewidth=0.8, linestyle=":")
        title = f"{what}: {pair[0]} and {pair[1]}"
        axes.set(title=title, xlabel="epoch", ylabel="% of possible", ylim=(-3, 103))
        axes.set_xticks(epochs)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    caption = (
        "Conflicting and altered gradients by epoch and by pair of tasks, all seeds together. The "
        "dotted line is what cosines that are nothing but noise would give. " + chosen(outcomes)
    )
    return Picture(save(figure, place / "conflicts_by_epoch.png"), caption)


def draw_conflicts_by_pair(outcomes: Outcomes, place: Path) -> Picture | None:
    """Conflicts and alterations of every row and ordered pair, as two shaded tables."""
    rows = outcomes.surgical()
    if not rows:
        return None
    pairs = sorted({(p.i, p.j) for row in rows for p in outcomes.pairs(row)}, key=_task_order)
    figure, panels = new_panels(2, size=(2.4 + 0.7 * len(pairs), height(rows) + 0.4))
    for axes, what in zip(panels, ("conflicts", "altered"), strict=True):
        shares = [[_share(outcomes, row, pair, what) for pair in pairs] for row in rows]
        axes.grid(False)
        colors = "PuOr" if what == "conflicts" else "Blues"  # PuOr is white at a coin's 50%
        axes.imshow(shares, cmap=colors, vmin=0, vmax=100, aspect="auto")
        axes.set_facecolor("0.85")  # where two tasks never met
        for y, row_shares in enumerate(shares):
            for x, share in enumerate(row_shares):
                if math.isfinite(share):
                    dark = abs(share - 50) > 35 if what == "conflicts" else share > 60
                    color = "white" if dark else "black"
                    axes.text(x, y, f"{share:.1f}", ha="center", va="center", color=color)
        axes.set_xticks(range(len(pairs)), [f"{i} <- {j}" for i, j in pairs], rotation=30)
        axes.set_yticks(range(len(rows)), labels(rows) if axes is panels[0] else [""] * len(rows))
        axes.set(title=f"{what}, % of possible")
    caption = (
        "Conflicting and altered gradients, all epochs and seeds together; `i <- j` reads: "
        "gradient i, altered because of j. White on the left is the half that pure "
        "noise would give; grey pairs never met."
    )
    return Picture(save(figure, place / "conflicts_by_pair.png"), caption)


def _unordered(outcomes: Outcomes, rows: Sequence[Row]) -> list[tuple[str, str]]:
    pairs = {tuple(sorted((p.i, p.j), key=_place)) for r in rows for p in outcomes.pairs(r)}
    return [(i, j) for i, j in sorted(pairs, key=_task_order)]


def _share_by_epoch(
    outcomes: Outcomes, row: Row, pair: tuple[str, str], what: str
) -> list[tuple[int, float]]:
    """Epoch and percentage of both orders of a pair."""
    found = [p for p in outcomes.pairs(row) if {p.i, p.j} == set(pair) and p.possible]
    epochs = sorted({p.epoch for p in found})
    sums = [(epoch, added([p for p in found if p.epoch == epoch])) for epoch in epochs]
    return [(epoch, 100 * getattr(s, what) / s.possible) for epoch, s in sums if s]


def _share(outcomes: Outcomes, row: Row, pair: tuple[str, str], what: str) -> float:
    found = added([p for p in outcomes.pairs(row) if (p.i, p.j) == pair])
    return 100.0 * getattr(found, what) / found.possible if found and found.possible else math.nan


def _place(task: str) -> int:
    return list(TASKS).index(task) if task in TASKS else len(TASKS)


def _task_order(pair: Sequence[str]) -> list[int]:
    return [_place(task) for task in pair]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
