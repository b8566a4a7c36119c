"""Pairs of scene descriptions with a similarity from 0.0 to 5.0.

Two sentences start as the same scene; then one or more parts of the second are changed, and each
change has a price (`COST`). What is left of 5 is the label, moved by up to 0.2 as the mean of
several annotators would be. Synonyms cost next to nothing and share no word, a changed number or a
negation costs a lot and shares nearly all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

from bert_mtl_demo.data.sample.common import Row, sentence, unseen
from bert_mtl_demo.data.sample.scenes import ACTIONS, DETAILS, NUMBERS, PLACES, SUBJECTS, THINGS

COST = {
    "synonym": 0.2,
    "detail dropped": 0.4,
    "detail changed": 0.8,
    "place dropped": 0.6,
    "place": 1.2,
    "number": 1.0,
    "subject": 1.8,
    "object": 1.6,
    "negation": 2.4,
    "action": 2.8,
}

_Way = TypeVar("_Way")


@dataclass(frozen=True)
class Scene:
    """A scene, as indices into the tables of `scenes`; None: not mentioned."""

    subject: int
    number: int
    detail: int | None
    action: int
    thing: int
    place: int | None
    negated: bool = False

    def text(self, wording: dict[str, int]) -> str:
        """The scene in words; `wording` numbers the synonym of a part, 0 unless given."""
        forms = _pick(SUBJECTS[self.subject], wording.get("subject", 0))
        noun = forms[self.number > 0]
        words = noun if self.detail is None else f"{DETAILS[self.detail]} {noun}"
        who = f"{NUMBERS[self.number]} {words}" if self.number else f"{_article(words)} {words}"
        verbs, things = ACTIONS[self.action]
        parts = [who, "were" if self.number else "was", *(["not"] if self.negated else [])]
        parts += [
            _pick(verbs, wording.get("action", 0)),
            _pick(things[self.thing], wording.get("thing", 0)),
        ]
        if self.place is not None:
            parts.append(_pick(PLACES[self.place], wording.get("place", 0)))
        return sentence(" ".join(parts) + ".")


def draw(random: Random, dev: bool) -> Row:
    """One pair with its similarity, in steps of 0.2."""
    one = _scene(random, dev)
    if random.random() < 0.15:
        other, cost = _scene(random, dev), 5.0
        while (
            other.action == one.action or other.subject == one.subject or other.place == one.place
        ):
            other = _scene(random, dev)
    else:
        other, cost = _change(random, one, dev)
    wording = {part: 1 for part in ("subject", "action", "thing", "place") if random.random() < 0.4}
    first, second, plain = one.text({}), other.text(wording), other.text({})
    if first == second:
        return draw(random, dev)
    if second != plain:
        cost += COST["synonym"]
    label = 5.0 - cost + random.choice((-0.2, 0.0, 0.0, 0.2))
    pair = [first, second]
    random.shuffle(pair)
    return pair[0], pair[1], min(max(round(label, 1), 0.0), 5.0)


def _scene(random: Random, dev: bool) -> Scene:
    while True:
        scene = Scene(
            subject=random.randrange(len(SUBJECTS)),
            number=random.choice((0, 0, 0, 1, 2, 3)),
            detail=random.choice((None, *range(len(DETAILS)))),
            action=random.randrange(len(ACTIONS)),
            thing=random.randrange(THINGS),
            place=random.choice((None, *range(len(PLACES)), *range(len(PLACES)))),
        )
        if dev or not _unseen(scene):
            return scene


def _change(random: Random, scene: Scene, dev: bool) -> tuple[Scene, float]:
    """A copy with none to four parts changed, and what the changes cost."""
    while True:
        other, cost = scene, 0.0
        for change in random.sample(_CHANGES, random.choice((0, 1, 1, 2, 2, 3, 4))):
            other, name = change(random, other)
            cost += COST[name]
        if dev or not _unseen(other):
            return other, cost


def _unseen(scene: Scene) -> bool:
    return unseen(scene.subject, THINGS * scene.action + scene.thing)


def _other(random: Random, size: int, but: int | None) -> int:
    return random.choice([index for index in range(size) if index != but])


def _detail(random: Random, scene: Scene) -> tuple[Scene, str]:
    if scene.detail is not None and random.random() < 0.5:
        return replace(scene, detail=None), "detail dropped"
    detail = _other(random, len(DETAILS), scene.detail)
    return replace(
        scene, detail=detail
    ), "detail dropped" if scene.detail is None else "detail changed"


def _place(random: Random, scene: Scene) -> tuple[Scene, str]:
    if scene.place is not None and random.random() < 0.4:
        return replace(scene, place=None), "place dropped"
    place = _other(random, len(PLACES), scene.place)
    return replace(scene, place=place), "place dropped" if scene.place is None else "place"


def _action(random: Random, scene: Scene) -> tuple[Scene, str]:
    action = _other(random, len(ACTIONS), scene.action)
    return replace(scene, action=action, thing=random.randrange(THINGS)), "action"


def _negation(random: Random, scene: Scene) -> tuple[Scene, str]:
    return replace(scene, negated=True), "negation"


def _number(random: Random, scene: Scene) -> tuple[Scene, str]:
    return replace(scene, number=_other(random, len(NUMBERS), scene.number)), "number"


def _object(random: Random, scene: Scene) -> tuple[Scene, str]:
    return replace(scene, thing=_other(random, THINGS, scene.thing)), "object"


def _subject(random: Random, scene: Scene) -> tuple[Scene, str]:
    return replace(scene, subject=_other(random, len(SUBJECTS), scene.subject)), "subject"


# Each returns the changed scene and the name of its price.
_CHANGES = (_action, _detail, _negation, _number, _object, _place, _subject)


def _pick(ways: Sequence[_Way], index: int) -> _Way:
    """The wording number `index`, or the last one of a thing that has fewer."""
    return ways[min(index, len(ways) - 1)]


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"
