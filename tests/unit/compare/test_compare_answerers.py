"""The scripted answerers behave as documented (`tests/support/effects.py`)."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from support.effects import (
    LABELS,
    Behaviour,
    Better,
    Drifts,
    FollowsMajority,
    FollowsPrevious,
    Ignores,
    Labels,
    Noisy,
    Row,
    Scale,
    Scores,
    VisibleRows,
    file_of,
)

RNG = random.Random(0)
NOTHING = VisibleRows((), 0)
SCALES: tuple[Scale, ...] = (Labels(), Scores())


def conversation(behaviour: Behaviour, rows: list[Row]) -> list[str]:
    """Answer all rows in one conversation in which each row sees all earlier ones."""
    given: list[str] = []
    for row in rows:
        given.append(behaviour.answer(row, VisibleRows(given, len(given)), RNG))
    return given


def share_equal(left: list[str], right: list[str]) -> float:
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)


@pytest.mark.parametrize("scale", SCALES)
def test_without_visible_rows_every_behaviour_answers_as_in_isolation(scale: Scale) -> None:
    """Without visible rows every behaviour answers as in isolation, with labels and with scores."""
    behaviours: list[Behaviour] = [
        Ignores(),
        FollowsPrevious(1.0),
        FollowsMajority(1.0, scale),
        Drifts(1.0, scale),
        Better(1.0),
    ]
    for row in file_of(scale, 50, 1):
        assert {b.answer(row, NOTHING, RNG) for b in behaviours} == {row.alone}


def test_following_the_previous_answer_keeps_the_distribution_and_lowers_agreement() -> None:
    """If half of the rows repeat the previous answer, a third of the answers differ and the distribution
    stays.
    """
    rows = file_of(Labels(), 4000, 2)
    alone, given = [row.alone for row in rows], conversation(FollowsPrevious(0.5), rows)
    assert share_equal(alone, given) == pytest.approx(1 - 0.5 * 0.655, abs=0.03)
    for label in LABELS:
        assert given.count(label) == pytest.approx(alone.count(label), abs=250)


@pytest.mark.parametrize("scale", SCALES)
def test_following_the_majority_ends_with_one_answer(scale: Scale) -> None:
    """If nine rows in ten follow the majority, the most frequent answer takes nearly all rows."""
    given = conversation(FollowsMajority(0.9, scale), file_of(scale, 300, 3))
    assert max(given.count(answer) for answer in set(given)) > 250


@pytest.mark.parametrize("scale", SCALES)
def test_a_drift_grows_with_the_depth(scale: Scale) -> None:
    """A drift changes few answers at the beginning and half of them at a depth of 500."""
    rows = file_of(scale, 1000, 4)
    alone, given = [row.alone for row in rows], conversation(Drifts(0.001, scale), rows)
    agreement = [share_equal(alone[n : n + 250], given[n : n + 250]) for n in range(0, 1000, 250)]
    assert agreement == sorted(agreement, reverse=True)
    assert agreement[0] > 0.8 > 0.25 > agreement[-1]


def test_three_different_visible_answers_improve_agreement_with_gold() -> None:
    """Three different visible answers improve the agreement with gold; two, or three equal ones, do not."""
    rows = file_of(Labels(), 1000, 5)
    better = Better(0.7)

    def rightly(visible: tuple[str, ...]) -> float:
        return share_equal(
            [better.answer(row, VisibleRows(visible, 3), RNG) for row in rows], [row.gold for row in rows]
        )

    assert rightly(LABELS) == pytest.approx(0.6 + 0.7 * 0.4, abs=0.04)
    assert rightly(LABELS[:2]) == rightly(("neutral",) * 3) == pytest.approx(0.6, abs=0.04)


@pytest.mark.parametrize("scale", SCALES)
def test_noise_is_the_same_in_isolation_and_in_conversation(scale: Scale) -> None:
    """At temperature 1 answers differ as much in isolation as in conversation."""
    rows, noisy, rng = file_of(scale, 3000, 6), Noisy(Ignores(), 0.3, scale), random.Random(1)
    once, twice = [noisy.alone(row, rng) for row in rows], [noisy.alone(row, rng) for row in rows]
    given = [noisy.answer(row, VisibleRows(LABELS, 9), rng) for row in rows]
    assert 0.4 < share_equal(once, twice) < 0.8
    assert share_equal(given, once) == pytest.approx(share_equal(once, twice), abs=0.04)


@pytest.mark.parametrize("scale", SCALES)
def test_a_file_depends_on_its_seed_and_is_sorted_on_request(scale: Scale) -> None:
    """One seed gives one file, sorted by the isolated answer where asked, with the given share of gold."""
    assert file_of(scale, 100, 7) == file_of(scale, 100, 7) != file_of(scale, 100, 8)
    rows = file_of(scale, 2000, 7, order="sorted", right=0.75)
    keys = [row.alone if scale == Labels() else float(row.alone) for row in rows]
    assert all(a <= b for a, b in pairwise(keys))  # type: ignore[operator]
    wrong = sum(row.alone != row.gold for row in rows) / len(rows)
    assert wrong == pytest.approx(0.25, abs=0.06)
