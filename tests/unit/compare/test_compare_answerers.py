"""The fake answerers do what they are said to do (`testing/effects.py`)."""

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
    Sight,
    file_of,
)

RNG = random.Random(0)
NOTHING = Sight((), 0)
SCALES: tuple[Scale, ...] = (Labels(), Scores())


def conversation(behaviour: Behaviour, rows: list[Row]) -> list[str]:
    """All rows in one conversation, everything in sight."""
    given: list[str] = []
    for row in rows:
        given.append(behaviour.answer(row, Sight(given, len(given)), RNG))
    return given


def share_equal(left: list[str], right: list[str]) -> float:
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)


@pytest.mark.parametrize("scale", SCALES)
def test_with_nothing_in_sight_every_behaviour_answers_as_alone(scale: Scale) -> None:
    """A first row is not harmed, with labels and with scores."""
    behaviours: list[Behaviour] = [
        Ignores(),
        FollowsPrevious(1.0),
        FollowsMajority(1.0, scale),
        Drifts(1.0, scale),
        Better(1.0),
    ]
    for row in file_of(scale, 50, 1):
        assert {b.answer(row, NOTHING, RNG) for b in behaviours} == {row.alone}


def test_who_follows_the_previous_answer_keeps_the_spread_and_loses_the_agreement() -> None:
    """Half of the rows repeat: a third of the answers differ, and each word is as frequent as alone."""
    rows = file_of(Labels(), 4000, 2)
    alone, given = [row.alone for row in rows], conversation(FollowsPrevious(0.5), rows)
    assert share_equal(alone, given) == pytest.approx(1 - 0.5 * 0.655, abs=0.03)
    for label in LABELS:
        assert given.count(label) == pytest.approx(alone.count(label), abs=250)


@pytest.mark.parametrize("scale", SCALES)
def test_who_follows_the_majority_ends_with_one_answer(scale: Scale) -> None:
    """Nine rows of ten do; the most frequent answer takes nearly all."""
    given = conversation(FollowsMajority(0.9, scale), file_of(scale, 300, 3))
    assert max(given.count(answer) for answer in set(given)) > 250


@pytest.mark.parametrize("scale", SCALES)
def test_who_drifts_differs_the_more_the_deeper(scale: Scale) -> None:
    """Hardly at the beginning, in half of the rows at a depth of 500."""
    rows = file_of(scale, 1000, 4)
    alone, given = [row.alone for row in rows], conversation(Drifts(0.001, scale), rows)
    agreement = [share_equal(alone[n : n + 250], given[n : n + 250]) for n in range(0, 1000, 250)]
    assert agreement == sorted(agreement, reverse=True)
    assert agreement[0] > 0.8 > 0.25 > agreement[-1]


def test_who_learns_from_examples_agrees_better_with_gold_in_sight_of_three_that_differ() -> None:
    """Two answers, or three that are the same, teach nothing."""
    rows = file_of(Labels(), 1000, 5)
    better = Better(0.7)

    def rightly(sight: tuple[str, ...]) -> float:
        return share_equal(
            [better.answer(row, Sight(sight, 3), RNG) for row in rows], [row.gold for row in rows]
        )

    assert rightly(LABELS) == pytest.approx(0.6 + 0.7 * 0.4, abs=0.04)
    assert rightly(LABELS[:2]) == rightly(("neutral",) * 3) == pytest.approx(0.6, abs=0.04)


@pytest.mark.parametrize("scale", SCALES)
def test_noise_differs_from_itself_alone_as_much_as_in_conversation(scale: Scale) -> None:
    """Temperature 1: the conversation makes no difference of its own."""
    rows, noisy, rng = file_of(scale, 3000, 6), Noisy(Ignores(), 0.3, scale), random.Random(1)
    once, twice = [noisy.alone(row, rng) for row in rows], [noisy.alone(row, rng) for row in rows]
    given = [noisy.answer(row, Sight(LABELS, 9), rng) for row in rows]
    assert 0.4 < share_equal(once, twice) < 0.8
    assert share_equal(given, once) == pytest.approx(share_equal(once, twice), abs=0.04)


@pytest.mark.parametrize("scale", SCALES)
def test_a_file_is_the_same_for_a_seed_and_sorted_where_it_is_to_be(scale: Scale) -> None:
    """Sorted by the answer given alone, numbers as numbers; gold agrees as often as asked for."""
    assert file_of(scale, 100, 7) == file_of(scale, 100, 7) != file_of(scale, 100, 8)
    rows = file_of(scale, 2000, 7, order="sorted", right=0.75)
    keys = [row.alone if scale == Labels() else float(row.alone) for row in rows]
    assert all(a <= b for a, b in pairwise(keys))  # type: ignore[operator]
    wrong = sum(row.alone != row.gold for row in rows) / len(rows)
    assert wrong == pytest.approx(0.25, abs=0.06)
