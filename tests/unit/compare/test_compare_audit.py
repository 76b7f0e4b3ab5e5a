"""Audit: which rows are asked again, and what their answers show."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolama.compare.audit import (
    CHECKS,
    AuditBudget,
    AuditedRow,
    Evidence,
    budget_of,
    looks_odd,
    needed_in_segment,
    rows_to_audit,
    smallest_harm,
    sure_of_segment,
    weigh,
    weigh_by_gold,
)
from spoolama.compare.similarity import Similarity, similarity_of

pytestmark = pytest.mark.slow

LABELS = Similarity("labels")
OTHER = {"a": "b", "b": "c", "c": "a"}


# --- which rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "total", "noisy", "budget"),
    [
        (None, 100, False, AuditBudget(20, 0)),
        (None, 12, False, AuditBudget(12, 0)),
        (None, 3000, False, AuditBudget(60, 0)),
        (None, 10_000, False, AuditBudget(180, 20)),
        (None, 10_000, True, AuditBudget(360, 40)),
        (None, 1_000_000, False, AuditBudget(360, 40)),
        (0, 10_000, False, AuditBudget(0, 0)),
        (5, 10_000, False, AuditBudget(5, 0)),
        (80, 10_000, False, AuditBudget(72, 8)),
        (9000, 1000, False, AuditBudget(900, 100)),
    ],
)
def test_the_budget_is_a_share_of_the_rows_within_bounds(
    asked: int | None, total: int, noisy: bool, budget: AuditBudget
) -> None:
    """The audit takes 2 % of the rows (4 % above temperature 0), from 20 to 400; from 80 on a tenth is for
    odd segments.
    """
    assert budget_of(asked, total, noisy=noisy) == budget


@given(st.integers(1, 5000), st.integers(1, 400), st.integers(1, 300))
def test_the_sample_is_spread_evenly_from_the_start_and_spent_in_full(
    total: int, sample: int, segment: int
) -> None:
    """The samples of all segments add up to the budget, and no segment has more than one row
    above its share.
    """
    sample = min(sample, total)
    firsts = range(0, total, segment)
    needed = [needed_in_segment(n, min(n + segment, total) - 1, total, sample) for n in firsts]
    assert sum(needed) == sample
    assert all(0 <= n <= segment for n in needed)
    assert max(needed) - min(needed[:-1] or needed) <= 1


def test_rows_are_drawn_by_seed_and_segment_and_those_asked_before_come_first() -> None:
    """Seed and segment decide the sample, a restart takes the same rows, and rows asked by an earlier version
    count.
    """
    drawn = rows_to_audit(range(100, 300), (), 5, 3, 7)
    assert drawn == rows_to_audit(range(100, 300), drawn[:2], 5, 3, 7)
    assert drawn != rows_to_audit(range(100, 300), (), 5, 3, 8)
    assert drawn != rows_to_audit(range(100, 300), (), 5, 4, 7)
    assert {120, 130} <= set(rows_to_audit(range(100, 300), {120, 130, 999}, 5, 3, 7))
    assert rows_to_audit([3, 8], (), 5, 0, 1) == [3, 8]


def test_a_segment_with_one_answer_unlike_isolated_ones_looks_odd() -> None:
    """A segment is compared with its own isolated answers, or with those of other segments if it has none."""
    locked = ["a"] * 58 + ["b", "A "]
    assert looks_odd(locked, ["a", "b"], []) == '59 of 60 answers are "a"'
    assert looks_odd(locked, ["a", "a"], ["b"] * 50) is None
    assert looks_odd(locked, [], ["a"] * 7 + ["b"] * 3) is not None
    assert looks_odd(locked, [], ["a"] * 8 + ["b"] * 2) is None
    assert looks_odd(locked, [], []) is not None
    assert looks_odd(["a"] * 40 + ["b"] * 20, ["c"], []) is None
    assert looks_odd(["a"] * 14, ["b"], []) is None, "few rows may well have one answer"


# --- what they show ------------------------------------------------------------------------------------


def rows_of(number: int, differ: int, *, repeats: bool = True) -> list[AuditedRow]:
    """Rows with three labels; the conversation changes the answers of the first ones."""
    found = []
    for n in range(number):
        label = "abc"[n % 3]
        given = OTHER[label] if n < differ else label
        again = None if n >= differ else label if repeats else OTHER[given]
        found.append(AuditedRow(n, given, label, again))
    return found


def quiet(number: int, differ: int) -> Evidence:
    return weigh(rows_of(number, differ), LABELS, 0.05, noisy=False)


@pytest.mark.parametrize(
    ("rows", "differ", "now", "at_end"),
    [
        (0, 0, False, False),
        (2, 2, True, True),
        (8, 3, True, True),
        (20, 2, False, False),
        (20, 3, False, True),
        (180, 9, False, False),
        (180, 10, False, True),
        (180, 15, True, True),
        (400, 21, False, True),
        (400, 20, False, False),
    ],
)
def test_harm_is_shown_beyond_the_margin_and_beyond_chance(
    rows: int, differ: int, now: bool, at_end: bool
) -> None:
    """Harm is shown by odds at any time and by the exact test at the end, and never at 5 % or less."""
    found = quiet(rows, differ)
    assert (found.shows(), found.shows_at_end()) == (now, at_end)


def test_isolated_answers_that_do_not_repeat_show_no_harm() -> None:
    """At temperature 0 a differing row is asked once more, and if that differs too, it shows nothing."""
    flips = [AuditedRow(n, "a", "b", "ab"[n % 2]) for n in range(40)] + rows_of(100, 0)
    found = weigh(flips, LABELS, 0.05, noisy=False)
    assert not found.shows_at_end()
    assert weigh(rows_of(40, 20, repeats=False), LABELS, 0.05, noisy=False).changed <= 0
    mixed = [*rows_of(100, 30), AuditedRow(900, "a", "b", "a")]
    assert weigh(mixed, LABELS, 0.05, noisy=False).shows(), "one that does not repeat hides no harm"


def noisy(rows: int, harm: float, seed: int) -> list[AuditedRow]:
    """A quarter of all answers are random, and this many more in the conversation."""
    rng = random.Random(seed)

    def roll(label: str) -> str:
        return rng.choice("abc") if rng.random() < 0.25 else label

    found = []
    for n in range(rows):
        label = "abc"[n % 3]
        given = OTHER[label] if rng.random() < harm else roll(label)
        found.append(AuditedRow(n, given, roll(label), roll(label)))
    return found


def alarmed(draw: Callable[[int], list[AuditedRow]], seed: int, *, noise: bool) -> bool:
    """Whether harm is reported, if it is evaluated after every four rows and at the end."""
    rows = draw(seed)
    looks = range(4, len(rows) + 1, 4)
    found = [weigh(rows[:n], LABELS, 0.05, noisy=noise) for n in looks]
    return any(one.shows() for one in found) or found[-1].shows_at_end()


def test_false_alarms_are_rare_after_repeated_evaluation() -> None:
    """If nothing or half the margin changes, at most one job in twenty of 300 gives an alarm."""

    def half(seed: int) -> list[AuditedRow]:
        rng = random.Random(seed)
        return [
            AuditedRow(n, "b" if changed else "a", "a", "a" if changed else None)
            for n in range(200)
            for changed in [rng.random() < 0.025]
        ]

    assert sum(alarmed(half, seed, noise=False) for seed in range(300)) <= 15
    assert sum(alarmed(lambda s: noisy(200, 0.0, s), seed, noise=True) for seed in range(300)) <= 15


def test_harm_well_beyond_the_noise_is_found() -> None:
    """100 audits of 200 rows find harm in which 30 % of the rows follow the conversation."""
    assert sum(alarmed(lambda s: noisy(200, 0.3, s), seed, noise=True) for seed in range(100)) >= 95


def test_above_temperature_0_a_row_without_a_second_answer_is_left_out() -> None:
    """Above temperature 0 a row whose second answer failed shows nothing."""
    rows = [AuditedRow(n, "a", "b") for n in range(50)]
    assert weigh(rows, LABELS, 0.05, noisy=True).rows == 0


def test_numbers_count_by_their_distance() -> None:
    """Small differences between all numbers are no harm; large ones are."""
    isolated = [str(n % 50) for n in range(100)]
    like = similarity_of(isolated)

    def off(points: int) -> Evidence:
        rows = [AuditedRow(n, str(int(v) + points), v, v) for n, v in enumerate(isolated)]
        return weigh(rows, like, 0.05, noisy=False)

    assert 0 < off(1).changed < 0.05
    assert not off(1).shows_at_end()
    assert off(15).shows()


def test_with_gold_harm_means_that_isolated_answers_agree_better() -> None:
    """If gold chose the form, harm means that isolated answers agree better with gold."""
    better = [AuditedRow(n, "a", "b", gold="a") for n in range(20)]
    worse = [AuditedRow(n, "b", "a", gold="a") for n in range(20)]
    unknown = [AuditedRow(n, "b", "a") for n in range(20)]
    assert not weigh_by_gold(better, None).shows_at_end()
    assert weigh_by_gold(worse, None).shows()
    assert not weigh_by_gold(worse[:4], None).shows_at_end()
    assert weigh_by_gold(unknown, None).rows == 0


def test_segments_that_look_odd_need_more_after_each_that_proved_unharmed() -> None:
    """Odd segments together raise a false alarm in at most one job in a hundred."""
    assert sure_of_segment(0) < sure_of_segment(1) < sure_of_segment(5)
    assert sum(1 / sure_of_segment(n) for n in range(1000)) <= 0.01
    whole = weigh(rows_of(CHECKS, CHECKS), LABELS, 0.05, noisy=False)
    assert whole.shows(sure_of_segment(30)), "a collapse is seen in any of them"


# --- what an audit detects -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "share"), [(0, None), (1, None), (5, 0.66), (20, 0.29), (60, 0.15), (180, 0.09)]
)
def test_the_smallest_detectable_harm_shrinks_with_more_rows(rows: int, share: float | None) -> None:
    """More rows detect a smaller harm."""
    assert smallest_harm(rows, 0.05, noisy=False) == share


@pytest.mark.parametrize(("rows", "noise"), [(20, False), (60, False), (180, False), (180, True)])
def test_the_smallest_harm_is_found_in_95_percent_of_jobs_and_half_of_it_is_not(
    rows: int, noise: bool
) -> None:
    """In 300 simulated samples the stated harm is found in 95 % of jobs at the final evaluation, and half of
    it is not.
    """
    floor = 0.7
    share = smallest_harm(rows, 0.05, noisy=noise, floor=floor)
    assert share is not None

    def draw(harm: float) -> Callable[[int], list[AuditedRow]]:
        def rows_with(seed: int) -> list[AuditedRow]:
            rng = random.Random(f"{rows} {seed}")
            # Two isolated answers are equal in `floor` of the rows, and never in a harmed row.
            keep = 1 - (1 - floor) / 2 if noise else 1.0
            found = []
            for n in range(rows):
                three = ["a" if rng.random() < keep else f"{n} {one}" for one in range(3)]
                given = "x" if rng.random() < harm else three[0]
                found.append(AuditedRow(n, given, three[1], three[2] if noise or given != three[1] else None))
            return found

        return rows_with

    found = sum(alarmed(draw(share), seed, noise=noise) for seed in range(300))
    assert found >= (0.9 if noise else 0.93) * 300
    assert sum(alarmed(draw(share / 2), seed, noise=noise) for seed in range(300)) < 0.7 * 300
