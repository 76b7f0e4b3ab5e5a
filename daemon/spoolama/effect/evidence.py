"""How sure a share is: tests that may be looked at after every row, and intervals.

The tests are by betting (Waudby-Smith and Ramdas 2024, J. R. Stat. Soc. B 86, 1-27): a gambler stakes a part
of his money on each row; if the claim to be refuted is true he cannot expect to win, so the chance that he
ever holds 1 / alpha times his money is at most alpha (Ville's inequality). Rows may come in any number, and
the decision to go on may depend on what was seen. Values lie between 0 and 1, and need not be hits or misses.

What they cannot know: rows of one conversation lean on one another, so they tell less than as many rows of
many conversations, and the bound does not hold for them. A form that locks onto one answer in 10 % of its
conversations, and so changes 6 % of the rows, was called harmless in 63 % of 300 simulated jobs, since 4 to 5
conversations often have none of these. That is why a pilot's rows come from several, why what is told of
them says how many, and why guard and audit are there for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = [
    "ALPHA",
    "HARM_STAKES",
    "NOISE_STAKES",
    "PROOF_STAKES",
    "odds_above",
    "paired_odds",
    "refuted_above",
    "refuted_below",
    "share_interval",
]

ALPHA = 0.05
"""Chance that a wrong claim is accepted, over a whole pilot, for each kind of claim: that a form does no
harm, and that it agrees better with gold. Several forms on trial share it. It holds where rows of a
conversation do not lean on one another."""

Stakes = Sequence[tuple[float, float]]
"""(Part of the stake that would lose everything, share of the money that plays it)."""

PROOF_STAKES: Stakes = ((0.97, 0.6), (0.75, 0.4))
"""For proofs that nearly all rows agree: 65 rows without one that differs prove 95 % at alpha 0.05."""

HARM_STAKES: Stakes = ((0.03, 0.2), (0.1, 0.2), (0.25, 0.3), (0.5, 0.3))
"""For proofs that more differ than may, be it a few or nearly all."""

NOISE_STAKES: Stakes = ((0.05, 0.2), (0.1, 0.3), (0.2, 0.3), (0.4, 0.2))
"""For means of values that go both ways."""

_MOST = 700.0
"""Odds are told up to e to this power: a float holds no more."""


def refuted_below(values: Iterable[float], claim: float, stakes: Stakes = PROOF_STAKES) -> float:
    """Odds against "the mean is at most `claim`" from values between 0 and 1: 20 refutes it at alpha 0.05.

    Args:
        values: In the order in which they came.
        claim: Between 0 and 1, both excluded.
        stakes: How the money is spread.
    """
    money = [share for _, share in stakes]
    for value in values:
        money = [
            have * (1 + part / claim * (value - claim)) for have, (part, _) in zip(money, stakes, strict=True)
        ]
    return sum(money)


def refuted_above(values: Iterable[float], claim: float, stakes: Stakes = HARM_STAKES) -> float:
    """Odds against "the mean is at least `claim`", likewise."""
    return refuted_below((1 - value for value in values), 1 - claim, stakes)


def paired_odds(wins: int, losses: int) -> float:
    """Odds against "a win is no likelier than a loss" (McNemar's pairs)."""
    return odds_above(wins, losses, 0.5)


def odds_above(hits: int, misses: int, chance: float) -> float:
    """Odds against "a hit has at most this chance", by a bet spread evenly over all chances above it.

    The mean over p from `chance` to 1 of (p / chance)^hits ((1 - p) / (1 - chance))^misses, which is a beta
    integral. It may be looked at after every row, as `refuted_below`; 1 where there are no rows.
    """
    from scipy.special import betaln
    from scipy.stats import beta

    log = (
        float(betaln(hits + 1, misses + 1))
        + float(beta.logsf(chance, hits + 1, misses + 1))
        - hits * math.log(chance)
        - misses * math.log(1 - chance)
        - math.log(1 - chance)
    )
    return math.exp(min(log, _MOST))


def share_interval(total: float, rows: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a mean of values between 0 and 1; wide rather than wrong.

    For hits and misses it is theirs (1934, Biometrika 26, 404-413). Where values lie between, the sum stands
    for the hits: such values vary less than hits and misses of the same mean do.
    """
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = 0.0 if total <= 0 else float(beta.ppf(tail, total, rows - total + 1))
    high = 1.0 if total >= rows else float(beta.ppf(1 - tail, total + 1, rows - total))
    return low, high
