"""How sure a share is: tests that may be read after every row, and intervals.

The tests are by betting (Waudby-Smith and Ramdas 2024, J. R. Stat. Soc. B 86, 1-27): a gambler stakes a part
of his money on each row; if the claim to be refuted is true he cannot expect to win, so the chance that he
ever holds 1 / alpha times his money is at most alpha (Ville's inequality). Rows may come in any number, and
the decision to go on may depend on what was seen. Values lie between 0 and 1, and need not be hits or misses.

What they cannot know: rows of one conversation depend on one another, so they prove less than as many rows of
many conversations, and the bound does not hold for them. That is why the pilot takes its rows from several
places of the file, and the audit takes a few of each segment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["ALPHA", "binomial_at_most", "odds_above", "paired_odds", "refuted_above", "wilson"]

ALPHA = 0.05
"""Chance that a wrong claim is accepted, whenever it is read."""

_STAKES = ((0.03, 0.2), (0.1, 0.2), (0.25, 0.3), (0.5, 0.3))
"""(Part of the stake that would lose everything, share of the money that plays it): for proofs that more rows
differ than may, be it a few or nearly all."""

_MOST = 700.0
"""Odds are given up to e to this power: a float holds no more."""
_Z95 = 1.959963984540054


def refuted_above(values: Iterable[float], claim: float) -> float:
    """Odds against "the mean is at least `claim`" from values between 0 and 1: 20 refutes it at alpha 0.05.

    The order of the values makes no difference.

    Args:
        values: What was seen.
        claim: Between 0 and 1, both excluded.
    """
    money = [share for _, share in _STAKES]
    for value in values:
        money = [
            have * (1 + part / (1 - claim) * (claim - value))
            for have, (part, _) in zip(money, _STAKES, strict=True)
        ]
    return sum(money)


def paired_odds(wins: int, losses: int) -> float:
    """Odds against "a win is no likelier than a loss" (McNemar's pairs)."""
    return odds_above(wins, losses, 0.5)


def odds_above(hits: int, misses: int, chance: float) -> float:
    """Odds against "a hit has at most this chance", by a bet spread evenly over all chances above it.

    The mean over p from `chance` to 1 of (p / chance)^hits ((1 - p) / (1 - chance))^misses. That is a beta
    integral, and its tail is a sum of binomial terms. It may be read after every row; 1 without rows.
    """
    rows = hits + misses
    beta = math.lgamma(hits + 1) + math.lgamma(misses + 1) - math.lgamma(rows + 2)
    tail = _log_at_most(hits, rows + 1, chance)
    log = beta + tail - hits * math.log(chance) - (misses + 1) * math.log(1 - chance)
    return math.exp(min(log, _MOST))


def binomial_at_most(hits: int, rows: int, chance: float) -> float:
    """Probability of so many hits or fewer, where each row is one with this chance (above 0 and below 1)."""
    return 0.0 if hits < 0 else min(1.0, math.exp(_log_at_most(hits, rows, chance)))


def _log_at_most(hits: int, rows: int, chance: float) -> float:
    terms = [
        math.lgamma(rows + 1)
        - math.lgamma(k + 1)
        - math.lgamma(rows - k + 1)
        + k * math.log(chance)
        + (rows - k) * math.log(1 - chance)
        for k in range(hits + 1)
    ]
    most = max(terms)
    return most + math.log(math.fsum(math.exp(term - most) for term in terms))


def wilson(total: float, rows: int) -> tuple[float, float]:
    """95 % interval of a mean of values between 0 and 1 (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212).

    For hits and misses it is his. Where values lie between, the sum stands for the hits: such values vary
    less than hits and misses of the same mean do, so the interval is rather too wide.
    """
    share, z2 = total / rows, _Z95**2
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = _Z95 / (1 + z2 / rows) * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows**2))
    return max(0.0, middle - half), min(1.0, middle + half)
