"""The recorded memory of a job, across restarts, and how memory is described."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spoolama.memory.history import MOST_EVENTS, MemoryHistory
from spoolama.memory.level import GB, Level, LevelState
from spoolama.memory.readings import Host, Readings, Runner
from spoolama.memory.watchdog import figures, in_words
from support.cards import card

HOST = Host(64 * GB, 40 * GB)


def reading(*gb: float, **fields: Any) -> Readings:
    """Cards of 16 GB with this much in use."""
    cards = tuple(card(used, index=n, temperature_c=60 + n) for n, used in enumerate(gb))
    return Readings(at=0.0, cards=cards or None, **fields)


def test_time_peak_and_mean_follow_the_readings() -> None:
    """Each reading is weighted by its seconds, and time without a reading does not count in the mean."""
    history = MemoryHistory()
    history.add(reading(4.0), Level.OK, 3.0)
    history.add(reading(8.0, host=HOST, runners=(Runner(7, "r", GB),)), Level.HIGH, 1.0)
    history.add(Readings(at=0.0, cards=None, unreadable="NVML is away"), Level.OK, 6.0)
    found = history.to_json()
    assert found["seconds"] == {"ok": 9.0, "high": 1.0, "critical": 0.0}
    assert (found["seconds_read"], found["seconds_without_reading"]) == (4.0, 6.0)
    assert (found["peak_bytes"], found["mean_bytes"], found["total_bytes"]) == (8 * GB, 5 * GB, 16 * GB)
    assert (found["runner_rss_peak_bytes"], found["host_peak_bytes"]) == (GB, 24 * GB)
    assert (found["unreadable"], found["max_temperature_c"]) == ("NVML is away", 60)


def test_a_value_that_was_never_read_is_null() -> None:
    """A value that was never read is null."""
    found = MemoryHistory().to_json()
    names = (
        "peak_bytes",
        "mean_bytes",
        "total_bytes",
        "runner_rss_peak_bytes",
        "host_peak_bytes",
        "max_temperature_c",
    )
    assert [found[name] for name in names] == [None] * 6


def test_cards_are_added_up_and_the_hottest_counts() -> None:
    """Several cards are added up, the highest temperature is recorded, and throttling counts
    once a second.
    """
    history = MemoryHistory()
    slow: dict[str, Any] = {"throttled": ("power", "heat")}
    cards = (
        card(4, temperature_c=80, **slow),
        card(6, temperature_c=50, **slow),
        card(1, temperature_c=None),
    )
    history.add(Readings(at=0.0, cards=cards), Level.OK, 2.0)
    history.add(reading(1.0), Level.OK, 2.0)
    found = history.to_json()
    assert (found["peak_bytes"], found["max_temperature_c"]) == (11 * GB, 80)
    assert found["throttled_seconds"] == {"heat": 2.0, "power": 2.0}


def test_a_resumed_record_continues() -> None:
    """Two runs of a job with the ledger between them give the same record as one run."""
    whole, first = MemoryHistory(), MemoryHistory()
    for history in (whole, first):
        history.add(reading(4.0, host=HOST), Level.HIGH, 3.0)
        history.changed(1.25, {"from": "ok", "to": "high"})
        history.did(2.0, "released", {"num_ctx": 8192})
    resumed = MemoryHistory(json.loads(json.dumps(first.to_json())))
    for history in (whole, resumed):
        history.add(reading(13.0, runners=(Runner(7, "r", GB),)), Level.CRITICAL, 1.0)
        history.add(Readings(at=0.0, cards=None, unreadable="gone"), Level.OK, 1.0)
        history.did(5.0, "released", {})
        history.changed(6.0, {"from": "high", "to": "critical"})
    assert resumed.to_json() == whole.to_json()
    assert whole.to_json()["actions"] == {"released": 2}
    assert whole.to_json()["events"][0] == {"at": 1.2, "from": "ok", "to": "high"}
    assert (whole.to_json()["changes"], whole.to_json()["mean_bytes"]) == (2, round(6.25 * GB))


def test_the_number_of_stored_events_is_limited() -> None:
    """Events beyond the limit are counted but not stored, also after a restart."""
    history = MemoryHistory()
    for n in range(MOST_EVENTS + 50):
        history.did(float(n), "released", {})
        history.changed(float(n), {})
    resumed = MemoryHistory(history.to_json())
    resumed.did(0.0, "released", {})
    found = resumed.to_json()
    assert len(found["events"]) == MOST_EVENTS
    assert (found["actions"], found["changes"]) == ({"released": MOST_EVENTS + 51}, MOST_EVENTS + 50)


# text

CALM = LevelState()
STEEP = LevelState(level=Level.HIGH, full_in_s=41.7)
SLOW = LevelState(level=Level.HIGH, full_in_s=4000.0)


@pytest.mark.parametrize(
    ("readings", "place", "state", "words"),
    [
        (reading(14.2), 0, CALM, "GPU memory: 14.2 GB of 16.0 GB in use"),
        (reading(14.2), 0, STEEP, "GPU memory: 14.2 GB of 16.0 GB in use, critical in 42 s at this rate"),
        (reading(14.2), 0, SLOW, "GPU memory: 14.2 GB of 16.0 GB in use"),
        (reading(1.0, 14.2), 1, CALM, "GPU 1: 14.2 GB of 16.0 GB in use"),
        (
            Readings(0.0, None, "no NVIDIA GPU on this machine", host=HOST),
            None,
            CALM,
            "24.0 GB of 64.0 GB of this machine's memory in use",
        ),
        (
            reading(1.0, host=Host(8 * GB, GB, bound="memory.max of spoolama.service")),
            None,
            LevelState(level=Level.HIGH),
            "memory.max of spoolama.service, 7.0 GB of 8.0 GB of this machine's memory in use",
        ),
        (Readings(0.0, None, "NVML has not answered for 9 s"), None, CALM, "NVML has not answered for 9 s"),
        (Readings(0.0, None), 3, CALM, "memory cannot be read"),
    ],
)
def test_the_critical_memory_is_described_in_one_line(
    readings: Readings, place: int | None, state: LevelState, words: str
) -> None:
    """One line gives the sizes of the critical memory in GB, and the time until it is full if
    that is soon.
    """
    assert in_words(readings, place, state) == words


def test_a_change_is_described_with_its_readings() -> None:
    """A change is described with its readings, and nothing replaces missing ones."""
    everything = reading(1.0, 14.2, host=HOST, runners=(Runner(7, "r", 2 * GB), Runner(8, "r", GB)))
    assert figures(everything, 1, STEEP) == {
        "full_in_s": 41.7,
        "card": 1,
        "used": "14.2 GB",
        "total": "16.0 GB",
        "host_used": "24.0 GB",
        "runner": "3.0 GB",
    }
    assert figures(Readings(0.0, None), None, CALM) == {}
