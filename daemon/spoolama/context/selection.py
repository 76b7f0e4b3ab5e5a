"""Selects rows with diverse answers, for anchors and for `important` trims.

Identical earlier answers bias later ones towards the same answer; diverse answers do so far less (measured on
small models). Labels are taken in turn, numbers at even distances over their ranks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from spoolama.job.answer import number_of


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row that can be selected."""

    place: int
    """The caller's key for the row; among equal rows the higher one is preferred."""
    label: str
    """Its answer, formatted as in a CSV cell."""
    score: float = 0.0
    """Its importance, for selection by score."""


def spread(choices: Sequence[Candidate], number: int) -> list[int]:
    """Return the places of `number` choices with diverse labels, ascending.

    Numbers are taken at even distances over their ranks. Other labels are taken in turn, the rarest first,
    and the latest row of each label first. If every label is different (free text), the latest rows win.
    """
    if number >= len(choices):
        return sorted(c.place for c in choices)
    values = [number_of(c.label) for c in choices]
    if len({c.label for c in choices}) > 2 and all(v is not None for v in values):
        ranked = sorted(choices, key=lambda c: (number_of(c.label) or 0.0, c.place))
        step = (len(ranked) - 1) / max(1, number - 1)
        return sorted({ranked[round(i * step)].place for i in range(number)})
    groups: dict[str, list[Candidate]] = {}
    for choice in sorted(choices, key=lambda c: c.place):
        groups.setdefault(choice.label, []).append(choice)
    order = sorted(groups.values(), key=lambda g: (len(g), -g[-1].place))
    chosen: list[int] = []
    while len(chosen) < number:
        for group in order:
            if group and len(chosen) < number:
                chosen.append(group.pop().place)
    return sorted(chosen)


def best(choices: Sequence[Candidate], number: int) -> list[int]:
    """Return the places of the choices with the highest scores, ascending; among equal scores the latest."""
    ranked = sorted(choices, key=lambda c: (c.score, c.place), reverse=True)
    return sorted(c.place for c in ranked[:number])


def candidates(total: int, number: int, seed: int) -> list[int]:
    """Return the ordinals of `number` rows spread over the file: a random one from each of equal parts."""
    rng = random.Random(f"candidates {seed}")  # noqa: S311 - not security-relevant
    number = min(number, total)
    return [rng.randrange(total * part // number, total * (part + 1) // number) for part in range(number)]


def choose(rows: Sequence[Candidate], number: int, how: str, seed: int) -> list[int]:
    """Return the ordinals of the anchors in prompt order. The order affects answers, so it is shuffled.

    Args:
        rows: The candidates by ordinal, with label and score.
        number: How many to choose.
        how: `spread` over the labels, or `important` by the score.
        seed: Seed of the shuffle.
    """
    chosen = best(rows, number) if how == "important" else spread(rows, number)
    random.Random(f"anchors {seed}").shuffle(chosen)  # noqa: S311 - not security-relevant
    return chosen
