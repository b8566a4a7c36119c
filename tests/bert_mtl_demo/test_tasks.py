"""Tasks: what is looked up, and how scores become one number."""

from __future__ import annotations

import math
import re

import pytest

from bert_mtl_demo.tasks import (
    TASKS,
    Task,
    class_name,
    leaderboard_score,
    mean_score,
    resolve,
)


def test_the_tasks_in_report_order() -> None:
    assert list(TASKS) == ["sst", "para", "sts", "cfimdb"]
    assert [task.name for task in TASKS.values()] == list(TASKS)
    assert [task.pair for task in TASKS.values()] == [False, True, True, False]
    assert [task.classes for task in TASKS.values()] == [5, 2, None, 2]
    assert [(task.low, task.high) for task in TASKS.values()] == [(0, 4), (0, 1), (0, 5), (0, 1)]


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_a_class_task_has_a_name_for_every_label_in_its_range(task: Task) -> None:
    if task.classes is not None:
        assert (task.low, task.high) == (0, task.classes - 1)
    assert len(set(task.label_names)) == (task.classes or 0)


def test_resolve_keeps_the_order_given() -> None:
    assert resolve(["sts", "sst"]) == (TASKS["sts"], TASKS["sst"])


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["sst", "stsb"], ["Unknown task 'stsb'", "'sst', 'para', 'sts', 'cfimdb'"]),
        (["para", "sst", "para"], ["'para' is named twice", "['para', 'sst', 'para']"]),
        ([], ["No task was named", "'sst', 'para', 'sts', 'cfimdb'"]),
        ("sst", ["got the string 'sst'", "pass ['sst']"]),
    ],
    ids=["unknown", "duplicate", "none", "bare string"],
)
def test_resolve_names_what_is_wrong(names: list[str], parts: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(parts[0])) as caught:
        resolve(names)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"metric": "f1"}, "metric 'f1'; the known ones are 'accuracy', 'pearson'"),
        ({"label_names": ("bad", "good")}, "names 2 labels for 3 classes"),
        ({"classes": None}, "names 3 labels for 0 classes"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(change: dict[str, object], part: str) -> None:
    fields: dict[str, object] = {
        "name": "mood",
        "title": "mood",
        "pair": False,
        "classes": 3,
        "low": 0.0,
        "high": 2.0,
        "metric": "accuracy",
        "label_names": ("low", "mid", "high"),
    }
    Task(**fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=part):
        Task(**{**fields, **change})  # type: ignore[arg-type]


# Rows of the published tables: scores, mean, leaderboard; None where a report gives the other.
PUBLISHED = [
    ((0.516, 0.783, 0.361), 0.553, None),
    ((0.499, 0.787, 0.727), 0.671, None),
    ((0.132, 0.590, 0.360), None, 0.467),
    ((0.481, 0.793, 0.369), None, 0.653),
    ((0.526, 0.898, 0.859), None, 0.7845),
]


@pytest.mark.parametrize(("scores", "mean", "leaderboard"), PUBLISHED)
def test_overall_scores_agree_with_the_published_tables(
    scores: tuple[float, ...], mean: float | None, leaderboard: float | None
) -> None:
    named = dict(zip(("sst", "para", "sts"), scores, strict=True))
    if mean is not None:
        assert mean_score(named) == pytest.approx(mean, abs=6e-4)
    if leaderboard is not None:
        assert leaderboard_score(named) == pytest.approx(leaderboard, abs=6e-4)


def test_overall_scores_of_a_subset_are_over_that_subset() -> None:
    assert mean_score({"sts": -0.5}) == -0.5
    assert leaderboard_score({"sts": -0.5}) == 0.25
    assert mean_score({"sts": 0.5, "sst": 0.25}) == 0.375
    assert leaderboard_score({"sts": 0.5, "sst": 0.25}) == 0.5
    assert mean_score({"cfimdb": 0.96}) == leaderboard_score({"cfimdb": 0.96}) == 0.96
    assert leaderboard_score({"sst": 0.5, "para": 1.0}) == mean_score({"sst": 0.5, "para": 1.0})


@pytest.mark.parametrize("overall", [mean_score, leaderboard_score])
@pytest.mark.parametrize(
    ("scores", "part"),
    [
        ({}, "No task was named"),
        ({"mrpc": 0.5}, "Unknown task 'mrpc'"),
        ({"sst": 51.4}, "accuracy of 'sst' is 51.4, outside 0..1; pass fractions"),
        ({"para": -0.1}, "accuracy of 'para' is -0.1, outside 0..1"),
        ({"sts": -1.5}, "pearson of 'sts' is -1.5, outside -1..1"),
    ],
)
def test_scores_that_cannot_be_are_refused(
    overall: object, scores: dict[str, float], part: str
) -> None:
    with pytest.raises(ValueError, match=part):
        overall(scores)  # type: ignore[operator]


def test_a_score_of_nan_stays_visible_and_rounding_is_forgiven() -> None:
    assert math.isnan(mean_score({"sst": 0.5, "sts": math.nan}))
    assert math.isnan(leaderboard_score({"sst": 0.5, "sts": math.nan}))
    assert mean_score({"sts": 1.0000001}) == pytest.approx(1.0)


def test_whole_numbers_of_any_length_are_classes_of_their_own() -> None:
    assert class_name("9007199254740993") != class_name("9007199254740992")
    assert class_name("12345678901234567890.0") == "12345678901234567890"
    assert class_name("-0") == "0"
    for text in ("1e9999", "1e99999999999999999999", "9" * 5000, "1.5"):
        assert class_name(text) == text
