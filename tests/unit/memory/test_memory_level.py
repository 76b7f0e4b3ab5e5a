"""The level of memory pressure: dwell, hysteresis, trend, missing readings, and bounds on changes."""

from __future__ import annotations

import random
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from spoolama.memory.level import (
    GB,
    Level,
    LevelRules,
    LevelState,
    MemoryLimits,
    RelativeLimits,
    step,
    stricter,
)
from support.thorough import cases

RULES = LevelRules()
LIMITS = RelativeLimits().limits(16 * GB)
MOST_A_MINUTE = 8


def run(
    readings: Iterable[float | None], state: LevelState | None = None, start: float = 0.0
) -> list[LevelState]:
    """Return the level after each reading, in GB, one a second."""
    states = []
    state = state or LevelState()
    for second, gb in enumerate(readings):
        used = None if gb is None else round(gb * GB)
        state = step(state, used, None if gb is None else LIMITS, start + second, RULES)
        states.append(state)
    return states


def levels(readings: Iterable[float | None]) -> list[Level]:
    return [state.level for state in run(readings)]


def test_the_thresholds_of_a_card_of_16_gb_are_14_and_15() -> None:
    """The default limits are the documented ones."""
    assert MemoryLimits(16 * GB, 14 * GB, 15 * GB) == LIMITS


def test_thresholds_may_be_shares_or_gb() -> None:
    """A number above 1 is GB, and the memory that must stay free limits both thresholds."""
    limits = RelativeLimits(high=10, critical=15.9, keep_free_gb=1.0).limits(16 * GB)
    assert (limits.high_bytes, limits.critical_bytes) == (10 * GB, 15 * GB)


def test_gb_are_gb_on_any_card() -> None:
    """The memory that must stay free takes at most half of a small card and raises no threshold
    of a large one.
    """
    assert RelativeLimits(high=14, critical=15).limits(140 * GB) == MemoryLimits(140 * GB, 14 * GB, 15 * GB)
    assert RelativeLimits(keep_free_gb=2).limits(1 * GB).critical_bytes == GB // 2


def test_a_job_can_only_lower_the_limits() -> None:
    """The lower of two limits applies, for each threshold."""
    job = RelativeLimits(high=12, critical=1.0, keep_free_gb=0).limits(16 * GB)
    assert stricter(LIMITS, job) == MemoryLimits(16 * GB, 12 * GB, 15 * GB)


def test_a_spike_of_two_seconds_changes_nothing() -> None:
    """Memory that is free again before the dwell ends does not change the level."""
    assert set(levels([10] * 10 + [15.8] * 3 + [10] * 10)) == {Level.OK}


def test_high_and_critical_come_after_the_dwell() -> None:
    """From the third second above a threshold on, the level is that of the threshold."""
    assert levels([14.5] * 5) == [Level.OK] * 3 + [Level.HIGH] * 2
    assert levels([15.5] * 5) == [Level.OK] * 3 + [Level.CRITICAL] * 2


def test_it_comes_down_one_level_at_a_time() -> None:
    """Each step down takes twenty seconds below the threshold minus the hysteresis."""
    reached = levels([15.5] * 5 + [8] * 60)[5:]
    assert reached.index(Level.HIGH) in range(19, 22)
    assert reached.index(Level.OK) - reached.index(Level.HIGH) == 20


def test_a_reading_within_the_hysteresis_keeps_the_level() -> None:
    """Within the hysteresis the level does not change."""
    assert set(levels([14.5] * 5 + [13.9] * 200)[4:]) == {Level.HIGH}


def test_a_climb_counts_as_high_before_the_threshold() -> None:
    """The slope of a steady leak towards the critical threshold raises the level to high."""
    states = run([9 + 0.22 * second for second in range(26)])
    first = next(n for n, state in enumerate(states) if state.level is Level.HIGH)
    assert 9 + 0.22 * first < 14
    assert states[first].full_in_s is not None


def test_a_load_is_no_climb() -> None:
    """Memory that rises at once and then stays is no trend."""
    assert set(levels([1] * 10 + [12] * 40)) == {Level.OK}


def test_missing_readings_keep_the_level_for_a_while() -> None:
    """Without readings a critical level ends after the time of a step down."""
    reached = levels([15.5] * 5 + [None] * 40)
    assert reached[5 + 10] is Level.CRITICAL
    assert reached[-1] is Level.OK


def test_readings_far_apart_prove_nothing_of_the_time_between() -> None:
    """After a gap, such as a suspend, the dwell restarts."""
    state = run([15.5] * 2)[-1]
    assert step(state, round(15.5 * GB), LIMITS, 500.0, RULES).level is Level.OK


@settings(max_examples=cases(500, 10_000), deadline=None)
@given(
    seed=st.integers(0, 2**32),
    jump=st.sampled_from([0.02, 0.1, 0.5, 2.0, 8.0]),
    lost=st.sampled_from([0.0, 0.05, 0.5]),
    start=st.floats(4, 16),
)
def test_no_flapping(seed: int, jump: float, lost: float, start: float) -> None:
    """For any readings there are at most 8 changes a minute and none within the dwell."""
    rng = random.Random(seed)
    state, gb, changes = LevelState(), start, []
    for second in range(130):
        gb = min(16.0, max(0.0, gb + rng.uniform(-jump, jump)))
        unreadable = rng.random() < lost
        used, limits = (None, None) if unreadable else (round(gb * GB), LIMITS)
        after = step(state, used, limits, float(second), RULES)
        if after.level is not state.level:
            changes.append(second)
            if after.level < state.level:
                assert state.level - after.level == 1 or unreadable
                assert second - state.since >= RULES.fall_s
        state = after
    assert all(sum(a <= b < a + 60 for b in changes) <= MOST_A_MINUTE for a in changes)
