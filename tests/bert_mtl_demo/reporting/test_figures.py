"""A run's pictures: what is drawn, and what is left out."""

from __future__ import annotations

from matplotlib.figure import Figure

from bert_mtl_demo.reporting import figures, plots
from bert_mtl_demo.reporting.tables import cell, table


def totals(altered: int | None) -> list[dict[str, object]]:
    counts = {"possible": 8, "conflicts": 4, "altered": altered, "mean": 0.1}
    return [{"epoch": e, "i": i, "j": j, **counts} for e in (1, 2) for i, j in ("ab", "ba")]


def test_a_rate_has_a_panel_where_it_has_a_meaning() -> None:
    titles = {
        altered: [axes.get_title() for axes in figures.conflicts_by_epoch(totals(altered)).axes]
        for altered in (2, None)
    }
    assert titles == {2: ["conflicts", "altered"], None: ["conflicts"]}
    bars = figures.conflicts_by_epoch(totals(2)).axes[1].patches
    assert [bar.get_height() for bar in bars] == [25.0] * 4


def test_losses_stand_in_a_panel_each_from_zero() -> None:
    rows = [{"kind": "train", "step": n, "loss": {"a": 1 / n, "b": 0.0}} for n in (1, 2)]
    panels = figures.losses([*rows, {"kind": "dev"}]).axes
    assert [axes.get_title() for axes in panels] == ["a", "b"]
    assert [axes.get_ylim() for axes in panels] == [(0, 1.1), (0, 1)]


def test_a_line_leaves_out_what_has_no_value() -> None:
    axes = Figure().subplots()
    plots.line(axes, [1, 2, 3], [0.5, None, 0.7])
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.5], [3, 0.7]]


def test_a_legend_names_every_label_once() -> None:
    figure, panels = plots.new_panels(["a", "b", "c"], columns=2)
    for axes in panels:
        plots.line(axes, [1], [1], label="one")
    plots.line(panels[2], [1], [1], label="two")
    plots.legend(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]


def test_cells_of_a_shaded_table_can_be_read() -> None:
    axes = Figure().subplots()
    plots.shaded(axes, [[0.0, 1.0, None]], ["row"], ["a", "b", "c"], texts=[["0", "1", ""]])
    colors = {text.get_text(): text.get_color() for text in axes.texts}
    assert (colors["0"], colors["1"]) == ("black", "white")


def test_no_text_breaks_a_table() -> None:
    text = table(["a", ""], [[cell("x | y\n z"), 1], ["", 2]])
    assert [line.replace("\\|", "").count("|") for line in text.splitlines()] == [3] * 4
