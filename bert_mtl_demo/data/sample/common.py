"""Shared by the generators: balanced drawing, and the word combinations kept for dev."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Row = tuple[str, "str | None", float]  # first sentence, second sentence or None, label


@dataclass(frozen=True)
class Drawer:
    """A generator of rows.

    Args:
        draw: ``draw(random, dev)`` makes one row; only with `dev` may it use combinations that are
            `unseen`.
        groups: number of label groups that shall be equally frequent.
        group_of: label -> its group, 0..groups-1.
    """

    draw: Callable[[Random, bool], Row]
    groups: int
    group_of: Callable[[float], int]


def unseen(one: int, other: int) -> bool:
    """Whether words number `one` and `other` of two lists meet in dev only: one combination in
    five.

    Each word of either list still occurs in train, in its other combinations.

    >>> [other for other in range(10) if unseen(0, other)]
    [0, 5]
    """
    return (2 * one + other) % 5 == 0


def draw_split(drawer: Drawer, seed: str, train: int, dev: int) -> tuple[list[Row], list[Row]]:
    """Draw `train` and then `dev` distinct rows, label groups balanced, order shuffled.

    A row whose sentences were drawn before, in either order, is drawn again, so dev shares nothing
    with train.

    Raises:
        ValueError: when `train` or `dev` is no multiple of the number of groups.
    """
    random = Random(seed)  # a str seed is hashed with SHA-512: no dependence on PYTHONHASHSEED
    seen: set[tuple[str, ...]] = set()
    halves = []
    for size, is_dev in ((train, False), (dev, True)):
        if size % drawer.groups:
            raise ValueError(f"{size} rows do not divide into {drawer.groups} equal label groups.")
        rows: list[Row] = []
        count: Counter[int] = Counter()
        while len(rows) < size:
            row = drawer.draw(random, is_dev)
            group, key = drawer.group_of(row[2]), tuple(sorted(text for text in row[:2] if text))
            if count[group] < size // drawer.groups and key not in seen:
                seen.add(key)
                count[group] += 1
                rows.append(row)
        random.shuffle(rows)
        halves.append(rows)
    return halves[0], halves[1]


def sentence(text: str) -> str:
    """The text with a capital first letter.

    >>> sentence("it rained.")
    'It rained.'
    """
    return text[0].upper() + text[1:]


def listed(text: str, separator: str = ", ") -> tuple[str, ...]:
    """The parts of a text.

    >>> listed("acting, camera work")
    ('acting', 'camera work')
    """
    return tuple(text.split(separator))
