"""Which rows stand fixed behind the prefix: chosen once, of rows that were answered alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

from spoolama.context.spread import Choice, best, spread

__all__ = ["candidates", "choose"]


def candidates(total: int, number: int, seed: int) -> list[int]:
    """Ordinals of so many rows spread over the file: one at a random place of each equal part, seeded."""
    rng = random.Random(f"candidates {seed}")  # noqa: S311 - a choice of rows, no secret
    number = min(number, total)
    return [rng.randrange(total * part // number, total * (part + 1) // number) for part in range(number)]


def choose(rows: Sequence[Choice], number: int, how: str, seed: int) -> list[int]:
    """Ordinals of the anchors in the order in which they stand, which matters too: shuffled by the seed.

    Args:
        rows: The candidates by ordinal, with label and score.
        number: How many to choose.
        how: `spread` over the labels, or `important` by the score.
        seed: Of the order.
    """
    chosen = best(rows, number) if how == "important" else spread(rows, number)
    random.Random(f"anchors {seed}").shuffle(chosen)  # noqa: S311 - an order, no secret
    return chosen
