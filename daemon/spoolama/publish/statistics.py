"""Computes measures of agreement and their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, correlation

_Z95 = 1.959963984540054
_FALLS = 0.01
"""Significance level of a falling similarity, one-sided, for the two tests together."""

Cells = Mapping[tuple[int, int], int]
"""Number of rows for each pair (answer, gold) of labels."""


def kappa(cells: Cells) -> float | None:
    """Cohen's kappa: agreement beyond chance. None if chance agreement is complete."""
    rows = sum(cells.values())
    left, right = _margins(cells)
    same = sum(count for (answer, gold), count in cells.items() if answer == gold)
    chance = sum(share * right.get(label, 0.0) for label, share in left.items())
    return None if chance >= 1.0 else (same / rows - chance) / (1 - chance)


def _margins(cells: Cells) -> tuple[dict[int, float], dict[int, float]]:
    rows = sum(cells.values())
    left: dict[int, float] = {}
    right: dict[int, float] = {}
    for (answer, gold), count in cells.items():
        left[answer] = left.get(answer, 0.0) + count / rows
        right[gold] = right.get(gold, 0.0) + count / rows
    return left, right


def kappa_interval(cells: Cells) -> tuple[float, float] | None:
    """With the large-sample standard error of Fleiss, Cohen and Everitt (1969, Psychol. Bull. 72, 323-327).

    None if kappa is undefined or 1 (the error is then 0), and for fewer than 10 rows.
    """
    value = kappa(cells)
    if value is None or value >= 1.0 or sum(cells.values()) < 10:
        return None
    rows = sum(cells.values())
    left, right = _margins(cells)
    chance = sum(share * right.get(label, 0.0) for label, share in left.items())
    spread = -((value - chance * (1 - value)) ** 2)
    for (answer, gold), count in cells.items():
        both = (right.get(answer, 0.0) + left.get(gold, 0.0)) * (1 - value)
        spread += count / rows * ((1 - both) if answer == gold else both) ** 2
    half = _Z95 * math.sqrt(max(0.0, spread) / rows) / (1 - chance)
    return max(-1.0, value - half), min(1.0, value + half)


def is_constant(values: Sequence[float]) -> bool:
    """Whether all values are the same."""
    return all(value == values[0] for value in values)


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Spearman's rank correlation with mean ranks for ties; None if one side is constant."""
    if len(left) < 2 or is_constant(left) or is_constant(right):
        return None
    return correlation(_ranks(left), _ranks(right))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    first = 0
    while first < len(order):
        end = first
        while end < len(order) and values[order[end]] == values[order[first]]:
            end += 1
        for place in order[first:end]:
            ranks[place] = (first + end - 1) / 2
        first = end
    return ranks


def spearman_interval(correlation: float, rows: int) -> tuple[float, float] | None:
    """Fisher's z with the standard error of Bonett and Wright (2000, Psychometrika 65, 23-28).

    None for fewer than 10 rows, where it is not reliable, and for a perfect correlation, where z is infinite.
    """
    if rows < 10 or abs(correlation) >= 1.0:
        return None
    middle = math.atanh(correlation)
    half = _Z95 * math.sqrt((1 + correlation**2 / 2) / (rows - 3))
    return math.tanh(middle - half), math.tanh(middle + half)


def falls_along(along: Sequence[float], values: Sequence[float]) -> bool:
    """Whether values fall significantly along `along`, by Spearman's correlation.

    Fisher's z with the standard error of Fieller, Hartley and Pearson (1957, Biometrika 44, 470-481).
    """
    value = spearman(along, values)
    if value is None or len(values) <= 3:
        return False
    z = math.atanh(max(value, -0.999999)) * math.sqrt((len(values) - 3) / 1.06)
    return NormalDist().cdf(z) < _FALLS / 2
