"""Longer film reviews, good or bad: sentences of `sentiment` that all lean one way.

Two or three of them praise or blame, however they put it; in half of the reviews one more only
tells the plot or weighs both sides. Nobody disagrees here: who reads one sentence right has the
answer, while counting words gets nearly nine in ten.
"""

from __future__ import annotations

from random import Random

from bert_mtl_demo.data.sample.common import Row, sentence
from bert_mtl_demo.data.sample.sentiment import review


def draw(random: Random, dev: bool) -> Row:
    """One review with its polarity, 0 (negative) or 1 (positive)."""
    label = random.randrange(2)
    texts = [_of_sign(random, dev, 1 if label else -1) for _ in range(random.randint(2, 3))]
    if random.random() < 0.5:
        texts.insert(random.randrange(len(texts) + 1), _of_sign(random, dev, 0))
    return " ".join(map(sentence, texts)), None, float(label)


def _of_sign(random: Random, dev: bool, sign: int) -> str:
    while True:
        text, strength = review(random, dev)
        if (strength > 0) - (strength < 0) == sign:
            return text
