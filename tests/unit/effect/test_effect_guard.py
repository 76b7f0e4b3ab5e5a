"""Guard: what is suspicious, and what settles it."""

from __future__ import annotations

import random

import pytest

from spoolama.effect.gold import Pairs
from spoolama.effect.guard import CHECKS, Settled, rows_to_check, settle, settle_by_gold, suspicion
from spoolama.effect.likeness import Likeness, likeness_of

WORDS = ("negative", "neutral", "positive")
LABELS = Likeness("labels")
MIXED = [WORDS[n % 3] for n in range(60)]


def settled(given: list[str], alone: list[str], again: list[str] | None = None, *earlier: Settled) -> Settled:
    """A suspicion of labels, at the ordinary margin."""
    return settle(4, "why", given, alone, again or [], LABELS, 0.05, earlier)


def test_a_collapsed_segment_is_suspicious_even_without_anything_to_compare_with() -> None:
    """All answers are one; the sentence names it."""
    assert suspicion(["Positive"] * 39 + ["neutral"], []) == '39 of 40 answers are "positive"'
    assert suspicion(["positive"] * 60, MIXED) is not None


def test_one_answer_everywhere_is_as_it_should_be_where_alone_gives_hardly_another() -> None:
    """What alone gives in four of five rows may fill a segment; what it gives in half of them may not."""
    assert suspicion(["no"] * 30, ["no"] * 29 + ["yes"]) is None
    assert suspicion(["no"] * 30, ["no"] * 15 + ["yes"] * 15) is not None


def test_the_same_spread_is_not_suspicious_and_another_one_is() -> None:
    """Labels by their counts."""
    assert suspicion([WORDS[n % 3] for n in range(120)], MIXED) is None
    tilted = ["positive"] * 80 + ["negative"] * 40
    why = suspicion(tilted, MIXED)
    assert why is not None
    assert "spread otherwise" in why


def test_numbers_are_compared_by_their_whole_spread() -> None:
    """A shift of one deviation is seen, numbers of the same kind are not suspicious."""
    rng = random.Random(3)
    alone = [f"{rng.gauss(5, 1):.2f}" for _ in range(60)]
    assert suspicion([f"{rng.gauss(5, 1):.2f}" for _ in range(100)], alone) is None
    assert suspicion([f"{rng.gauss(6, 1):.2f}" for _ in range(100)], alone) is not None


def test_free_texts_which_all_differ_raise_no_suspicion_but_one_text_for_all_does() -> None:
    """There is no spread to compare, only a collapse to be seen."""
    alone = [f"text {n} of its own" for n in range(40)]
    assert suspicion([f"another text, {n}" for n in range(60)], alone) is None
    assert suspicion(["the same text"] * 60, alone) is not None


def test_short_segments_are_left_alone_and_long_ones_looked_into_where_nothing_can_be_compared() -> None:
    """14 answers are too few whatever they say; 100 are worth eight questions if alone is unknown."""
    assert suspicion(["positive"] * 14, MIXED) is None
    assert suspicion(MIXED, []) is None
    assert suspicion(MIXED * 2, MIXED[:19]) is not None
    assert suspicion(MIXED * 2, MIXED[:20]) is None


def test_a_sorted_file_raises_a_suspicion_that_is_settled_as_unfounded() -> None:
    """The rows that are asked again are answered the same: no harm, however odd the spread."""
    segment = ["negative"] * 100
    why = suspicion(segment, MIXED)
    assert why is not None
    asked = rows_to_check(range(100), 4, seed=1)
    found = settled([segment[n] for n in asked], ["negative"] * len(asked))
    assert (found.harm, found.differ, found.rows) == (False, 0, CHECKS)


def test_three_of_eight_that_differ_settle_the_first_suspicion_and_four_a_later_one() -> None:
    """After one that proved unfounded more is needed; after one that was founded no more than at first."""

    def differ(number: int, *earlier: Settled) -> bool:
        return settled(["a"] * 8, ["b"] * number + ["a"] * (8 - number), None, *earlier).harm

    unfounded, founded = settled(["a"] * 8, ["a"] * 8), settled(["a"] * 8, ["b"] * 8)
    assert [differ(n) for n in (2, 3)] == [False, True]
    assert [differ(n, unfounded) for n in (3, 4)] == [False, True]
    assert differ(3, founded)


def test_in_a_sorted_file_whose_rows_differ_within_the_margin_hardly_a_job_is_accused() -> None:
    """Fifty suspicions a job, one row of twenty that differs: in under 5 % of 400 jobs one is called harm."""
    rng, wrong = random.Random(11), 0
    for _ in range(400):
        earlier: list[Settled] = []
        for _ in range(50):
            alone = ["b" if rng.random() < 0.05 else "a" for _ in range(CHECKS)]
            earlier.append(settled(["a"] * CHECKS, alone, None, *earlier))
            if earlier[-1].harm:
                wrong += 1
                break
    assert wrong < 20


def noise(rng: random.Random) -> str:
    return rng.choice("aaab")


def test_where_alone_differs_from_alone_the_same_noise_is_no_harm() -> None:
    """Fifty suspicions a job, settled by rows whose three answers are of one kind: under 5 % of 300 jobs."""
    rng, wrong = random.Random(5), 0
    for _ in range(300):
        earlier: list[Settled] = []
        for _ in range(50):
            given, alone, again = ([noise(rng) for _ in range(CHECKS)] for _ in range(3))
            earlier.append(settled(given, alone, again, *earlier))
            if earlier[-1].harm:
                wrong += 1
                break
    assert wrong < 15


def test_where_alone_differs_from_alone_a_job_that_collapsed_is_found_by_all_suspicions_together() -> None:
    """No segment need be sure by itself: in 100 jobs of 20 such segments, all are found."""
    rng = random.Random(6)
    for _ in range(100):
        earlier: list[Settled] = []
        for _ in range(20):
            alone, again = ([noise(rng) for _ in range(CHECKS)] for _ in range(2))
            given = ["c" if rng.random() < 0.5 else noise(rng) for _ in range(CHECKS)]
            earlier.append(settled(given, alone, again, *earlier))
        assert any(one.harm for one in earlier)


def test_noise_is_told_beside_what_differs() -> None:
    """Both counts, and how often the conversation's answer was the odd one out."""
    found = settled(["c", "a", "a"], ["a", "a", "b"], ["a", "b", "c"])
    assert (found.differ, found.floor, found.rows) == (2, 2, 3)
    assert (found.odd, found.told) == (1, 2), "three different answers tell nothing"


def test_numbers_count_by_how_far_they_are_off() -> None:
    """A little off in every row is no harm, far off in every row is."""
    like = likeness_of([str(n) for n in range(101)])
    alone = [str(n) for n in range(10, 90, 10)]
    near = settle(0, "why", [f"{float(n) + 1}" for n in alone], alone, [], like, 0.05)
    far = settle(0, "why", [f"{(float(n) + 50) % 100}" for n in alone], alone, [], like, 0.05)
    assert not near.harm
    assert far.harm
    assert 0 < near.differ < 0.2


def test_a_form_chosen_by_gold_is_judged_by_gold() -> None:
    """Losing seven rows to alone and winning none is harm; winning as many is what it was chosen for."""
    assert settle_by_gold(1, "why", Pairs(0, 7, 24, "")).harm
    assert not settle_by_gold(1, "why", Pairs(7, 0, 24, "")).harm
    assert not settle_by_gold(1, "why", Pairs(0, 7, 24, ""), [settled(["a"] * 8, ["a"] * 8)]).harm


def test_rows_to_check_are_the_same_at_every_start_and_never_more_than_there_are() -> None:
    """Seeded by job and segment."""
    assert rows_to_check(range(50), 2, 1) == rows_to_check(range(50), 2, 1)
    assert rows_to_check(range(50), 2, 1) != rows_to_check(range(50), 3, 1)
    assert rows_to_check([4, 9], 0, 1) == [4, 9]


@pytest.mark.parametrize("again", [[], ["a"] * 8])
def test_a_verdict_survives_the_ledger(again: list[str]) -> None:
    """What was written is what is read, and keys that others added do not hinder."""
    found = settled(["b"] * 8, ["a"] * 8, again)
    assert found.harm
    assert Settled.from_json({**found.to_json(), "redone": 3}) == found
