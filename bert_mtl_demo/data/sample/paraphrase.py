"""Pairs of questions that do or do not ask the same.

A question is an intent (how long, why, how much, ...) about a topic, in one of several phrasings. A
pair that asks the same has one intent and one topic in two phrasings, often with few words in
common. A pair that does not shares most of its words: another topic in the same phrasing, another
intent about the same topic, a condition put on one of the two, or, for questions from one thing to
another, the two things swapped.

Some topics are duplicated more often than others and conditions mark distinct questions more often,
as in any forum. A head that sees both sentences but cannot compare them has this to learn, and no
more.
"""

from __future__ import annotations

from random import Random

from bert_mtl_demo.data.sample.common import Row, sentence, unseen
from bert_mtl_demo.data.sample.questions import FAMILIES, Family


def draw(random: Random, dev: bool) -> Row:
    """One pair of questions: 1 when they ask the same, otherwise 0."""
    same = random.random() < 0.5
    family = random.choices(FAMILIES, [family.weights[same] for family in FAMILIES])[0]
    intent, topic = _pick(random, family, dev)
    first, second = random.sample(family.intents[intent], 2)
    if same:
        pair = [_ask(random, family, first, topic), _ask(random, family, second, topic)]
        if random.random() < 0.1:
            condition = random.choice(family.conditions)
            pair = [condition + question for question in pair]
    else:
        pair = _different(random, family, intent, topic, dev)
    random.shuffle(pair)
    return sentence(pair[0]), sentence(pair[1]), float(same)


def _different(random: Random, family: Family, intent: int, topic: int, dev: bool) -> list[str]:
    """Two questions with much in common that do not ask the same."""
    first, second = random.sample(family.intents[intent], 2)
    question = _ask(random, family, first, topic)
    how = random.random()
    if family.directed and how < 0.3:
        phrasing = random.choice((first, second))
        return [question, _ask(random, family, phrasing, topic, swap=True)]
    if how < 0.35:  # the same words about something else
        other = topic
        while other == topic:
            other = _pick(random, family, dev, intent=intent)[1]
        return [question, _ask(random, family, random.choice((first, first, second)), other)]
    if how < 0.6:  # something else about the same
        other = intent
        while other == intent:
            other = _pick(random, family, dev, topic=topic)[0]
        return [question, _ask(random, family, random.choice(family.intents[other]), topic)]
    if how < 0.8:
        return [question, random.choice(family.conditions) + _ask(random, family, second, topic)]
    stranger = random.choice([other for other in FAMILIES if other is not family])
    other_intent, other_topic = _pick(random, stranger, dev)
    phrasing = random.choice(stranger.intents[other_intent])
    return [question, _ask(random, stranger, phrasing, other_topic)]


def _pick(
    random: Random,
    family: Family,
    dev: bool,
    intent: int | None = None,
    topic: int | None = None,
) -> tuple[int, int]:
    """An intent and a topic of the family that may be combined; either may be given."""
    while True:
        i = random.randrange(len(family.intents)) if intent is None else intent
        t = random.randrange(len(family.topics)) if topic is None else topic
        if dev or not unseen(i, t):
            return i, t


def _ask(random: Random, family: Family, phrasing: str, topic: int, *, swap: bool = False) -> str:
    names = family.topics[topic]
    if family.directed:
        return phrasing.format(x=names[swap], y=names[not swap])
    return phrasing.format(x=random.choice(names))
