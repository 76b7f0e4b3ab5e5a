"""Whether a load fits below the critical threshold of one card, of several, and of the machine."""

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
def test_a_load_fits_up_to_the_critical_threshold(gb: float, fits: bool) -> None:
    """With 5 of 16 GB in use a load may take 10 GB, and the last GB stays free."""
    assert on((card(5),), gb).fits is fits


def test_the_missing_memory_is_given_in_gb() -> None:
    """The reason gives the size of the load and the free memory."""
    assert on((card(5),), 12).why == "it needs 12.0 GB; 10.0 GB of 16.0 GB may still be taken on the GPU"
    assert on((card(15.5),), 12, words="m needs a lot").why == (
        "m needs a lot; 0.0 GB of 16.0 GB may still be taken on the GPU"
    )
    two = (card(14, index=0), card(6, index=3))
    assert on(two, 12).why.endswith("; 9.0 GB of 16.0 GB may still be taken on GPU 3")


def test_a_load_may_be_spread_over_several_cards() -> None:
    """The free memory of all cards counts together, and a card past its threshold does not reduce it."""
    assert on((card(7), card(7)), 16).fits
    assert not on((card(7), card(7)), 16.1).fits
    assert on((card(5), card(16)), 10).fits


def test_a_load_that_could_fit_an_empty_card_is_known() -> None:
    """On an empty card everything below the threshold is available, except the driver's own part."""
    assert on((card(14),), 14.9).ever
    assert not on((card(0.1),), 15.1).ever
    assert not on((card(14, reserved_bytes=GB // 2),), 14.6).ever
    assert on((card(14), card(14)), 29).ever


def test_other_models_of_the_server_count_as_free() -> None:
    """The server's other models count as free, because it unloads them for a load."""
    assert not on((card(14),), 9).fits
    assert on((card(14),), 9, back=8).fits


@given(st.lists(st.tuples(st.floats(0, 16), st.sampled_from([8, 16, 24])), min_size=1, max_size=4))
def test_a_load_that_fits_leaves_every_card_below_its_threshold(cards: list[tuple[float, int]]) -> None:
    """A load that takes all free memory, spread over the cards, brings no card past its
    critical threshold.
    """
    made = tuple(card(min(used, total), total) for used, total in cards)
    free = sum(max(0, MARKS.limits(c.total_bytes).critical_bytes - c.used_bytes) for c in made)
    assert on(made, free / GB).fits
    assert not on(made, (free + 1024) / GB).fits


def test_main_memory_has_a_threshold() -> None:
    """Of 64 GB at 95 %, 60.8 GB may be in use, regardless of mapped files."""
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


def test_without_a_watchdog_everything_fits() -> None:
    """Without a watchdog everything fits, nothing waits, and nothing is recorded."""
    memory = UnlimitedMemory()
    assert memory.room(RequiredMemory(1 << 60, "card")).fits
    assert (memory.level, memory.most_bytes("card"), memory.taken()) == (Level.OK, None, UsedMemory())
    memory.did("released", model="m")

    async def looks() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await memory.looked()

    asyncio.run(looks())
