"""Which load of a model is tried when memory is short, and how often it is loaded again."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spoolama.backends.base import LoadSpec
from spoolama.model.load_sizes import OFTEN, LoadSizes, load_steps
from support.hand_clock import HandClock

HOUR_S = 3600.0
MOST_AN_HOUR = 7


def sizes_of(clock: HandClock, *windows: int) -> LoadSizes:
    return LoadSizes([LoadSpec("m", window) for window in windows or (4096,)], clock)


def unloaded_at(*times: float) -> tuple[LoadSizes, HandClock]:
    """A model that was unloaded at these times; the clock shows the last one."""
    clock = HandClock()
    sizes = sizes_of(clock)
    for at in times:
        clock.move(at - clock.monotonic())
        sizes.unloaded()
    return sizes, clock


def test_a_load_is_unstable_from_the_third_unload_in_an_hour_on() -> None:
    """From the third unload in an hour on, a load counts as unstable; unloads of other loads do not count."""
    clock = HandClock()
    sizes = sizes_of(clock, 4096, 2048)
    for times in range(1, OFTEN + 1):
        assert not sizes.unloaded_often
        sizes.unloaded()
        assert (sizes.unloads, sizes.unloaded_often) == (times, times == 3)
        clock.move(600)
    assert sizes.shrink()
    assert (sizes.unloads, sizes.unloaded_often) == (3, False)
    sizes.enlarge()
    assert sizes.unloaded_often
    clock.move(HOUR_S - 3 * 600)
    assert (sizes.unloads, sizes.unloaded_often) == (2, False)


def test_two_shortages_in_an_hour_are_enough_for_a_smaller_load() -> None:
    """Two shortages in an hour lead to a smaller load, and each change of the load resets the count."""
    clock = HandClock()
    sizes = sizes_of(clock, 4096, 2048)
    assert not sizes.shortage()
    clock.move(HOUR_S)
    assert not sizes.shortage()
    clock.move(HOUR_S - 1)
    assert sizes.shortage()
    assert sizes.shrink()
    assert not sizes.shortage()


def test_a_load_that_ran_out_of_memory_is_retried_with_growing_waits() -> None:
    """A load that ran out of memory is tried again after 30 min, 1 h, 2 h and then every 4 h;
    any other at once.
    """
    clock = HandClock()
    sizes = sizes_of(clock, 4096, 2048)
    assert not sizes.may_enlarge()
    for hours in (0.5, 1, 2, 4, 4):
        sizes.load_failed()
        assert sizes.shrink()
        clock.move(hours * HOUR_S - 1)
        assert not sizes.may_enlarge()
        clock.move(1)
        assert sizes.may_enlarge()
        sizes.enlarge()
    assert sizes.shrink()
    assert not sizes.shrink()


def test_the_steps_halve_the_slots_first_and_then_the_window() -> None:
    """The sizes halve the slots, where we set them, and then the window, down to 1,024 tokens
    or twice an answer.
    """
    found = load_steps(LoadSpec("m", 4096, slots=4), slots_too=True, num_predict=100)
    assert [(spec.num_ctx, spec.slots) for spec in found] == [
        (4096, 4),
        (4096, 2),
        (4096, 1),
        (2048, 1),
        (1024, 1),
    ]
    found = load_steps(LoadSpec("m", 5000, slots=4), slots_too=False, num_predict=1000)
    assert [(spec.num_ctx, spec.slots) for spec in found] == [(5000, 4), (2304, 4)]


def loads_after(gaps: list[float]) -> list[float]:
    """Return when the model is loaded again, if memory becomes critical this long after each load."""
    clock, unloads, loads = HandClock(), [], []
    sizes = sizes_of(clock)
    for gap in gaps:
        clock.move(gap)
        now = clock.monotonic()
        unloads.append(now)
        sizes.unloaded()
        while (wait_s := sizes.wait_s) > 0:
            # An early unload may by then be more than an hour ago, and the wait shorter.
            gone = [at + HOUR_S for at in unloads if at + HOUR_S > now]
            clock.move(min(now + wait_s, *gone) - now)
            now = clock.monotonic()
        loads.append(now)
    return loads


@given(st.lists(st.floats(0.0, 4000.0) | st.sampled_from([0.0, 1.0, 599.0, 3600.0]), max_size=60))
@example([0.0] * 100)
@example([3590.0, *[0.0] * 20, 3590.0, *[0.0] * 20])
def test_there_are_at_most_seven_loads_in_any_hour(gaps: list[float]) -> None:
    """In any hour there are at most seven loads, whenever memory becomes critical."""
    loads = loads_after(gaps)
    for first in loads:
        assert sum(first <= at < first + HOUR_S for at in loads) <= MOST_AN_HOUR


def test_the_first_load_comes_at_once_and_each_further_one_waits_twice_as_long() -> None:
    """The first load starts at once, and from the second unload in an hour on the wait is one minute, then
    two, four and so on.
    """
    waits = [unloaded_at(*(n * 10.0 for n in range(times)))[0].wait_s for times in range(7)]
    assert waits == [0.0, 0.0, 60.0, 120.0, 240.0, 480.0, 960.0]


@pytest.mark.parametrize(("later", "wait"), [(0.0, 60.0), (50.0, 10.0), (60.0, 0.0), (9e9, 0.0)])
def test_the_wait_counts_from_the_last_unload(later: float, wait: float) -> None:
    """The wait counts from the last unload and is never negative."""
    sizes, clock = unloaded_at(900.0, 1000.0)
    clock.move(later)
    assert sizes.wait_s == wait


def test_unloads_more_than_an_hour_ago_are_forgotten() -> None:
    """Of five unloads only those of the last hour count."""
    assert unloaded_at(0.0, 1.0, 2.0, 3601.0, 3602.5)[0].wait_s == 60.0
    assert unloaded_at(0.0, 3600.0)[0].wait_s == 0.0
