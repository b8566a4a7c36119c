"""A study's page and figures from made-up results: every number, and nothing that must not be."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bert_mtl_demo.errors import CheckpointError, ConfigError
from bert_mtl_demo.reporting import plots
from bert_mtl_demo.study import figures
from bert_mtl_demo.study.figures import draw_figures
from bert_mtl_demo.study.outcomes import Outcomes
from bert_mtl_demo.study.page import write_page
from bert_mtl_demo.study.published import Paper, Row
from bert_mtl_demo.study.results import Result, merged, read_result, write_result

SECRET = "a sentence nobody may pass on"
BUDGET = {"command": "python -m bert_mtl_demo.study demo", "data": "sample", "epochs": "at most 2"}
BOTH = (("sst", "para"), ("para", "sst"))

# naive differs from nothing, vaccine by the same in every seed, noisy by chance.
SCORES = {
    "naive": {0: 0.500, 1: 0.520},
    "vaccine": {0: 0.550, 1: 0.572},
    "noisy": {0: 0.490, 1: 0.532},
}


def result(seed: int, sst: float, altered: int = 0, **changes: Any) -> dict[str, Any]:
    """The content of one result.json."""
    scores = {"sst": sst, "para": 0.75, "sts": 0.3}
    mean, leaderboard = (sst + 1.05) / 3, (sst + 0.75 + 0.65) / 3
    mistake = {"row": 417, "texts": [SECRET], "true": "bad", "found": "good", "error": 3.21}
    pair = {"epoch": 1, "possible": 1000, "conflicts": 507, "altered": altered, "mean": 0.01}
    values = {
        "scores": scores,
        "mean": mean,
        "leaderboard": leaderboard,
        "best_epoch": 2,
        "epochs": [
            {"epoch": e, "step": 9 * e, "scores": scores, "mean": mean, "leaderboard": leaderboard}
            for e in (1, 2)
        ],
        "losses": [
            {"step": step, "epoch": 1 + step // 10, "loss": dict.fromkeys(scores, 1 / step)}
            for step in (3, 6, 9, 12, 15, 18)
        ],
        "conflicts": {
            "steps": 1000,
            "pairs": [{**pair, "i": i, "j": j} for i, j in BOTH],
            "change": 0.125,
        },
        "seconds_per_epoch": 61.5,
        "data_share": 0.031,
        "peak_memory": 123 * 2**20,
        "trained_parameters": 22713217,
        "evaluation": {
            "sst": {"score": sst, "confusion": [[4, 1]] * 5, "mistakes": [mistake]},
            "para": {"score": 0.75, "confusion": [[3, 1], [1, 3]], "mistakes": []},
            "sts": {"score": 0.3, "truth": [1.0, 4.0], "found": [2.0, 3.0], "mistakes": []},
        },
        "settings": {"epochs": 2, "method": "gradvac", "seed": seed},
        "versions": {"torch": "2.99"},
        "device": "abacus",
    }
    return {**values, **changes}


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without figures, but where the test is about them: they take seconds."""
    if "figures" not in request.node.name:
        monkeypatch.setattr("bert_mtl_demo.study.page.draw_figures", lambda outcomes, place: [])


def study(**kwargs: Any) -> Outcomes:
    """Three rows, two seeds."""
    rows = [
        Row(
            "demo",
            name,
            "Table 1",
            {"sst": 0.498, "mean": 0.542},
            {"epochs": 10, "method": "gradvac"},
            f"The text leaves {name} open.",
        )
        for name in SCORES
    ]
    results = {
        name: {
            seed: Result.from_dict(result(seed, sst, altered=20 if name == "vaccine" else 0))
            for seed, sst in seeds.items()
        }
        for name, seeds in SCORES.items()
    }
    return dataclasses.replace(Outcomes("demo", rows, results), **kwargs)


def write(place: Path, outcomes: Outcomes, texts: bool = False, **kwargs: Any) -> str:
    """The page's text."""
    test_scores = (("vaccine", {"sst": 0.505, "mean": 0.579}),)
    report = Paper(outcomes.report, "A title", tuple(outcomes.rows), "naive", test_scores)
    page = write_page(place, report, outcomes.rows, outcomes.results, BUDGET, texts, **kwargs)
    assert page == place / f"{outcomes.report}.md"
    return page.read_text(encoding="utf-8")


def row_of(text: str, name: str, section: str) -> list[str]:
    """The cells of a row of the first table of a section."""
    lines = text.split(f"## {section}")[1].splitlines()
    line = next(line for line in lines if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_number_stands_on_the_page(tmp_path: Path) -> None:
    text = write(tmp_path, study(), notes=["Mind the gap."])
    # t(1) = 12.706: .51 +- 12.706 * .01; the mean of the three, a third of that
    assert row_of(text, "naive", "Scores")[:9] == [
        *("naive", "2", ".498", ".510 ± .127", ".750 ± .000", ".300 ± .000"),
        *(".542", ".520 ± .042", ".637 ± .042"),
    ]
    conflicts = "2,028 of 4,000 (50.7%)"
    assert row_of(text, "naive", "Scores")[9:] == [
        conflicts,
        "0 of 4,000 (0.0%)",
        "+0.0100",
        "12.5%",
    ]
    assert row_of(text, "vaccine", "Scores")[9:11] == [conflicts, "80 of 4,000 (2.0%)"]
    assert row_of(text, "naive", "Cost") == [
        *("naive", "3", "61.5 ± 0.0 s", "123 MiB", "3.1 ± 0.0%", "22,713,217", "2, 2"),
    ]
    assert row_of(text, "vaccine", "Published only") == ["vaccine", ".505", ".579"]
    for said in ("at most 2", "Mind the gap.", "abacus", "torch 2.99", BUDGET["command"]):
        assert said in text.split("## Scores")[0]  # the budget comes first
    assert "The text leaves noisy open." in text
    assert "417" in text
    assert (
        "Best by `mean`: vaccine; against the next, noisy: +.017 ± .042, inside the noise." in text
    )


def test_noise_is_called_noise(tmp_path: Path) -> None:
    text = write(tmp_path, study())
    section = "Against the controls"
    assert row_of(text, "vaccine", section)[2] == "**+.051 ± .013** differs, also after Holm"
    assert row_of(text, "noisy", section)[2] == "+.001 ± .140 inside the noise"
    assert row_of(text, "noisy", section)[4] == "identical in every seed"
    assert "\n| naive |" not in text.split(section)[1].split("## ")[0]


def test_another_budget_is_said_and_the_published_one_too(tmp_path: Path) -> None:
    text = write(tmp_path, study())
    assert text.split("## Budget\n\n")[1].startswith("**This is not the published budget**")
    assert "- here: `epochs = 2`" in text
    assert "`epochs = 10`" in text
    same = [
        dataclasses.replace(row, settings={**row.settings, "epochs": "2"}) for row in study().rows
    ]
    published = write(tmp_path, study(rows=same))
    assert "not the published" not in published
    assert "- here:" not in published


@pytest.mark.parametrize("texts", [True, False])
def test_sentences_appear_only_when_they_may(tmp_path: Path, texts: bool) -> None:
    assert (SECRET in write(tmp_path, study(), texts)) == texts
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(SECRET.encode() in content for content in written) == texts


def test_rows_without_results_are_listed_with_their_reason(tmp_path: Path) -> None:
    results = {"naive": study().results["naive"], "noisy": {}}
    text = write(tmp_path, study(results=results), failures={"vaccine": ["loss | is nan"]})
    assert "- vaccine: loss \\| is nan\n- noisy: not run" in text
    assert row_of(text, "vaccine", "Scores")[:4] == ["vaccine", "0", ".498", "failed"]
    assert row_of(text, "noisy", "Scores")[3] == "not run"
    assert "Against" not in text


def test_a_failed_seed_is_listed_beside_the_others(tmp_path: Path) -> None:
    results = {**study().results, "noisy": {1: study().results["noisy"][1]}}
    text = write(tmp_path, study(results=results), failures={"noisy": ["killed"], "naive": []})
    assert "- noisy, some seeds: killed" in text
    assert row_of(text, "noisy", "Scores")[1:4] == ["1", ".498", ".532"]
    assert row_of(text, "noisy", "Against")[2] == "+.012 one seed: cannot tell"


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    results = {name: {0: seeds[0]} for name, seeds in study().results.items()}
    text = write(tmp_path, study(results=results))
    assert row_of(text, "naive", "Scores")[3] == ".500"
    assert row_of(text, "vaccine", "Against")[2] == "+.050 one seed: cannot tell"
    assert row_of(text, "vaccine", "Against")[4] == "identical in the one seed"
    assert row_of(text, "naive", "Cost")[2] == "61.5 s"


def test_a_lead_inside_the_noise_is_called_that(tmp_path: Path) -> None:
    results = {name: study().results[name] for name in ("naive", "noisy")}
    text = write(tmp_path, study(results=results))
    assert "Best by `mean`: noisy; against the next, naive: .000 ± .047, inside the noise." in text
    alone = study(results={"naive": study().results["naive"]})
    assert "Best by `mean`: naive.\n" in write(tmp_path, alone)


def test_where_the_data_lay_is_not_on_the_page(tmp_path: Path) -> None:
    settings = {"epochs": 2, "method": "gradvac", "data": "/home/somebody/data"}
    found = Result.from_dict(result(0, 0.5, settings=settings))
    text = write(tmp_path, study(results={"naive": {0: found}}))
    assert "- here: `epochs = 2`\n" in text
    assert "somebody" not in text


def test_tasks_that_never_met_have_no_counts(tmp_path: Path) -> None:
    pair = {"epoch": 1, "possible": 0, "conflicts": 0, "altered": 0, "mean": None}
    conflicts = {"steps": 9, "pairs": [{**pair, "i": "sst", "j": "para"}], "change": None}
    found = Result.from_dict(result(0, 0.5, conflicts=conflicts))
    text = write(tmp_path, study(results={"naive": {0: found}}))
    assert row_of(text, "naive", "Scores")[-4:] == ["–"] * 4  # noqa: RUF001


def test_no_result_at_all(tmp_path: Path) -> None:
    text = write(tmp_path, study(results={}))
    assert text.count(": not run") == 3
    assert "![" not in text
    assert "This is not the published budget" in text


def test_without_the_reports_baseline_the_first_row_is_it(tmp_path: Path) -> None:
    text = write(
        tmp_path, study(rows=study().rows[1:], results={"noisy": study().results["noisy"]})
    )
    assert "There is nothing to compare with." in text
    both = {name: seeds for name, seeds in study().results.items() if name != "naive"}
    text = write(tmp_path, study(rows=study().rows[1:], results=both))
    assert row_of(text, "noisy", "Against")[1] == "vaccine"


def test_a_row_is_compared_with_its_control(tmp_path: Path) -> None:
    rows = list(study().rows)
    rows[2] = dataclasses.replace(rows[2], control="vaccine")
    text = write(tmp_path, study(rows=rows))
    assert row_of(text, "vaccine", "Against")[1:3] == [
        *("naive", "**+.051 ± .013** differs, also after Holm"),
    ]
    # t(1) of -.060 and -.040; power: noncentral t with one degree of freedom
    assert row_of(text, "noisy", "Against")[1:4] == [
        *("vaccine", "-.050 ± .127 inside the noise", ".163"),
    ]
    alone = study(rows=[rows[0], rows[2]], results={"noisy": study().results["noisy"]})
    assert alone.control_of(rows[2]) is None  # and not the baseline, which differs in more


def test_rows_of_one_design_are_not_compared_but_named(tmp_path: Path) -> None:
    pair = frozenset(("naive", "noisy"))
    text = write(tmp_path, study(), coinciding=[pair])
    assert row_of(text, "noisy", "Against")[1:4] == [
        *("naive: the same design under this budget", "–", "–"),  # noqa: RUF001
    ]
    assert row_of(text, "vaccine", "Against")[2].endswith("also after Holm")


def test_the_majority_class_stands_below_the_scores(tmp_path: Path) -> None:
    row = row_of(write(tmp_path, study()), "*majority class of dev*", "Scores")
    assert row[2:6] == ["–", ".200", ".500", "–"]  # noqa: RUF001


def test_a_row_that_shares_its_runs_shows_their_scores_once(tmp_path: Path) -> None:
    results = {name: study().results[name] for name in ("naive", "vaccine")}
    shared = study(results=results, shared={"noisy": "vaccine"})
    text = write(tmp_path, shared, shared={"noisy": "vaccine"})
    assert "- noisy: the same settings, and so the same runs, as vaccine" in text
    assert row_of(text, "noisy", "Scores")[3] == row_of(text, "vaccine", "Scores")[3]
    assert [row.name for row in shared.surgical()] == ["naive", "vaccine"]


def test_a_row_trained_task_by_task(tmp_path: Path) -> None:
    parts = [
        Result.from_dict(
            {
                **result(0, 0.5, conflicts=None),
                "scores": {task: score},
                "losses": [{"step": 9, "epoch": 1, "loss": {task: 1.0}}],
                "settings": {"epochs": 10, "method": "gradvac", "tasks": [task]},
            }
        )
        for task, score in {"sst": 0.5, "para": 0.75, "sts": 0.3}.items()
    ]
    whole = merged(parts)
    assert whole.value("mean") == pytest.approx(1.55 / 3)
    assert whole.value("leaderboard") == pytest.approx(1.9 / 3)
    assert whole.seconds_per_epoch == pytest.approx(3 * 61.5)
    assert whole.data_share == pytest.approx(0.031)
    assert whole.peak_memory == parts[0].peak_memory
    assert (whole.conflicts, whole.best_epoch) == (None, None)
    rows = [dataclasses.replace(study().rows[0], separate=True), *study().rows[1:]]
    text = write(tmp_path, study(rows=rows, results={**study().results, "naive": {0: whole}}))
    assert row_of(text, "naive", "Scores")[-4:] == ["–"] * 4  # noqa: RUF001
    assert row_of(text, "naive", "Cost")[1] == "3, one by one"
    assert "every task was trained by itself" in text
    assert "`tasks = " not in text


def test_a_row_of_two_tasks_has_no_overall_score(tmp_path: Path) -> None:
    two = Result.from_dict({**result(0, 0.5), "scores": {"sst": 0.5, "para": 0.75}})
    assert math.isnan(two.value("mean"))
    text = write(tmp_path, study(results={**study().results, "noisy": {0: two}}))
    assert row_of(text, "noisy", "Scores")[3:9] == [".500", ".750", "–", ".542", "–", "–"]  # noqa: RUF001


def test_a_score_that_does_not_exist_is_no_zero(tmp_path: Path) -> None:
    constant = result(0, 0.5)
    constant["scores"] = {**constant["scores"], "sts": None}
    constant["mean"] = constant["leaderboard"] = None
    seeds = {0: Result.from_dict(constant), 1: study().results["noisy"][1]}
    text = write(tmp_path, study(results={**study().results, "noisy": seeds}))
    assert row_of(text, "noisy", "Scores")[5] == ".300 (1 of 2 seeds)"
    assert json.loads(json.dumps(seeds[0].to_dict(), allow_nan=False))["scores"]["sts"] is None


def check_picture(path: Path) -> None:
    """A PNG with more than a frame on it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10


def test_figures_are_on_the_page_and_have_something_on_them(tmp_path: Path) -> None:
    text = write(tmp_path, study(report="sbert_simcse"))
    names = {path.stem for path in (tmp_path / "sbert_simcse").iterdir()}
    assert names == {
        *("scores", "differences", "losses", "epochs", "conflicts_by_epoch"),
        *("conflicts_by_pair", "confusions", "similarities"),
    }
    for name in names:
        assert f"![{name}](sbert_simcse/{name}.png)" in text
        check_picture(tmp_path / "sbert_simcse" / f"{name}.png")


def test_figures_of_times_belong_to_the_report_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = figures.times(study())
    assert drawing is not None
    check_picture(plots.save(drawing[0], tmp_path / "times.png"))
    monkeypatch.setattr(plots, "save", lambda figure, path: path)
    names = ("conflicts_by_epoch", "conflicts_by_pair", "times", "confusions")
    drawn = {name: (lambda outcomes, name=name: (name, "It is one.")) for name in names}
    monkeypatch.setattr(figures, "FIGURES", {"scores": lambda outcomes: None, **drawn})
    pictures = {r: draw_figures(study(report=r), tmp_path) for r in ("demo", "bert_mastery")}
    assert [p.path.stem for p in pictures["demo"]] == ["conflicts_by_epoch", "conflicts_by_pair"]
    assert pictures["bert_mastery"][-1].path.stem == "times"


def test_figures_of_alterations_without_a_meaning_are_blank(tmp_path: Path) -> None:
    values = result(0, 0.5)
    values["conflicts"]["pairs"] = [{**p, "altered": None} for p in values["conflicts"]["pairs"]]
    outcomes = study(results={**study().results, "naive": {0: Result.from_dict(values)}})
    assert row_of(write(tmp_path, outcomes), "naive", "Scores")[9:11] == [
        *("1,014 of 2,000 (50.7%)", "–"),  # noqa: RUF001
    ]
    by_epoch, _ = figures.conflicts_by_epoch(outcomes) or pytest.fail("no figure")
    points = {line.get_label(): len(line.get_xdata()) for line in by_epoch.axes[1].lines}
    assert points["naive"] == 0 < points["vaccine"]
    by_pair, caption = figures.conflicts_by_pair(outcomes) or pytest.fail("no figure")
    texts = [[text.get_text() for text in axes.texts[:2]] for axes in by_pair.axes]
    assert texts == [["50.7", "50.7"], ["", ""]]
    assert "alter no gradient because of another" in caption


def test_figures_of_losses_alone(tmp_path: Path) -> None:
    """Without conflicts, evaluation or epochs there is less to draw, but no error."""
    bare = Result({"sst": 0.5}, 0.5, 0.5)
    outcomes = study(report="sbert_simcse", results={"naive": {0: bare}})
    assert [picture.path.stem for picture in draw_figures(outcomes, tmp_path)] == ["scores"]


def test_lines_show_the_baseline_and_the_best() -> None:
    outcomes = study()
    assert [row.name for row in outcomes.selected(outcomes.rows, 2)] == ["naive", "vaccine"]
    assert [row.name for row in outcomes.selected(outcomes.rows, 1)] == ["naive"]


def test_unknown_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown row 'vacine': did you mean 'vaccine'"):
        study(shared={"vacine": "naive"})
    with pytest.raises(ConfigError, match="no rows"):
        study(rows=[])


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    found = Result.from_dict(result(3, 0.5))
    assert read_result(write_result(tmp_path / "result.json", found)) == found
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    bare = Result.from_dict({"scores": {"sst": 0.5}, "mean": 0.5, "leaderboard": 0.5})
    assert (bare.conflicts, bare.evaluation, bare.epochs) == (None, {}, ())


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"scores": 3}'])
def test_a_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(CheckpointError, match="run the row again"):
        read_result(tmp_path / "result.json")
