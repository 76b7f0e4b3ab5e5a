"""Evidence: odds and intervals against computations of another kind."""

from __future__ import annotations

import math
import random

import pytest
from scipy.integrate import quad
from scipy.stats import binomtest

from spoolama.effect.evidence import (
    ALPHA,
    HARM_STAKES,
    NOISE_STAKES,
    PROOF_STAKES,
    odds_above,
    paired_odds,
    refuted_above,
    refuted_below,
    share_interval,
)


@pytest.mark.parametrize("stakes", [PROOF_STAKES, HARM_STAKES, NOISE_STAKES])
def test_stakes_spread_all_of_the_money_and_never_all_of_it_on_one_row(
    stakes: list[tuple[float, float]],
) -> None:
    """The shares add up to one, so that odds start at 1, and no row can lose everything."""
    assert math.isclose(sum(share for _, share in stakes), 1.0)
    assert all(0 < part < 1 for part, _ in stakes)
    assert refuted_below([], 0.5, stakes) == pytest.approx(1.0)


def test_65_rows_that_agree_prove_95_percent_and_64_do_not() -> None:
    """What the docstring promises is what the formula gives."""
    assert refuted_below([1.0] * 65, 0.95) >= 1 / ALPHA > refuted_below([1.0] * 64, 0.95)


@pytest.mark.parametrize(
    ("claim", "stakes"), [(0.95, PROOF_STAKES), (0.5, NOISE_STAKES), (0.05, HARM_STAKES)]
)
def test_a_true_claim_is_refuted_in_at_most_five_percent_even_if_looked_at_after_every_row(
    claim: float, stakes: list[tuple[float, float]]
) -> None:
    """Of 2,000 sequences of 200 rows at the claimed mean, at most alpha (and 3 deviations) reach 20."""
    rng, wrong = random.Random(7), 0
    for _ in range(2000):
        money = [share for _, share in stakes]
        for _ in range(200):
            value = float(rng.random() < claim)
            money = [
                m * (1 + part / claim * (value - claim)) for m, (part, _) in zip(money, stakes, strict=True)
            ]
            if sum(money) >= 1 / ALPHA:
                wrong += 1
                break
    assert wrong <= 2000 * ALPHA + 3 * math.sqrt(2000 * ALPHA * (1 - ALPHA))
    assert wrong > 0, "a test that never refutes by chance refutes nothing"


def test_the_bets_are_fair_at_the_claim_and_lose_below_it() -> None:
    """One row more leaves the odds as they are on average at the claimed mean, and lowers them below it."""

    def mean_of_next(mean: float) -> float:
        return mean * refuted_below([1.0], 0.9) + (1 - mean) * refuted_below([0.0], 0.9)

    assert mean_of_next(0.9) == pytest.approx(1.0)
    assert mean_of_next(0.8) < 1.0 < mean_of_next(0.95)


def test_refuting_from_above_is_refuting_the_contrary_from_below() -> None:
    """Hits and misses exchanged, both give the same odds."""
    values = [1.0, 0.0, 0.25, 1.0, 0.5]
    assert refuted_above(values, 0.3) == pytest.approx(
        refuted_below([1 - value for value in values], 0.7, HARM_STAKES)
    )


def test_three_of_eight_settle_a_suspicion_and_two_do_not() -> None:
    """The guard's threshold of 20 lies between them at a margin of 0.05."""

    def odds(differ: int) -> float:
        return refuted_above([0.0] * differ + [1.0] * (8 - differ), 0.95)

    assert odds(2) < 20 <= odds(3)


@pytest.mark.parametrize(
    ("hits", "misses", "chance"), [(0, 0, 0.5), (7, 0, 0.5), (6, 2, 1 / 3), (3, 11, 0.5)]
)
def test_odds_are_the_mean_over_all_chances_above(hits: int, misses: int, chance: float) -> None:
    """The closed form is the integral that the docstring names."""
    area, _ = quad(lambda p: (p / chance) ** hits * ((1 - p) / (1 - chance)) ** misses, chance, 1)
    assert odds_above(hits, misses, chance) == pytest.approx(area / (1 - chance), rel=1e-6)


def test_pairs_without_a_difference_say_nothing() -> None:
    """No wins and no losses are odds of one, and as many losses as wins are less."""
    assert paired_odds(0, 0) == pytest.approx(1.0)
    assert paired_odds(10, 10) < 1.0


def test_odds_stay_numbers_whatever_the_counts() -> None:
    """Ten thousand wins overflow no float, and ten thousand losses are no division by zero."""
    assert paired_odds(10_000, 0) > 1e300
    assert math.isfinite(paired_odds(10_000, 0))
    assert 0 <= paired_odds(0, 10_000) < 1e-3


def test_paired_odds_are_fair_at_one_half() -> None:
    """From any standing, the mean of the odds after one pair more is the odds before it."""
    for wins, losses in ((0, 0), (3, 1), (2, 9)):
        after = (paired_odds(wins + 1, losses) + paired_odds(wins, losses + 1)) / 2
        assert after == pytest.approx(paired_odds(wins, losses))


@pytest.mark.parametrize(("hits", "rows"), [(0, 10), (10, 10), (1, 200), (188, 200), (5, 8)])
def test_intervals_of_hits_are_those_of_clopper_and_pearson(hits: int, rows: int) -> None:
    """Against scipy's own exact interval."""
    exact = binomtest(hits, rows).proportion_ci(0.95, method="exact")
    assert share_interval(hits, rows) == pytest.approx((exact.low, exact.high))


def test_intervals_are_symmetric_and_narrow_with_the_level() -> None:
    """What is true of hits is true of misses; and less sure is narrower."""
    low, high = share_interval(13, 40)
    assert share_interval(27, 40) == pytest.approx((1 - high, 1 - low))
    less = share_interval(13, 40, level=0.8)
    assert low < less[0] < 13 / 40 < less[1] < high
