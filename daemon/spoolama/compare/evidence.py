"""Tests hypotheses about shares of rows, by tests that are valid at any time, and computes intervals.

The tests are by betting (Waudby-Smith and Ramdas 2024, J. R. Stat. Soc. B 86, 1-27): a gambler stakes a part
of his money on each row. If the claim to be refuted is true, he cannot expect to win, so the probability that
he ever holds 1 / alpha times his money is at most alpha (Ville's inequality). So the number of rows need not
be fixed, and the decision to continue may depend on the rows so far. Values lie between 0 and 1.

The bound requires independent rows. Rows of one conversation depend on one another, so they prove less than
the same number of rows of many conversations. Therefore the pilot takes its rows from several places of the
file, and the audit takes a few of each segment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

ALPHA = 0.05
"""Probability of a false proof, at whatever time the test is read."""

_STAKES = ((0.03, 0.2), (0.1, 0.2), (0.25, 0.3), (0.5, 0.3))
"""(Part of the stake that could lose everything, share of the money that bets it): several stakes, so that
both a few and many different rows can be a proof."""

_MOST = 700.0
"""Odds are at most e to this power, because of the range of a float."""
_Z95 = 1.959963984540054


def refuted_above(values: Iterable[float], claim: float) -> float:
    """Return the odds against "the mean is at least `claim`"; 20 refutes it at alpha 0.05.

    The order of the values does not matter.

    Args:
        values: Between 0 and 1.
        claim: Above 0 and below 1.
    """
    money = [share for _, share in _STAKES]
    for value in values:
        money = [
            have * (1 + part / (1 - claim) * (claim - value))
            for have, (part, _) in zip(money, _STAKES, strict=True)
        ]
    return sum(money)


def paired_odds(wins: int, losses: int) -> float:
    """Return the odds against "a win is no likelier than a loss" (McNemar's pairs)."""
    return odds_above(wins, losses, 0.5)


def odds_above(hits: int, misses: int, chance: float) -> float:
    """Return the odds against "a hit has at most this chance", with bets on all chances above it.

    The mean over p from `chance` to 1 of (p / chance)^hits ((1 - p) / (1 - chance))^misses. That is a beta
    integral, and its tail is a sum of binomial terms. Valid after every row; 1 without rows.
    """
    rows = hits + misses
    beta = math.lgamma(hits + 1) + math.lgamma(misses + 1) - math.lgamma(rows + 2)
    tail = _log_at_most(hits, rows + 1, chance)
    log = beta + tail - hits * math.log(chance) - (misses + 1) * math.log(1 - chance)
    return math.exp(min(log, _MOST))


def binomial_at_most(hits: int, rows: int, chance: float) -> float:
    """Return the probability of at most `hits` hits, if each row is one with this chance (above 0, below
    1)."""
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
    """Return the 95 % interval of a mean of values from 0 to 1 (Wilson 1927, J. Am. Stat. Assoc. 22,
    209-212).

    It is exact for hits and misses. Other values vary less than hits and misses with the same mean, so for
    them the interval is slightly too wide.
    """
    share, z2 = total / rows, _Z95**2
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = _Z95 / (1 + z2 / rows) * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows**2))
    return max(0.0, middle - half), min(1.0, middle + half)
