"""Audit: what is said of rows that were answered again alone."""

from __future__ import annotations

import json
import random

import pytest

from spoolama.effect.audit import Audit, audit, rows_to_audit
from spoolama.effect.likeness import Likeness, likeness_of

LABELS = Likeness("labels")
OTHER = {"a": "b", "b": "c", "c": "a"}


def audited(
    rows: int,
    differ: set[int],
    *,
    twice: dict[int, str] | None = None,
    depth: dict[int, int] | None = None,
    margin: float = 0.05,
) -> Audit:
    """Rows of three labels of which these are answered otherwise in conversation."""
    alone = {n: "abc"[n % 3] for n in range(rows)}
    given = {n: OTHER[label] if n in differ else label for n, label in alone.items()}
    depth = depth or {n: 1 + n % 19 for n in range(rows)}
    found = audit(given, alone, twice if twice is not None else alone, depth, LABELS, margin=margin)
    assert found is not None
    return found


def test_an_audit_of_nothing_says_nothing() -> None:
    """No rows, or none that were answered again."""
    assert audit({}, {}, {}, {}, LABELS, margin=0.05) is None
    assert audit({3: "a"}, {}, {}, {3: 1}, LABELS, margin=0.05) is None


def test_a_job_that_agrees_throughout_is_clear() -> None:
    """200 of 200: no change, and one of ten points can be ruled out."""
    found = audited(200, set())
    assert (found.agreement, found.floor, found.changed, found.clear, found.drift) == (
        1,
        1,
        False,
        True,
        None,
    )


@pytest.mark.parametrize(
    ("rows", "differ", "changed", "clear"),
    [
        (200, 20, True, False),
        (200, 11, True, False),
        (200, 10, False, True),
        (100, 5, False, False),
        (200, 4, False, True),
        (8, 1, False, False),
        (8, 2, True, False),
        (20, 0, False, False),
        (7, 7, False, False),
        (1, 1, False, False),
    ],
)
def test_a_change_is_told_beyond_the_margin_and_an_all_clear_where_twice_the_margin_is_ruled_out(
    rows: int, differ: int, changed: bool, clear: bool
) -> None:
    """Between the two, and in small audits, neither is said."""
    step = max(1, rows // max(1, differ))
    found = audited(rows, {n * step for n in range(differ)})
    assert (found.changed, found.clear) == (changed, clear)
    assert found.agreement == pytest.approx(1 - differ / rows)
    assert found.low <= found.agreement <= found.high


def test_a_change_within_the_margin_is_certain_where_alone_repeats_itself() -> None:
    """8 of 200: neither harm nor nothing; without a row that differs, nothing."""
    found = audited(200, set(range(0, 80, 10)))
    assert (found.certain, found.changed, found.clear, found.lost) == (True, False, True, 0.04)
    assert not audited(200, set()).certain


def test_a_best_guess_beyond_the_margin_is_never_clear() -> None:
    """Be it no more than chance: 300 audits at 6 points, with noise and without."""
    found = [noisy(400, 0.08, seed) for seed in range(300)]
    assert not any(one.clear for one in found if one.lost > 0.05)
    assert any(one.clear for one in found)
    assert not any(audited(100, set(range(n)), margin=0.2).clear for n in range(21, 40))


def test_without_answers_alone_twice_no_floor_is_told() -> None:
    """It was not measured; the verdict is as if alone agreed with alone."""
    found = audited(200, set(range(0, 40)), twice={})
    assert (found.floor, found.changed) == (None, True)


def noisy(rows: int, harm: float, seed: int) -> Audit:
    """Every answer is another one in a quarter of the cases; and so many more in conversation."""
    rng = random.Random(seed)

    def roll(label: str) -> str:
        return rng.choice("abc") if rng.random() < 0.25 else label

    alone = {n: roll("abc"[n % 3]) for n in range(rows)}
    again = {n: roll("abc"[n % 3]) for n in range(rows)}
    given = {n: OTHER["abc"[n % 3]] if rng.random() < harm else roll("abc"[n % 3]) for n in range(rows)}
    found = audit(given, alone, again, dict.fromkeys(alone, 5), LABELS, margin=0.05)
    assert found is not None
    return found


def test_noise_alone_is_called_a_change_in_at_most_one_job_of_twenty() -> None:
    """300 audits each of 60 and of 200 rows whose three answers are of one kind."""
    for rows in (60, 200):
        assert sum(noisy(rows, 0.0, seed).changed for seed in range(300)) <= 15
    found = [noisy(200, 0.0, seed) for seed in range(20)]
    assert all(one.floor is not None and one.floor < 0.85 for one in found)


def test_a_change_well_beyond_the_noise_is_found_and_never_called_clear() -> None:
    """100 audits of 200 rows; 30 % more rows answered otherwise, which costs some 20 points of agreement."""
    found = [noisy(200, 0.3, seed) for seed in range(100)]
    assert sum(one.changed for one in found) >= 95
    assert not any(one.clear for one in found)


def test_under_twenty_noisy_rows_say_nothing() -> None:
    """Neither a change nor an all-clear comes of them."""
    found = [noisy(19, 1.0, seed) for seed in range(5)]
    assert not any(one.changed or one.clear for one in found)


def test_where_only_some_rows_were_answered_twice_and_some_differ_the_two_shares_are_compared() -> None:
    """A server that does not quite repeat itself: its own 4 of 50 are held against all that differ."""
    alone = {n: "abc"[n % 3] for n in range(200)}
    twice = {n: OTHER[alone[n]] if n in (0, 40, 80, 120) else alone[n] for n in range(0, 200, 4)}
    little = audited(200, set(range(1, 200, 14)), twice=twice)
    much = audited(200, set(range(1, 200, 4)), twice=twice)
    assert little.floor == pytest.approx(0.92)
    assert (little.changed, much.changed) == (False, True)
    assert not much.clear


def test_agreement_that_falls_with_depth_is_told() -> None:
    """None differ in short conversations, half of the rows in long ones."""
    depth = {n: 1 + n % 40 for n in range(200)}
    found = audited(200, {n for n in range(200) if depth[n] > 25 and n % 2}, depth=depth)
    assert found.drift == "depth"
    shallow, middle, deep = found.by_depth
    assert shallow.agreement == 1 > deep.agreement
    assert (shallow.where, deep.where.split(" to ")[1]) == ("after 1 to 14 rows", "40 rows")
    assert shallow.rows + middle.rows + deep.rows == 200


def test_agreement_that_falls_along_the_job_is_told() -> None:
    """All rows are as deep; the last third of them differs."""
    found = audited(150, set(range(100, 150, 2)), depth=dict.fromkeys(range(150), 6))
    assert found.drift == "job"
    assert [part.where for part in found.along_job] == ["rows 1 to 50", "rows 51 to 100", "rows 101 to 150"]
    assert found.along_job[2].agreement == pytest.approx(0.5)


def test_drift_is_told_by_chance_in_at_most_one_job_of_fifty() -> None:
    """400 audits in which a tenth of the rows differs wherever they are."""
    told = 0
    for seed in range(400):
        rng = random.Random(seed)
        found = audited(
            200, set(rng.sample(range(200), 20)), depth={n: rng.randrange(1, 50) for n in range(200)}
        )
        told += found.drift is not None
    assert told <= 8


def test_rising_agreement_and_few_rows_are_no_drift() -> None:
    """The first rows differ, or there are only 19."""
    assert audited(150, set(range(0, 50, 2)), depth=dict.fromkeys(range(150), 6)).drift is None
    assert audited(19, set(range(10, 19))).drift is None


def test_numbers_count_by_how_near_they_are() -> None:
    """All of them a little off is little; the words say what is compared."""
    alone = {n: str(n % 50) for n in range(100)}
    given = {n: str(n % 50 + 1) for n in range(100)}
    like = likeness_of(list(alone.values()))
    found = audit(given, alone, alone, dict.fromkeys(alone, 3), like, margin=0.05)
    assert found is not None
    assert 0.95 < found.agreement < 1
    assert found.compared == "nearness of the numbers"
    assert not found.changed


def test_rows_are_drawn_by_the_seed_and_never_more_than_there_are() -> None:
    """The same ones after a restart."""
    assert rows_to_audit(range(1000), 5, 1) == rows_to_audit(range(1000), 5, 1)
    assert rows_to_audit(range(1000), 5, 1) != rows_to_audit(range(1000), 5, 2)
    assert rows_to_audit([3, 8], 5, 1) == [3, 8]


def test_what_was_found_is_plain_json() -> None:
    """For metrics.json."""
    told = json.loads(json.dumps(audited(30, {3}).to_json()))
    assert (told["rows"], len(told["by_depth"]), told["clear"]) == (30, 3, False)
