"""The three generators: a label is what the template says, whatever the words look like."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from bert_mtl_demo.data.sample import paraphrase, polarity, sentiment, similarity
from bert_mtl_demo.data.sample.common import sentence, unseen
from bert_mtl_demo.data.sample.questions import FAMILIES
from bert_mtl_demo.data.sample.scenes import ACTIONS, SUBJECTS, THINGS


def test_a_fifth_of_all_combinations_is_kept_for_dev_but_no_word_is() -> None:
    sizes = [(16, 8), (16, 9), (len(SUBJECTS), THINGS * len(ACTIONS))]
    sizes += [(len(family.intents), len(family.topics)) for family in FAMILIES]
    for rows, columns in sizes:
        table = [[unseen(row, column) for column in range(columns)] for row in range(rows)]
        assert 0.1 < sum(map(sum, table)) / (rows * columns) < 0.3
        assert not any(all(row) for row in table)
        assert not any(all(column) for column in zip(*table, strict=True))


def test_some_annotators_disagree_by_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [sentiment.draw(random.Random(seed), True) for seed in range(2000)]
    monkeypatch.setattr(sentiment, "DISAGREEMENT", 0.0)
    agreed = [sentiment.draw(random.Random(seed), True) for seed in range(2000)]
    assert [row[0] for row in given] == [row[0] for row in agreed]
    steps = Counter(abs(one[2] - other[2]) for one, other in zip(given, agreed, strict=True))
    assert set(steps) == {0, 1}
    # Less than 12%: a step beyond either end leaves the grade where it is.
    assert 0.07 < steps[1] / 2000 < 0.13


@pytest.mark.parametrize(
    ("conceded", "main", "grade"),
    [(2, -1, 0), (-2, 1, 0), (1, -1, 0), (1, -2, -1), (-1, 2, 1), (2, -2, -1), (-2, 2, 1)],
)
def test_the_main_clause_weighs_twice(conceded: int, main: int, grade: int) -> None:
    assert sentiment.blend(conceded, main) == grade


def test_the_main_clause_is_the_one_the_sentence_stands_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentiment, "DISAGREEMENT", 0.0)
    strength = {
        modifier + adjective: value
        for level, adjectives in sentiment.ADJECTIVES.items()
        for adjective in adjectives
        for modifier, value in sentiment.MODIFIERS[level]
    }
    checked: Counter[str] = Counter()
    drawn = random.Random(11)
    for _ in range(2000):
        text, _, label = sentiment.draw(drawn, True)
        for word, main_first in ((", but the ", False), (", even though the ", True)):
            if word not in text or text.startswith("In "):
                continue
            halves = text.rstrip(".").split(word)
            first, second = (strength[half.partition(" is ")[2]] for half in halves)
            conceded, main = (second, first) if main_first else (first, second)
            assert label == 2 + sentiment.blend(conceded, main), text
            checked[word] += 1
    assert min(checked.values()) > 50
    assert len(checked) == 2


def test_a_review_leans_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, int]] = []

    def review(drawn: random.Random, dev: bool) -> tuple[str, int]:
        said.append(sentiment.review(drawn, dev))
        return said[-1]

    monkeypatch.setattr(polarity, "review", review)
    drawn = random.Random(5)
    sizes = set()
    for _ in range(200):
        said.clear()
        text, _, label = polarity.draw(drawn, True)
        # What was drawn and not used may stand in another sentence by chance, so count the used.
        used = [strength for part, strength in said if sentence(part) in text]
        signs = [(strength > 0) - (strength < 0) for strength in used]
        assert set(signs) <= {0, 1 if label else -1}
        assert signs.count(0) <= 1
        sizes.add(len(signs) - signs.count(0))
    assert sizes >= {2, 3}


def test_a_scene_in_words() -> None:
    scene = similarity.Scene(subject=0, number=0, detail=2, action=1, thing=0, place=0)
    assert scene.text({}) == "An elderly woman was cutting an onion in a park."
    changed = similarity.Scene(1, 1, None, 1, 0, None, negated=True)
    assert changed.text({"action": 1, "subject": 1}) == "Two guys were not slicing an onion."


def test_small_changes_cost_less_than_large_ones() -> None:
    cost = similarity.COST
    order = ["synonym", "detail dropped", "detail changed", "number", "place", "object", "subject"]
    prices = [cost[name] for name in (*order, "negation", "action")]
    assert prices == sorted(prices)


def test_every_phrasing_takes_its_topic_and_every_intent_has_three() -> None:
    for family in FAMILIES:
        for intent in family.intents:
            assert len(set(intent)) >= 3
            for phrasing in intent:
                assert "{x}" in phrasing
                assert ("{y}" in phrasing) == family.directed
                assert phrasing.endswith("?")


def test_duplicates_ask_with_one_intent_about_one_topic() -> None:
    """Undo a question into (family, intent, topic, condition) and compare, over many draws."""
    meaning = {}
    for f, family in enumerate(FAMILIES):
        for i, intent in enumerate(family.intents):
            for t, ways in enumerate(family.topics):
                for condition in ("", *family.conditions):
                    for phrasing in intent:
                        names = [(ways, False), (ways[::-1], True)] if family.directed else []
                        for (x, y), swapped in names:
                            text = condition + phrasing.format(x=x, y=y)
                            meaning[text.lower()] = (f, i, t, condition, swapped)
                        for x in () if family.directed else ways:
                            meaning[(condition + phrasing.format(x=x)).lower()] = (
                                f,
                                i,
                                t,
                                condition,
                                False,
                            )
    drawn = random.Random(3)
    for _ in range(2000):
        one, two, label = paraphrase.draw(drawn, True)
        assert two is not None
        senses = [meaning[text.lower()] for text in (one, two)]
        assert (senses[0] == senses[1]) == (label == 1), (one, two)
