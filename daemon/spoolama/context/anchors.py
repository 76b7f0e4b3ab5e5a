"""Chooses the anchors: rows that are in every prompt of the job, from rows answered in isolation."""

from __future__ import annotations

import random
from collections.abc import Sequence

from spoolama.context.spread import Choice, best, spread

__all__ = ["candidates", "choose"]


def candidates(total: int, number: int, seed: int) -> list[int]:
    """Return the ordinals of `number` rows spread over the file: a random one from each of equal parts."""
    rng = random.Random(f"candidates {seed}")  # noqa: S311 - not security-relevant
    number = min(number, total)
    return [rng.randrange(total * part // number, total * (part + 1) // number) for part in range(number)]


def choose(rows: Sequence[Choice], number: int, how: str, seed: int) -> list[int]:
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
