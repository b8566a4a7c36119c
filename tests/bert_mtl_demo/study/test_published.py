"""The rows against what was published: names and numbers, twice transcribed.

`keys.tsv` has the keys of every published row's runs as they were when the first results were
published, without a budget and under a small one.

`published.tsv` was typed from the reports, apart from the modules under test. Where the summary of
the reports that the project was planned from is at hand, its tables are read as a third source.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from bert_mtl_demo.config import ALTERNATING, Config
from bert_mtl_demo.setting_types import Choice
from bert_mtl_demo.study.__main__ import main
from bert_mtl_demo.study.papers import PAPERS
from bert_mtl_demo.study.plan import Plan, key_of
from bert_mtl_demo.study.published import PINNED, SCORES, SURGERY, Paper, Row
from bert_mtl_demo.study.settings import StudySettings
from research.conflicts.arms import arms_of, configs_of

HERE = Path(__file__)
SUMMARY = HERE.parents[4] / "shared" / "study.md"
ROWS = [row for paper in PAPERS.values() for row in paper.rows]
PUBLISHED = [row for row in ROWS if not row.added]


def transcribed() -> dict[tuple[str, str], dict[str, float]]:
    with HERE.with_name("published.tsv").open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file, delimiter="\t")
        return {
            (line["report"], line["row"]): {s: float(line[s]) for s in SCORES if line[s]}
            for line in table
        }


def test_every_published_row_is_there_with_its_numbers():
    assert {(row.paper, row.name): dict(row.published) for row in PUBLISHED} == transcribed()
    assert not any(row.published for row in ROWS if row.added)


def test_the_list_has_one_line_per_row(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [tuple(line.split("\t")) for line in lines] == [(row.paper, row.name) for row in ROWS]
    assert [(row.paper, row.name) for row in PUBLISHED] == list(transcribed())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.paper}: {row.name}")
def test_overall_scores_are_the_means_of_their_row(row: Row):
    """A slip of a digit breaks the mean. The reports rounded, or averaged rounded scores."""
    given = row.published
    if "not the printed" in row.note:  # one row is published with a mean that is not its own
        assert row.name == "BERT: PCGrad"
        return
    if {"sst", "para", "sts"} <= set(given):
        parts = [given["sst"], given["para"], given["sts"]]
        if "mean" in given:
            assert math.isclose(sum(parts) / 3, given["mean"], abs_tol=6e-4), row.name
        if "leaderboard" in given:
            parts[2] = (parts[2] + 1) / 2
            assert math.isclose(sum(parts) / 3, given["leaderboard"], abs_tol=7e-4), row.name


# --- the summary


def section(name: str) -> str:
    text = SUMMARY.read_text(encoding="utf-8")
    return re.search(rf"^## [A-E]\. {name}\b.*?(?=^## |\Z)", text, re.M | re.S).group(0)


def numbers(cell: str) -> list[float]:
    return [float(word) for word in re.findall(r"(?<![\d.])\.\d{3,4}\b", cell)]


def table_of(name: str) -> list[tuple[float, ...]]:
    """The scores of each table line; a line of two settings (a / b, or a (b)) becomes two."""
    lines = [line for line in section(name).splitlines() if line.startswith("|")][2:]
    found = []
    for line in lines:
        cells = [numbers(cell) for cell in line.strip("|").split("|")[1:]]
        for place in range(max(len(cell) for cell in cells)):
            found.append(tuple(cell[place] for cell in cells if cell))
    return found


# Rows whose numbers stand in a report's text and not in a table.
TEXT = ("Section 6.4", "Section 3.5", "Section 4.1", "Section 5.1")


@pytest.mark.skipif(not SUMMARY.exists(), reason="the summary of the reports is not at hand")
@pytest.mark.parametrize("name", PAPERS)
def test_tables_agree_with_the_summary(name: str):
    ours = [
        tuple(row.published[score] for score in SCORES if score in row.published)
        for row in PAPERS[name].rows
        if row.table not in TEXT and not row.added
    ]
    assert ours == table_of(name)


@pytest.mark.skipif(not SUMMARY.exists(), reason="the summary of the reports is not at hand")
@pytest.mark.parametrize("name", PAPERS)
def test_numbers_outside_tables_stand_in_the_summary(name: str):
    known = set(numbers(section(name).replace("\n", " ")))
    paper = PAPERS[name]
    # Three single-task scores stand in the report's text only.
    only_in_the_report = {
        "single-task sst: CLS, regularised",
        "single-task para: BERT",
        "single-task para: siamese alone",
    }
    for row in paper.rows:
        if row.table in TEXT and row.name not in only_in_the_report:
            assert set(row.published.values()) <= known, row.name
    for row_name, scores in paper.test_scores:
        assert set(scores.values()) <= known, row_name


# --- rows as settings


def test_names_and_slugs_are_unique():
    for paper in PAPERS.values():
        assert len({row.name for row in paper.rows}) == len(paper.rows)
        assert len({row.slug for row in paper.rows}) == len(paper.rows)
        assert paper.row(paper.baseline)


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.paper}: {row.name}")
def test_a_row_is_a_valid_config_that_does_what_its_name_says(row: Row):
    config = row.config()
    name = row.name.lower()
    if config.tasks != ("cfimdb",):
        assert set(row.published) <= {*config.tasks, "mean", "leaderboard"}
    with_pcgrad = ("pcgrad" in name and "without" not in name) or name == "pcgrad"
    assert (config.method == "pcgrad") == with_pcgrad
    assert (config.method == "gradvac") == ("gradient vaccine" in name or "gradvac" in name)
    assert (config.adapter == "pals") == ("pals" in name)
    assert ("mlm" in config.pretrain) == (row.paper == "mtl_surgery_mlm" and "mlm" in name)
    assert config.freeze_encoder == (
        "pretrain mode" in name
        or name in ("baseline (separate)", "single-task pretrain", "sts only: linear baseline")
    )
    if config.method != "sum":
        assert config.batching not in ALTERNATING, "surgery where no two gradients meet"
    assert row.separate == (row.name.startswith("single-task") and row.paper != "sbert_simcse") or (
        row.name == "method 3, sst / para / sts alone"
    )


def test_experiments_on_task_counts_give_every_run_as_many_batches():
    """The report's 189 batches of the smallest set, also where that set has no part."""
    for row in PAPERS["bert_mastery"].rows:
        if row.table in ("Table 3", "Table 4"):
            config = row.config()
            assert config.batching == "method_3"
            assert config.steps_per_epoch == 189 or config.tasks == ("sst", "para", "sts")


# --- budgets and plans


def test_a_budget_gives_every_task_the_same_number_of_batches():
    turns = Row("r", "turns", "t", {}, {"batching": "round_robin", "steps_per_epoch": 54_000})
    zipped = Row("r", "zipped", "t", {}, {"batching": "zipped", "steps_per_epoch": 18_000})
    (one,), (other,) = (StudySettings(steps=50).configs(row, 0) for row in (turns, zipped))
    assert (one.steps_per_epoch, other.steps_per_epoch) == (150, 50)


def test_a_budget_never_spends_more_than_the_row():
    row = Row("r", "short", "t", {}, {"epochs": 2, "steps_per_epoch": 7, "lr": 0.5})
    (config,) = StudySettings(epochs=9, steps=50, lr_scale=4).configs(row, 3)
    assert (config.epochs, config.steps_per_epoch, config.lr, config.seed) == (2, 7, 1.0, 3)


def test_the_packaged_encoder_gets_the_mean_instead_of_a_pooler_it_does_not_have(tiny_encoder):
    row = Row("r", "pooled", "t", {}, {"pooling": "pooler"})
    assert StudySettings().configs(row, 0)[0].pooling == "mean"
    assert StudySettings(encoder=tiny_encoder).configs(row, 0)[0].pooling == "pooler"
    assert any("Quora" in sentence for sentence in StudySettings().substitutions())


def test_rows_with_the_same_settings_share_their_runs(tmp_path: Path):
    rows = PAPERS["bert_mastery"].rows
    plan = Plan(rows, StudySettings(seeds=(0, 1), output=str(tmp_path)))
    assert plan.shared() == {
        "sst + para + sts": "method 3",
        "sst + sts without PCGrad (table 4)": "sst + sts (table 3)",
        "sst + para without PCGrad (table 4)": "sst + para (table 3)",
        "sts + para without PCGrad (table 4)": "sts + para (table 3)",
    }
    separate = sum(row.separate for row in rows)
    # Without a limit of steps, single tasks of Table 3 are runs of their own.
    assert len(plan.jobs) == 2 * (len(rows) - 4 + 2 * separate)


# A later rule of a report, undone: which epoch is kept, and what else is scored.
FIRST_RULES = {"select": "mean", "train_scores": None}
BUDGETS = {
    "defaults": {},
    "small budget": {
        "encoder": "bert-base-uncased",
        "epochs": 2,
        "steps": 100,
        "lr_scale": 10,
        "set": {"amp": "bf16", "dev_limit": "500"},
    },
}


@pytest.mark.parametrize("budget", BUDGETS)
def test_finished_runs_are_found_again(budget: str):
    """A key that changed would repeat hours of work, and leave its result behind unread."""
    with HERE.with_name("keys.tsv").open(encoding="utf-8", newline="") as file:
        first = {
            (line["report"], line["row"]): line[budget].split()
            for line in csv.DictReader(file, delimiter="\t")
        }
    settings = StudySettings(**BUDGETS[budget])
    assert first == {
        (row.paper, row.name): [
            key_of(replace(config, **FIRST_RULES)) for config in settings.configs(row, 0)
        ]
        for row in PUBLISHED
    }


def test_only_two_papers_choose_otherwise_and_two_score_train():
    chosen = {row.paper: row.config().select for row in ROWS}
    assert {paper for paper, select in chosen.items() if select == "leaderboard"} == {
        "optimusbert",
        "sbert_simcse",
    }
    scored = {row.paper for row in ROWS if row.config().train_scores}
    assert scored == {"optimusbert", "mtl_surgery_mlm"}


# --- what rows rely on


def test_every_setting_is_pinned_as_it_was():
    """A setting that is added later says with `before` what runs did without it."""
    names = {entry.name for entry in fields(Config)} - {"task"}  # the user's own tasks; no row has
    assert set(PINNED) == names
    later = {entry.name for entry in fields(Config) if "before" in entry.metadata}
    assert later <= names
    assert not later & set(Config.from_mapping(PINNED).key_values())


#: Settings whose defaults no other value can stand for here.
FIXED = ("untrained", "task", "map", "cache_features", "dev_half")


def test_no_row_relies_on_a_default_of_the_demo(monkeypatch: pytest.MonkeyPatch):
    """Every default is another one; keys and all settings of all runs stay."""
    settings = StudySettings(fraction=0.5)

    def runs() -> list[tuple[str, dict[str, object]]]:
        configs = [config for row in ROWS for config in settings.configs(row, 0)]
        configs += list(configs_of(StudySettings()).values())
        return [(key_of(config), config.to_dict()) for config in configs]

    before = runs()
    others: dict[str, object] = {
        "tasks": ("sst", "sts"),
        "untrained": (),
        "encoder_layers": (0,),
        "cache_features": False,  # of a frozen encoder alone
        "dev_half": False,  # excludes dev_sample
        "pretrain": ("nli",),
        "task": (),
        "pooling": "cls",
        "sts_loss": "huber",
        "batching": "sqrt",
        "method": "gradvac",
        "dropout": 0.2,
        "encoder_dropout": 0.2,
        "gradvac_target": 0.5,
        "fraction": 0.5,
        "max_length": 64,
        "amp": "fp16",
        "select": "last",
        "encoder": "elsewhere",
    }
    perturbed = []
    for entry in fields(Config):
        value = others.get(entry.name, other(entry))
        perturbed.append(value)
        assert value != entry.default or entry.name in FIXED, entry.name
    monkeypatch.setattr(Config.__init__, "__defaults__", tuple(perturbed))
    assert Config().lr != 1e-4
    assert runs() == before


def other(entry: Field[Any]) -> Any:
    """A valid value of a setting that is not its default."""
    default = entry.default
    for value in (not default, 3, 0.5, "elsewhere", *_choices(entry)):
        try:
            if type(value) is type(default) or default is None:
                parsed = entry.metadata["parse"](value)
                if parsed != default:
                    return parsed
        except ValueError:
            continue
    return default


def _choices(entry: Field[Any]) -> tuple[str, ...]:
    parse = entry.metadata["parse"]
    return parse.names if isinstance(parse, Choice) else ()


# --- controls


def test_every_row_with_surgery_has_its_batches_with_the_plain_sum_as_control():
    for paper in PAPERS.values():
        for row in paper.rows:
            if row.config().method != "sum":
                assert row.control is not None, row.name
                control = paper.row(row.control).config()
                assert control.method == "sum"
                ours = {k: v for k, v in row.config().to_dict().items() if k not in SURGERY}
                assert ours == {k: v for k, v in control.to_dict().items() if k not in SURGERY}


# What counts as one thing.
THINGS = [
    set(SURGERY),
    {"pretrain", "pretrain_epochs", "pretrain_batch_size", "pretrain_accumulation"},
]


def test_a_row_differs_from_its_control_in_one_thing():
    for paper in PAPERS.values():
        for row in paper.rows:
            if row.control is None:
                continue
            ours, control = row.config().to_dict(), paper.row(row.control).config().to_dict()
            names = {name for name, value in ours.items() if value != control[name]}
            assert len(names) == 1 or any(names <= thing for thing in THINGS), (row.name, names)


def test_a_control_that_is_no_row_is_refused():
    row = Row("some", "surgery", "t", {}, control="sum")
    with pytest.raises(ValueError, match="'surgery' has the control 'sum', which is no row"):
        Paper("some", "title", (row,), "surgery")


def test_deviations_of_test_scores_are_noted():
    paper = PAPERS["pals_gradvac"]
    (printed,) = (scores for name, scores in paper.test_scores if name == "Cosine similarity")
    assert round(sum(printed[task] for task in ("sst", "para", "sts")) / 3, 3) == 0.593
    assert printed["mean"] == 0.579
    assert "which give .593" in paper.row("Cosine similarity").note


def test_a_run_keeps_its_folder(tmp_path: Path):
    plan = Plan(PAPERS["bert_mastery"].rows, StudySettings(output=str(tmp_path)))
    folder = "bert_mastery/single-task-pretrain-mode-sst-seed0-17d49698dc"
    job = next(iter(plan.jobs.values()))
    assert job.results == (tmp_path / "runs" / folder / "result.json",)


def test_the_key_of_a_run_is_all_that_decides_its_outcome():
    base = Config()
    assert key_of(base) == key_of(Config(output="x", checkpoint_every=7, cache="y"))
    for changes in ({"seed": 1}, {"lr": 1e-3}, {"data": "hub"}, {"amp": "bf16"}):
        assert key_of(base) != key_of(Config(**changes))


def test_the_conflict_study_can_be_trained_as_the_report_that_it_answers():
    published = PAPERS["pals_gradvac"].row("Gradient Vaccine multitask").config().to_dict()
    arms = arms_of(StudySettings(as_published=True))
    config = arms["gradvac, on_alter"].config().to_dict()
    differ = {name for name, value in published.items() if value != config[name]}
    assert differ == {"epochs", "steps_per_epoch", "dev_limit", "log_every"}
    assert arms_of(StudySettings())["sum"].config().sts_head == "cosine"


def test_a_sham_row_differs_from_its_surgery_in_the_weights_alone():
    paper = PAPERS["bert_mastery"]
    for pair in ("sst + para", "sts + para"):
        sham, surgery = (
            paper.row(f"{pair} with {what}") for what in ("sham surgery", "PCGrad (table 4)")
        )
        (config,) = StudySettings(set=["encoder_layers=0,2,5"]).configs(sham, 0)
        assert config == replace(
            *StudySettings(set=["encoder_layers=0,2,5"]).configs(surgery, 0), method="sham"
        )
        assert config.epochs * config.steps_per_epoch == 1890
        assert config.encoder_layers == (0, 2, 5)
        assert sham.control == surgery.control == f"{pair} without PCGrad (table 4)"
