"""The three measures of agreement with their 95 % intervals. scipy is loaded when one is first needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["BOOTSTRAPS", "is_constant", "kappa", "kappa_interval", "spearman", "spearman_interval", "wilson"]

_Z95 = 1.959963984540054
BOOTSTRAPS = 2000
"""Resamples of a bootstrap interval."""

_SEED = 7
_MAX_CELLS = 2500
"""Past so many different pairs a bootstrap in Python takes minutes, and labels are hardly labels any more."""

Cells = Mapping[tuple[int, int], int]
"""How often each (answer, gold) pair of labels occurs."""


def wilson(hits: int, rows: int) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson 1927, J. Am. Stat. Assoc. 22, 209-212)."""
    share, z2 = hits / rows, _Z95**2
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = _Z95 / (1 + z2 / rows) * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def kappa(cells: Cells) -> float | None:
    """Cohen's kappa: agreement beyond chance. None if chance alone would give all of it."""
    rows = sum(cells.values())
    left: dict[int, int] = {}
    right: dict[int, int] = {}
    same = 0
    for (answer, gold), count in cells.items():
        left[answer] = left.get(answer, 0) + count
        right[gold] = right.get(gold, 0) + count
        same += count if answer == gold else 0
    chance = sum(count * right.get(label, 0) for label, count in left.items()) / rows**2
    return None if chance >= 1.0 else (same / rows - chance) / (1 - chance)


def kappa_interval(cells: Cells) -> tuple[float, float] | None:
    """Percentile bootstrap over rows, with a fixed seed.

    Drawing rows with replacement is drawing the table of pairs from a multinomial distribution.
    """
    import numpy as np  # scipy brings it

    if len(cells) > _MAX_CELLS:
        return None
    keys = sorted(cells)
    counts = [cells[key] for key in keys]
    rows = sum(counts)
    random = np.random.default_rng(_SEED)
    shares = np.array(counts, dtype=float) / rows
    values: list[float] = []
    for _ in range(BOOTSTRAPS):
        drawn = random.multinomial(rows, shares)
        value = kappa({key: int(n) for key, n in zip(keys, drawn, strict=True) if n})
        if value is not None:
            values.append(value)
    if len(values) < BOOTSTRAPS * 0.95:
        return None  # too few rows that differ: most resamples have no kappa
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def is_constant(values: Sequence[float]) -> bool:
    """Whether all values are the same."""
    return all(value == values[0] for value in values)


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Spearman's rank correlation, mean ranks for ties; None where it is undefined: one side is constant."""
    if len(left) < 2 or is_constant(left) or is_constant(right):
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(left, right).statistic)


def spearman_interval(correlation: float, rows: int) -> tuple[float, float] | None:
    """Fisher's z with the standard error of Bonett and Wright (2000, Psychometrika 65, 23-28).

    None below 10 rows, where it is not to be trusted, and at a perfect correlation, where z has no end.
    """
    if rows < 10 or abs(correlation) >= 1.0:
        return None
    middle = math.atanh(correlation)
    half = _Z95 * math.sqrt((1 + correlation**2 / 2) / (rows - 3))
    return math.tanh(middle - half), math.tanh(middle + half)
