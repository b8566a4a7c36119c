"""Film-review sentences in five grades, where the grade follows from how words combine.

A clause praises or blames one aspect of a film, with a strength from -2 to 2. Its words alone
mislead: "not" turns good into bad, "hardly brilliant" blames, "a bit" weakens, "really"
strengthens. Two clauses joined by "but" or "although" count (c + 2m) / 3, where m is the clause
that the sentence stands on; so every word of a neutral sentence may be loaded, and the same two
clauses the other way round get another grade.
"""

from __future__ import annotations

from random import Random

from bert_mtl_demo.data.sample.common import Row, listed, sentence, unseen

# Share of reviews graded by somebody who disagrees by one step, as people do on five grades. It
# keeps accuracy off 1.00: who reads every sentence as it was meant gets about 0.9.
DISAGREEMENT = 0.12
ASPECTS = listed(
    "acting, script, camera work, score, story, dialogue, ending, pacing, lead performance, "
    "humour, editing, first half, romance, villain, production design, supporting cast"
)
TOPICS = listed(
    "a lighthouse keeper, two rival bakers, a retired jockey, a small-town mayor, a night nurse, "
    "three runaway sisters, a forgetful spy, a travelling circus, a chess prodigy, a failing "
    "orchestra, a mountain rescue team, a disgraced chef, a ferry captain, a family of beekeepers"
)
SETTINGS = listed(
    "Lisbon, the Arctic, a mining village, the 1950s, a seaside hotel, Nairobi, a boarding "
    "school, post-war Vienna, an empty shopping mall, rural Peru"
)
ADJECTIVES: dict[int, tuple[str, ...]] = {
    2: listed(
        "superb, brilliant, breathtaking, flawless, magnificent, unforgettable, dazzling, masterful"
    ),
    1: listed("good, enjoyable, likeable, charming, solid, pleasant, clever, engaging, effective"),
    -1: listed("dull, weak, clumsy, uneven, predictable, flat, thin, tired, forgettable"),
    -2: listed(
        "dreadful, unbearable, atrocious, abysmal, insufferable, disastrous, hopeless, appalling"
    ),
}
_STRENGTHS = tuple(ADJECTIVES)
# How a phrase changes the strength of the adjective behind it: only these pairs are said, as people
# say them.
MODIFIERS: dict[int, tuple[tuple[str, int], ...]] = {
    2: (
        ("", 2),
        ("simply ", 2),
        ("not exactly ", -1),
        ("hardly ", -1),
        ("nothing short of ", 2),
        ("almost ", 1),
    ),
    1: (
        ("", 1),
        ("quite ", 1),
        ("really ", 2),
        ("extremely ", 2),
        ("not very ", -1),
        ("never ", -1),
        ("not at all ", -2),
    ),
    -1: (
        ("", -1),
        ("a bit ", -1),
        ("really ", -2),
        ("painfully ", -2),
        ("not ", 1),
        ("never ", 1),
        ("anything but ", 1),
    ),
    -2: (
        ("", -2),
        ("simply ", -2),
        ("utterly ", -2),
        ("close to ", -1),
        ("far from ", 1),
        ("nothing short of ", -2),
    ),
}
_SOLO = (
    "the {aspect} is {praise}.",
    "this film about {topic} has one thing to show: its {aspect} is {praise}.",
    "in this story of {topic}, the {aspect} is {praise}.",
    "what stays with you is the {aspect}, which is {praise}.",
    "set in {setting}, it tells of {topic}, and the {aspect} is {praise}.",
    "I found the {aspect} {praise}.",
)
# {c}: the clause that is conceded, {m}: the one that the sentence stands on
_CONTRAST = (
    "the {c}, but the {m}.",
    "although the {c}, the {m}.",
    "the {m}, even though the {c}.",
    "the {c}; still, the {m}.",
    "in this film about {topic}, the {c}, but the {m}.",
)
_AGREEMENT = (
    "the {c} and the {m}.",
    "the {c}, and what is more, the {m}.",
    "in this tale set in {setting}, the {c} and the {m}.",
)
_PLAIN = (
    "the film follows {topic} through one winter in {setting}.",
    "it is a feature about {topic}, set in {setting}.",
    "the {aspect} is neither {good} nor {bad}.",
    "some will find the {aspect} {good}, others will call it {bad}.",
    "{topic} and a stranger meet in {setting}, and the film shows what follows.",
    "the {aspect} is average for a film about {topic}.",
    "a sequel to a drama about {topic}, it takes place in {setting}.",
)


def draw(random: Random, dev: bool) -> Row:
    """One review sentence with its grade, 0 (very negative) to 4 (very positive).

    A share of `DISAGREEMENT` is graded one step higher or lower.
    """
    text, strength = review(random, dev)
    if random.random() < DISAGREEMENT:
        strength += random.choice((-1, 1))
    return sentence(text), None, float(min(max(2 + strength, 0), 4))


def review(random: Random, dev: bool) -> tuple[str, int]:
    """A sentence, without its capital, and its strength, -2..2."""
    kind = random.random()
    words = {"topic": random.choice(TOPICS), "setting": random.choice(SETTINGS)}
    if kind < 0.12:
        words["aspect"] = random.choice(ASPECTS)
        words["good"], words["bad"] = random.choice(ADJECTIVES[1]), random.choice(ADJECTIVES[-1])
        return random.choice(_PLAIN).format(**words), 0
    aspect, praise, strength = _clause(random, dev)
    if kind < 0.55:
        return random.choice(_SOLO).format(aspect=aspect, praise=praise, **words), strength
    other, other_praise, main = _clause(random, dev)
    while other == aspect:
        other, other_praise, main = _clause(random, dev)
    words |= {"c": f"{aspect} is {praise}", "m": f"{other} is {other_praise}"}
    if (strength > 0) != (main > 0):
        return random.choice(_CONTRAST).format(**words), blend(strength, main)
    # Two clauses that agree are as strong as the stronger one.
    return random.choice(_AGREEMENT).format(**words), max(strength, main, key=abs)


def blend(conceded: int, main: int) -> int:
    """Strength of two clauses of opposite sign, to the nearest integer: the main one weighs twice.

    >>> blend(2, -1), blend(1, -1), blend(1, -2), blend(-2, 2)
    (0, 0, -1, 1)
    """
    return round((conceded + 2 * main) / 3)


def _clause(random: Random, dev: bool) -> tuple[str, str, int]:
    """An aspect, what is said of it, and how strongly (-2..2, never 0)."""
    while True:
        aspect, level = random.randrange(len(ASPECTS)), random.choice(_STRENGTHS)
        number = random.randrange(len(ADJECTIVES[level]))
        if dev or not unseen(aspect, number):
            modifier, strength = random.choice(MODIFIERS[level])
            return ASPECTS[aspect], modifier + ADJECTIVES[level][number], strength
