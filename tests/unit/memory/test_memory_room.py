"""Whether a load fits below the critical marks, of one card, of several, and of the machine."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolama.memory.level import GB, Level, RelativeLimits
from spoolama.memory.readings import Card, Host
from spoolama.memory.room import (
    RequiredMemory,
    Room,
    UnlimitedMemory,
    UsedMemory,
    room_on_cards,
    room_on_host,
)
from support.cards import card

MARKS = RelativeLimits()


def on(cards: tuple[Card, ...], gb: float, *, back: float = 0.0, words: str = "") -> Room:
    limits = {n: MARKS.limits(each.total_bytes) for n, each in enumerate(cards)}
    need = RequiredMemory(round(gb * GB), "card", words)
    return room_on_cards(need, cards, limits, reclaimed_bytes=round(back * GB))


@pytest.mark.parametrize(("gb", "fits"), [(9.9, True), (10.0, True), (10.1, False), (15.1, False)])
def test_a_load_fits_up_to_the_critical_mark(gb: float, fits: bool) -> None:
    """Of 16 GB with 5 in use 10 may still be taken; not the last one."""
    assert on((card(5),), gb).fits is fits


def test_what_is_missing_is_said_in_gb() -> None:
    """What it needs, in its own words where there are any, and what is there."""
    assert on((card(5),), 12).why == "it needs 12.0 GB; 10.0 GB of 16.0 GB may still be taken on the GPU"
    assert on((card(15.5),), 12, words="m needs a lot").why == (
        "m needs a lot; 0.0 GB of 16.0 GB may still be taken on the GPU"
    )
    two = (card(14, index=0), card(6, index=3))
    assert on(two, 12).why.endswith("; 9.0 GB of 16.0 GB may still be taken on GPU 3")


def test_a_load_may_be_spread_over_several_cards() -> None:
    """What is free on all of them together counts; a card past its mark takes nothing from the others."""
    assert on((card(7), card(7)), 16).fits
    assert not on((card(7), card(7)), 16.1).fits
    assert on((card(5), card(16)), 10).fits


def test_whether_it_would_ever_fit_is_another_question() -> None:
    """With nothing else on the card all below the mark is there, but for the driver's own."""
    assert on((card(14),), 14.9).ever
    assert not on((card(0.1),), 15.1).ever
    assert not on((card(14, reserved_bytes=GB // 2),), 14.6).ever
    assert on((card(14), card(14)), 29).ever


def test_what_the_server_gives_back_by_itself_makes_room() -> None:
    """Its other models go when a new one is loaded."""
    assert not on((card(14),), 9).fits
    assert on((card(14),), 9, back=8).fits


@given(st.lists(st.tuples(st.floats(0, 16), st.sampled_from([8, 16, 24])), min_size=1, max_size=4))
def test_what_fits_leaves_every_card_below_its_mark(cards: list[tuple[float, int]]) -> None:
    """All that may be taken, spread as it is free, brings no card past its critical mark."""
    made = tuple(card(min(used, total), total) for used, total in cards)
    free = sum(max(0, MARKS.limits(c.total_bytes).critical_bytes - c.used_bytes) for c in made)
    assert on(made, free / GB).fits
    assert not on(made, (free + 1024) / GB).fits


def test_main_memory_has_a_mark_as_well() -> None:
    """Of 64 GB at 95 % 60.8 may be in use, whatever is mapped from files."""
    limits = RelativeLimits(high=0.9, critical=0.95, keep_free_gb=0.0).limits(64 * GB)
    host = Host(64 * GB, 44 * GB)
    fits = room_on_host(RequiredMemory(40 * GB, "host", "m"), host, limits)
    assert (fits.fits, fits.why) == (
        True,
        "m; 40.8 GB of 64.0 GB of this machine's memory may still be taken",
    )
    missing = room_on_host(RequiredMemory(41 * GB, "host"), host, limits)
    assert (missing.fits, missing.ever) == (False, True)
    assert missing.why.startswith("it needs 41.0 GB; ")
    assert not room_on_host(RequiredMemory(61 * GB, "host"), host, limits).ever


def test_where_nobody_watches_everything_fits() -> None:
    """Nothing is known, nothing is waited for, and what is done is kept by nobody."""
    memory = UnlimitedMemory()
    assert memory.room(RequiredMemory(1 << 60, "card")).fits
    assert (memory.level, memory.most_bytes("card"), memory.taken()) == (Level.OK, None, UsedMemory())
    memory.did("released", model="m")

    async def looks() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await memory.looked()

    asyncio.run(looks())
