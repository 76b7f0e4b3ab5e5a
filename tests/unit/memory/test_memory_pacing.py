"""How often a model is loaded again for want of memory: at most seven times in any hour, whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spoolama.model.load_sizes import HOUR_S, wait_before_load

MOST_AN_HOUR = 7


def loads_after(gaps: list[float]) -> list[float]:
    """When the model is loaded again, if memory becomes critical so long after each load."""
    now, releases, loads = 0.0, [], []
    for gap in gaps:
        now += gap
        releases.append(now)
        while (wait := wait_before_load(releases, now)) > 0:
            # Meanwhile an early release may be more than an hour ago, and the wait shorter.
            gone = [at + HOUR_S for at in releases if at + HOUR_S > now]
            now = min(now + wait, *gone)
        loads.append(now)
    return loads


@given(st.lists(st.floats(0.0, 4000.0) | st.sampled_from([0.0, 1.0, 599.0, 3600.0]), max_size=60))
@example([0.0] * 100)
@example([3590.0, *[0.0] * 20, 3590.0, *[0.0] * 20])
def test_there_are_at_most_seven_loads_in_any_hour(gaps: list[float]) -> None:
    """Whenever memory becomes critical, in any hour, between any two loads."""
    loads = loads_after(gaps)
    for first in loads:
        assert sum(first <= at < first + HOUR_S for at in loads) <= MOST_AN_HOUR


def test_the_first_load_comes_at_once_and_each_further_one_waits_twice_as_long() -> None:
    """A minute from the second release in an hour on, then two, four and so on."""
    releases: list[float] = []
    waits = []
    for n in range(6):
        releases.append(n * 10.0)
        waits.append(wait_before_load(releases, releases[-1]))
    assert waits == [0.0, 60.0, 120.0, 240.0, 480.0, 960.0]


@pytest.mark.parametrize(("now", "wait"), [(1000.0, 60.0), (1050.0, 10.0), (1060.0, 0.0), (9e9, 0.0)])
def test_the_wait_counts_from_the_last_release(now: float, wait: float) -> None:
    """It is over a minute after that, and never below nothing."""
    assert wait_before_load([900.0, 1000.0], now) == wait


def test_releases_more_than_an_hour_ago_are_forgotten() -> None:
    """Of five only those of the last hour count."""
    assert wait_before_load([0.0, 1.0, 2.0, 3601.0, 3602.5], 3602.5) == 60.0
    assert wait_before_load([0.0, 3600.0], 3600.0) == 0.0
    assert wait_before_load([], 5.0) == 0.0
