"""Evidence: odds, probabilities and intervals compared with independent computations."""

from __future__ import annotations

import math
import random

import pytest

from spoolama.compare.evidence import (
    ALPHA,
    binomial_at_most,
    odds_above,
    paired_odds,
    refuted_above,
    wilson,
)


def test_odds_start_at_one_and_never_reach_zero() -> None:
    """Odds start at one, and a thousand rows that agree do not bring them to zero."""
    assert refuted_above([], 0.975) == pytest.approx(1.0)
    assert 0 < refuted_above([1.0] * 1000, 0.975) < 1


def test_a_true_claim_is_refuted_in_at_most_five_percent_even_if_read_after_every_row() -> None:
    """Of 2,000 sequences of 200 rows at the claimed mean, at most alpha (plus 3 deviations)
    reach odds of 20.
    """
    rng, wrong = random.Random(7), 0
    for _ in range(2000):
        values: list[float] = []
        for _ in range(200):
            values.append(float(rng.random() < 0.95))
            # Only a value below the claim raises the odds.
            if values[-1] == 0.0 and refuted_above(values, 0.95) >= 1 / ALPHA:
                wrong += 1
                break
    assert wrong <= 2000 * ALPHA + 3 * math.sqrt(2000 * ALPHA * (1 - ALPHA))
    assert wrong > 0, "a test that never refutes by chance refutes nothing"


def test_the_bets_are_fair_at_the_claim_and_lose_above_it() -> None:
    """On average one more row keeps the odds at the claimed mean and lowers them above it."""

    def mean_of_next(mean: float) -> float:
        return mean * refuted_above([1.0], 0.9) + (1 - mean) * refuted_above([0.0], 0.9)

    assert mean_of_next(0.9) == pytest.approx(1.0)
    assert mean_of_next(0.95) < 1.0 < mean_of_next(0.8)


def test_the_order_of_rows_makes_no_difference() -> None:
    """The order of rows, which depends on the lanes, does not change the odds."""
    values = [1.0, 0.0, 0.25, 1.0, 0.5]
    assert refuted_above(values, 0.7) == pytest.approx(refuted_above(sorted(values), 0.7))


@pytest.mark.parametrize(
    ("hits", "misses", "chance", "odds"),
    [(0, 0, 0.5, 1.0), (7, 0, 0.5, 31.875), (6, 2, 1 / 3, 9.682539682), (3, 11, 0.5, 0.1054945055)],
)
def test_odds_are_the_mean_over_all_chances_above(hits: int, misses: int, chance: float, odds: float) -> None:
    """The closed form equals the integral in the docstring, computed by scipy's quadrature."""
    assert odds_above(hits, misses, chance) == pytest.approx(odds, rel=1e-9)


@pytest.mark.parametrize(
    ("hits", "rows", "chance", "share"),
    [
        (0, 10, 0.025, 0.7763296209),
        (3, 20, 0.025, 0.9986272426),
        (60, 180, 1 / 3, 0.5349695252),
        (9, 10, 0.9, 0.6513215599),
        (-1, 10, 0.5, 0.0),
    ],
)
def test_binomial_probabilities_are_those_of_scipy(hits: int, rows: int, chance: float, share: float) -> None:
    """The expected values come from `scipy.stats.binom.cdf`."""
    assert binomial_at_most(hits, rows, chance) == pytest.approx(share, rel=1e-9)


def test_pairs_without_a_difference_give_odds_of_one() -> None:
    """No wins and no losses give odds of one, and as many losses as wins give less."""
    assert paired_odds(0, 0) == pytest.approx(1.0)
    assert paired_odds(10, 10) < 1.0


def test_odds_are_finite_for_large_counts() -> None:
    """Ten thousand wins or losses neither overflow nor take the logarithm of zero."""
    assert paired_odds(10_000, 0) > 1e300
    assert math.isfinite(paired_odds(10_000, 0))
    assert 0 <= paired_odds(0, 10_000) < 1e-3


def test_paired_odds_are_fair_at_one_half() -> None:
    """The mean of the odds after one more pair equals the odds before it."""
    for wins, losses in ((0, 0), (3, 1), (2, 9)):
        after = (paired_odds(wins + 1, losses) + paired_odds(wins, losses + 1)) / 2
        assert after == pytest.approx(paired_odds(wins, losses))


@pytest.mark.parametrize(
    ("hits", "rows", "low", "high"),
    [
        (0, 10, 0.0, 0.277532800),
        (10, 10, 0.722467200, 1.0),
        (1, 200, 0.000883169, 0.027773704),
        (188, 200, 0.898068307, 0.965347806),
        (5, 8, 0.305742395, 0.863155714),
    ],
)
def test_wilsons_interval_is_that_of_scipy(hits: int, rows: int, low: float, high: float) -> None:
    """The expected values come from `scipy.stats.binomtest(...).proportion_ci(method="wilson")`."""
    assert wilson(hits, rows) == pytest.approx((low, high), abs=1e-8)
