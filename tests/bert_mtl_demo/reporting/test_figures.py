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
    assert [axes.get_title() for axes in figures.conflicts_by_epoch(totals(0)).axes] == [
        "conflicts"  # the sum alters nothing
    ]
    (line,) = figures.conflicts_by_epoch(totals(2)).axes[1].lines  # both directions in one
    assert line.get_xydata().tolist() == [[1, 25.0], [2, 25.0]]


def test_one_epoch_can_be_seen() -> None:
    row = {"kind": "dev", "epoch": 1, "scores": {"a": 0.5, "b": 0.7}, "mean": 0.6}
    one = [totals(2)[:2], [{**row, "leaderboard": 0.65}]]
    for draw, rows in zip((figures.conflicts_by_epoch, figures.scores), one, strict=True):
        axes = draw(rows).axes[0]
        lines = [line for line in axes.lines if len(line.get_xdata()) == 1]
        assert lines
        assert all(line.get_marker() != "None" for line in lines)
        assert axes.get_xlim() == (0, 2)


def test_losses_stand_in_a_panel_each_on_their_own_scale() -> None:
    rows = [{"kind": "train", "step": n, "loss": {"a": 5 + 0.1 * n, "b": 0.0}} for n in (1, 2)]
    panels = figures.losses([*rows, {"kind": "dev"}]).axes
    assert [axes.get_title() for axes in panels] == ["a", "b"]
    low, high = panels[0].get_ylim()
    assert 5 < low < 5.1 < 5.2 < high < 5.3


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
