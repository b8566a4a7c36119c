"""Budgets keep the treatment, and say which rows they make one."""

from __future__ import annotations

from itertools import pairwise

import pytest

from bert_mtl_demo.batching import SCHEMES
from bert_mtl_demo.batching.scheme import Frame
from bert_mtl_demo.errors import ConfigError
from bert_mtl_demo.study.designs import SIZES, coinciding, designs_coincide, warnings
from bert_mtl_demo.study.papers import PAPERS
from bert_mtl_demo.study.published import Row
from bert_mtl_demo.study.settings import StudySettings

MASTERY = PAPERS["bert_mastery"]


def row(**settings: object) -> Row:
    return Row("some", str(settings), "t", {}, settings)


# --- designs


def test_steps_make_methods_2_and_3_one_design_and_a_fraction_does_not():
    two, three, one = (MASTERY.row(f"method {n}") for n in (2, 3, 1))
    assert designs_coincide(two, three, StudySettings(steps=120))
    assert not designs_coincide(two, three, StudySettings(fraction=0.01))
    assert not designs_coincide(one, two, StudySettings(steps=120))
    # So small a part that both take one step an epoch.
    assert designs_coincide(two, three, StudySettings(fraction=1e-5))


def test_a_limit_that_makes_all_sets_equal_makes_methods_2_and_3_one_design():
    two, three = (MASTERY.row(f"method {n}") for n in (2, 3))
    assert designs_coincide(two, three, StudySettings(set={"train_limit": "1000"}))
    assert not designs_coincide(two, three, StudySettings(set={"train_limit": "20000"}))
    limited = StudySettings(fraction=0.1, set={"train_limit": "1000"})
    assert not designs_coincide(two, three, limited)


@pytest.mark.parametrize(
    ("settings", "others", "same"),
    [
        ({"batching": "round_robin", "method": "pcgrad"}, {"method": "sum"}, True),
        ({"batching": "zipped", "method": "pcgrad"}, {"method": "sum"}, False),
        ({"tasks": ("sst",), "batching": "zipped"}, {"batching": "round_robin"}, True),
        ({"batching": "annealed", "epochs": 1}, {"batching": "proportional"}, True),
        ({"batching": "annealed", "epochs": 2}, {"batching": "proportional"}, False),
        ({"batching": "interleaved", "epochs": 1}, {"batching": "sequential"}, True),
        ({"batching": "interleaved", "epochs": 2}, {"batching": "sequential"}, False),
        ({"batching": "zipped", "epochs": 1}, {"batching": "method_2"}, True),
        ({"batching": "zipped", "epochs": 2}, {"batching": "method_2"}, False),
        ({"method": "pcgrad"}, {"gradvac_update": "on_alter"}, True),
        ({"method": "gradvac"}, {"gradvac_update": "on_alter"}, False),
        ({}, {"pretrain_steps": 7}, True),
        ({"pretrain": ("mlm",)}, {"pretrain_steps": 7}, False),
        ({}, {"select": "last"}, True),
        ({}, {"lr": 1e-3}, False),
        ({"batching": "sequential"}, {"steps_per_epoch": 19_513}, False),  # a pass, equal parts
    ],
)
def test_what_does_nothing_makes_no_design(settings, others, same):
    assert designs_coincide(row(**settings), row(**{**settings, **others}), StudySettings()) == same


def test_rows_of_one_design_by_publication_are_not_blamed_on_the_budget():
    pair = MASTERY.row("method 3"), MASTERY.row("sst + para + sts")
    assert designs_coincide(*pair, StudySettings())
    assert coinciding(pair, StudySettings(steps=100)) == []


@pytest.mark.parametrize("name", PAPERS)
def test_a_tenth_of_the_schedules_makes_no_two_rows_one(name: str):
    assert coinciding(PAPERS[name].rows, StudySettings(fraction=0.1)) == []
    assert warnings(PAPERS[name].rows, StudySettings(fraction=0.1)) == []


def test_warnings_name_the_rows_and_the_shares():
    (sentence,) = warnings(
        [MASTERY.row("method 2"), MASTERY.row("method 3")], StudySettings(steps=9)
    )
    assert sentence.startswith("'method 2' and 'method 3' are one design under this budget")
    joint = PAPERS["sbert_simcse"].rows
    said = " ".join(warnings(joint, StudySettings(steps=9, set={"train_limit": "64"})))
    assert "train_limit changes the shares" in said
    assert "equal parts" in said


# --- fractions


def schedule(paper_row: Row, fraction: float | None):
    (config,) = StudySettings(fraction=fraction).configs(paper_row, 0)
    frame = Frame(
        {name: SIZES[name] for name in config.trained},
        *(config.batch_size, config.partial_batch, config.epochs, config.steps_per_epoch),
        fraction=config.fraction or 1.0,
    )
    return SCHEMES[config.batching](frame)


JOINT = [r for p in PAPERS.values() for r in p.rows if not r.separate]


@pytest.mark.parametrize("paper_row", JOINT, ids=lambda r: f"{r.paper}: {r.name}")
def test_a_fraction_keeps_epochs_shares_and_order(paper_row: Row):
    whole, part = schedule(paper_row, None), schedule(paper_row, 0.01)
    assert part.frame.epochs == whole.frame.epochs
    assert 0 <= part.steps_per_epoch - whole.steps_per_epoch / 100 < 1
    assert part.batch_sizes() == whole.batch_sizes()
    if hasattr(whole, "probabilities"):
        for epoch in range(1, whole.frame.epochs + 1):
            assert part.probabilities(epoch).tolist() == whole.probabilities(epoch).tolist()
    if paper_row.config().batching == "sequential":
        import torch

        tasks = [next(iter(part.turn(s, torch.Generator()))) for s in range(part.horizon)]
        order = [tasks[0], *(b for a, b in pairwise(tasks) if a != b)]
        assert order == list(part.tasks)
        first = next(s for s in range(whole.horizon) if whole.tasks[0] not in whole.turn(s, None))
        assert tasks.count(tasks[0]) / part.horizon == pytest.approx(
            first / whole.horizon, abs=2 / part.horizon
        )


def test_fraction_and_steps_exclude_each_other():
    with pytest.raises(ConfigError, match=r"fraction = 0\.1 with steps = 5: both say how long"):
        StudySettings(fraction="0.1", steps="5")


def test_the_budget_names_its_fraction():
    assert StudySettings(fraction=0.1).described()["schedule"] == "0.1 of each row's own"
    assert "schedule" not in StudySettings(steps=5).described()


def test_rows_take_the_exact_shortcuts_that_they_can() -> None:
    paper = PAPERS["pals_gradvac"]
    cached = {
        name: StudySettings().configs(paper.row(name), 0)[0].cache_features
        for name in ("Frozen encoder, round robin", "Frozen encoder + PALs", "Naive multitask")
    }
    assert cached == {
        "Frozen encoder, round robin": True,
        "Frozen encoder + PALs": False,  # the adapters train
        "Naive multitask": False,
    }
