"""The watchdog: which of several cards counts, what it reports, a job's own limits, and main memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from spoolama.backends.base import HeldModel
from spoolama.errors import OutOfMemory
from spoolama.memory.level import GB, Level, RelativeLimits
from spoolama.memory.reader_threads import CardThread
from spoolama.memory.readings import Card, Host, NoReading, Runner
from spoolama.memory.room import RequiredMemory, UsedMemory
from spoolama.memory.watchdog import MemoryWatchdog
from support.cards import Scene, ScriptedCards, card
from support.clock import VirtualClock
from support.hand_clock import HandClock
from support.inline_host import InlineHost
from support.quiet_loop import run_quietly

OURS, OTHER = 4711, 99
Pids = Callable[[], Iterable[int]]


class Machine:
    """Main memory and the model processes, as the test sets them."""

    def __init__(self) -> None:
        self.now: Host | None = Host(64 * GB, 40 * GB)
        self.found: tuple[Runner, ...] = ()
        self.asked: list[tuple[int, ...]] = []

    def host(self) -> Host | None:
        return self.now

    def look_again(self) -> None:
        """Nothing is cached."""

    def runners(self, pids: Iterable[int] = ()) -> tuple[Runner, ...]:
        self.asked.append(tuple(pids))
        return self.found


class Watched:
    """A watchdog that is checked second by second."""

    def __init__(self, *cards: Card, machine: bool = False, pids: Pids = tuple, **more: Any) -> None:
        self.clock = HandClock()
        self.scene: Scene = cards
        self.machine = Machine()
        self.thread = CardThread(ScriptedCards(lambda _: self.scene, self.clock), self.clock)
        self.reported: list[tuple[str, dict[str, Any]]] = []
        self.dog = MemoryWatchdog(
            self.thread,
            InlineHost(self.machine, self.clock, pids=pids) if machine else None,
            self.clock,
            on_change=lambda event, facts: self.reported.append((event, facts)),
            **more,
        )

    def runs(self, pid: int = OURS, rss: int = GB) -> Watched:
        """A load of ours that starts this process."""
        with self.dog.loading():
            self.machine.found = (*self.machine.found, Runner(pid, "llama-server", rss))
        return self

    def looks(self, seconds: int = 1, *cards: Card) -> Level:
        """Return the level after this many readings of these cards."""
        self.scene = cards or self.scene
        for _ in range(seconds):
            self.thread.read_once()
            self.dog.look()
            self.clock.move(1.0)
        return self.dog.level

    def events(self, name: str) -> list[dict[str, Any]]:
        return [facts for event, facts in self.reported if event == name]


def four(*used: float, ours: int | None = None) -> tuple[Card, ...]:
    """Cards of 16 GB, each with a program of another user, and on one of them ours too."""
    return tuple(
        card(gb, index=n, processes={OTHER + n: GB} | ({OURS: 8 * GB} if n == ours else {}))
        for n, gb in enumerate(used)
    )


def test_before_the_first_look_nothing_is_known() -> None:
    """Before the first reading there is no size and no text about full memory."""
    dog = Watched(card(15.5)).dog
    assert (dog.level, dog.taken(), dog.most_bytes("card")) == (Level.OK, UsedMemory(), None)
    assert dog.words == "memory has not been read yet"


def test_a_spike_of_two_seconds_is_the_peak_and_nothing_else() -> None:
    """A spike of two seconds is the peak in the job's metrics and does not change the level."""
    watched = Watched(card(6))
    with watched.dog.during() as history:
        levels = [watched.looks(3), watched.looks(2, card(15.2)), watched.looks(10, card(6))]
    assert (levels, watched.reported) == ([Level.OK] * 3, [])
    found = history.to_json()
    assert (found["peak_bytes"], found["changes"], found["events"]) == (round(15.2 * GB), 0, [])


def test_a_full_card_is_critical_after_three_seconds_and_reported_once() -> None:
    """A full card is critical after three seconds, which is reported once with the reading and
    both levels.
    """
    watched = Watched(card(15.2))
    assert [watched.looks() for _ in range(4)] == [Level.OK] * 3 + [Level.CRITICAL]
    watched.looks(60)
    assert watched.reported == [
        (
            "memory.level",
            {
                "reason": "GPU memory: 15.2 GB of 16.0 GB in use",
                "from": "ok",
                "to": "critical",
                "card": 0,
                "used": "15.2 GB",
                "total": "16.0 GB",
            },
        )
    ]
    assert watched.dog.words == "GPU memory: 15.2 GB of 16.0 GB in use"


# several cards


def test_a_full_card_without_our_model_does_not_count() -> None:
    """A card that others filled does not count while our model is on another one."""
    watched = Watched(*four(15.5, 10.0, 3.0, 3.0, ours=1), machine=True).runs()
    assert watched.looks(30) is Level.OK
    assert watched.dog.words == "GPU 1: 10.0 GB of 16.0 GB in use"
    assert watched.reported == []


def test_the_card_counts_on_which_the_models_process_is() -> None:
    """The card with our model's process counts, even if others have more room."""
    watched = Watched(*four(2.0, 15.5, 2.0, 2.0, ours=1), machine=True).runs()
    assert watched.looks(4) is Level.CRITICAL
    assert watched.dog.words == "GPU 1: 15.5 GB of 16.0 GB in use"
    watched.machine.found = (Runner(1, "llama-server", GB),)
    assert watched.looks(1) is Level.OK, "the process on it is another one now"


def test_for_a_model_on_several_cards_the_fullest_counts() -> None:
    """For a model on several cards the fullest one counts."""
    cards = (card(5, processes={OURS: GB}), card(15.5, index=1, processes={OURS: None}))
    assert Watched(*cards, machine=True).runs().looks(4) is Level.CRITICAL


def test_without_a_model_the_card_with_most_room_counts() -> None:
    """Without a model the card with most room counts, because a server loads the next model there."""
    watched = Watched(*four(15.5, 15.5, 3.0, 15.5), machine=True)
    assert watched.looks(10) is Level.OK
    assert watched.looks(4, *four(15.5, 15.5, 15.2, 15.5)) is Level.CRITICAL
    assert watched.dog.words == "GPU 2: 15.2 GB of 16.0 GB in use"


def test_with_hidden_processes_the_card_with_most_room_counts() -> None:
    """In a container, where processes are hidden, the card with most room counts."""
    watched = Watched(card(15.5, processes=None), card(4, index=1, processes=None), machine=True).runs()
    assert watched.looks(10) is Level.OK


def test_cards_do_not_count_for_an_engine_without_gpu_layers() -> None:
    """Cards count for an engine without GPU layers only when its process has memory there."""
    watched = Watched(
        card(15.5, processes={OTHER: 15 * GB}), machine=True, on_cards=False, pids=lambda: (OURS,)
    )
    watched.runs(OTHER).runs()
    assert watched.looks(30) is Level.OK
    assert watched.looks(4, card(15.5, processes={OURS: GB})) is Level.CRITICAL


def test_only_the_cards_that_are_named_count() -> None:
    """Only the cards named by NVML's numbers count, and if none of them exists, that is the reason."""
    watched = Watched(*four(2.0, 15.5, 2.0, 2.0), only=(1,))
    assert watched.looks(4) is Level.CRITICAL
    assert watched.dog.taken() == UsedMemory(round(15.5 * GB))
    other = Watched(*four(2.0), only=(7,))
    other.looks(1)
    assert other.events("memory.unreadable") == [{"reason": "none of the selected cards is present"}]


def test_a_card_of_others_does_not_count_while_cards_cannot_be_read_either() -> None:
    """A full card of others does not count before, during or after a failure of the driver."""
    watched = Watched(*four(15.5, 10.0, 3.0, 3.0, ours=1), machine=True).runs()
    watched.looks(30)
    watched.scene = NoReading("NVML does not answer")
    assert [watched.looks() for _ in range(5)] == [Level.OK] * 5


def test_two_cards_that_take_turns_change_the_level_eight_times_a_minute_at_most() -> None:
    """If the card with most room changes every second, the level changes at most eight times a minute."""
    watched = Watched(*four(14.2, 13.8), machine=True)
    watched.looks(5)
    for second in range(60):
        watched.looks(1, *four(13.8 + 0.02 * (second % 2), 13.81))
    assert len(watched.events("memory.level")) <= 8


# missing readings


def test_an_unreadable_card_is_reported_once_and_stops_no_job_for_long() -> None:
    """The level stays for 20 s without readings and then is ok; loss and return are each reported once."""
    watched = Watched(card(15.5))
    watched.looks(5)
    watched.scene = NoReading("NVML does not answer")
    assert watched.looks(20) is Level.CRITICAL
    assert watched.looks(2) is Level.OK
    watched.looks(30)
    assert watched.events("memory.unreadable") == [{"reason": "NVML does not answer"}]
    assert watched.dog.room(RequiredMemory(99 * GB, "card")).fits, "what is not seen stops no load"
    assert watched.looks(4, card(15.5)) is Level.CRITICAL
    assert watched.events("memory.readable") == [{"cards": 1}]
    levels = [facts["to"] for facts in watched.events("memory.level")]
    assert levels == ["critical", "ok", "critical"]


# a job's own limits


def test_a_jobs_own_limits_are_in_force_while_it_runs() -> None:
    """A job's lower limits apply while it runs and end with it."""
    watched = Watched(card(10))
    assert watched.looks(10) is Level.OK
    with watched.dog.during(RelativeLimits(high=6, critical=8)) as record:
        assert watched.looks(4) is Level.CRITICAL
        assert not watched.dog.room(RequiredMemory(GB, "card")).fits
        assert watched.dog.most_bytes("card") == 8 * GB
    assert watched.looks(50) is Level.OK
    assert watched.dog.room(RequiredMemory(4 * GB, "card")).fits
    assert (record.to_json()["changes"], record.to_json()["seconds"]["critical"]) == (1, 1.0)


def test_a_job_cannot_raise_the_limits_of_the_service() -> None:
    """A job's limits above those of the service have no effect."""
    watched = Watched(card(15.2))
    with watched.dog.during(RelativeLimits(high=1.0, critical=1.0, keep_free_gb=0.0)):
        assert watched.looks(4) is Level.CRITICAL


def test_an_action_is_recorded_with_the_job() -> None:
    """An action is recorded with its memory reading in the running job and in no finished one."""
    watched = Watched(card(10))
    watched.looks(2)
    with watched.dog.during(before={"actions": {"released": 2}}) as record:
        watched.dog.did("released", num_ctx=8192)
    watched.dog.did("idle_released")
    reason = "GPU memory: 10.0 GB of 16.0 GB in use"
    assert watched.reported == [
        ("memory.action", {"action": "released", "num_ctx": 8192, "reason": reason}),
        ("memory.action", {"action": "idle_released", "reason": reason}),
    ]
    assert record.to_json()["actions"] == {"released": 3}
    assert record.to_json()["events"][0]["num_ctx"] == 8192


# main memory


def test_main_memory_decides_if_its_pressure_is_higher() -> None:
    """At 95 % of main memory the job stops even with an empty card, if our model is partly there."""
    watched = Watched(card(1), machine=True).runs(rss=7 * GB)
    watched.machine.now = Host(64 * GB, 3 * GB)
    assert watched.looks(4) is Level.CRITICAL
    assert (watched.dog.where, watched.dog.words) == (
        "host",
        "61.0 GB of 64.0 GB of this machine's memory in use",
    )
    assert watched.events("memory.level")[0]["host_used"] == "61.0 GB"
    watched.machine.now = Host(64 * GB, 5 * GB)
    assert watched.looks(30, card(15.5)) is Level.CRITICAL
    assert watched.dog.where == "card"


def test_at_equal_levels_the_card_is_reported() -> None:
    """At equal levels the card is reported, because most people can act on that."""
    watched = Watched(card(15.5, processes={OURS: GB}), machine=True).runs(rss=7 * GB)
    watched.machine.now = Host(64 * GB, 1 * GB)
    watched.looks(4)
    assert watched.dog.where == "card"


def test_a_machine_without_cards_is_watched_by_its_main_memory() -> None:
    """Without cards main memory is watched and loads are compared with it."""
    watched = Watched(machine=True)
    watched.scene = NoReading("no NVIDIA GPU on this machine", lasting=True)
    watched.looks(3)
    dog = watched.dog
    assert dog.words == "24.0 GB of 64.0 GB of this machine's memory in use"
    assert dog.room(RequiredMemory(36 * GB, "host")).fits
    assert not dog.room(RequiredMemory(37 * GB, "host")).fits
    assert (dog.most_bytes("host"), dog.most_bytes("card")) == (round(0.95 * 64 * GB), None)


# sizes


def test_used_memory_is_split_by_owner() -> None:
    """The sizes give all cards together, the model processes' part of them, and their resident memory."""
    watched = Watched(*four(4.0, 10.0, ours=1), machine=True).runs()
    watched.looks(1)
    assert watched.dog.taken() == UsedMemory(14 * GB, 8 * GB, GB)
    watched.looks(1, card(10, processes={OURS: None}))
    assert watched.dog.taken() == UsedMemory(10 * GB, None, GB)


def test_pids_of_our_own_engine_are_passed_in() -> None:
    """The pids of our own engine are passed in, because its process name does not identify it."""
    watched = Watched(card(1), machine=True, pids=lambda: (OURS,))
    watched.looks(1)
    assert watched.machine.asked == [(OURS,)]


def test_listed_models_count_as_free_for_half_a_minute() -> None:
    """The server's listed models count as free for half a minute after the listing."""
    watched = Watched(card(14))
    need = RequiredMemory(8 * GB, "card")
    watched.looks(1)
    assert not watched.dog.room(need).fits
    watched.dog.listed((HeldModel("other", 8 * GB, 7 * GB, 4096),))
    watched.looks(1)
    assert watched.dog.room(need).fits
    watched.looks(31)
    assert not watched.dog.room(need).fits


def test_a_load_of_unknown_size_fits() -> None:
    """A load of unknown size is tried, because only a size can be compared with memory."""
    watched = Watched(card(15.9))
    watched.looks(1)
    assert watched.dog.room(None).fits


def test_the_driver_keeps_its_own_part_of_a_card() -> None:
    """A load may take what is below the critical threshold minus the driver's part."""
    watched = Watched(card(1, reserved_bytes=GB // 2), card(1, index=1))
    watched.looks(1)
    assert watched.dog.most_bytes("card") == round(29.5 * GB)


def test_it_reads_once_a_second_and_wakes_waiters() -> None:
    """The watchdog reads once a second on its own and wakes every waiter."""
    clock = VirtualClock()
    thread = CardThread(ScriptedCards(lambda s: (card(s),), clock), clock)
    dog = MemoryWatchdog(thread, InlineHost(Machine(), clock), clock)
    seen = []

    async def work() -> None:
        thread.read_once()
        task = asyncio.create_task(dog.run())
        for _ in range(3):
            await dog.looked()
            seen.append(clock.monotonic())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_quietly(clock, work())
    assert seen == [0.0, 1.0, 2.0]


def test_a_load_of_our_own_is_no_trend() -> None:
    """The rising memory of our own load is not a trend, which would raise the level at every load."""
    steps = [1 + 0.4 * second for second in range(26)]
    watched = Watched(card(1))
    with watched.dog.loading():
        for used in steps:
            watched.looks(1, card(used))
    watched.looks(5, card(11))
    assert watched.events("memory.level") == []
    others = Watched(card(1))
    for used in steps:
        others.looks(1, card(used))
    assert [event["to"] for event in others.events("memory.level")] == ["high"]


# which memory is ours


def two(first: float, second: float, **processes: dict[int, int | None]) -> tuple[Card, Card]:
    """Two cards of 16 GB, with these processes on them."""
    return (
        card(first, uuid="A", processes=processes.get("a", {})),
        card(second, index=1, uuid="B", processes=processes.get("b", {})),
    )


def test_another_users_model_server_on_a_full_card_does_not_count() -> None:
    """Before our first load another user's llama-server on a full card does not raise the level."""
    watched = Watched(*two(15.4, 0.5, a={OTHER: 15 * GB}), machine=True)
    watched.machine.found = (Runner(OTHER, "llama-server", GB),)
    assert watched.looks(20) is Level.OK
    assert watched.dog.words == "GPU 1: 0.5 GB of 16.0 GB in use"


def test_the_model_server_that_our_load_started_counts() -> None:
    """Our model's card is that of the process that our load started."""
    watched = Watched(*two(15.4, 0.5, a={OTHER: 15 * GB}), machine=True)
    watched.machine.found = (Runner(OTHER, "llama-server", GB),)
    watched.looks(1)
    watched.runs()
    both: dict[str, dict[int, int | None]] = {"a": {OTHER: 15 * GB}, "b": {OURS: 9 * GB}}
    assert watched.looks(20, *two(15.4, 9.5, **both)) is Level.OK
    watched.looks(50, *two(3.0, 9.5, **both))
    assert watched.looks(4, *two(3.0, 15.5, **both)) is Level.CRITICAL
    watched.dog.did("released")
    assert watched.looks(1, *two(3.0, 15.5, **both)) is Level.OK, "what was released is ours no more"


def test_a_model_that_was_already_loaded_may_be_in_any_process() -> None:
    """If a load starts no process, every model process may be ours and all of them count."""
    watched = Watched(*two(1.0, 9.5, b={OURS: 9 * GB}), machine=True)
    watched.machine.found = (Runner(OURS, "llama-server", GB),)
    watched.looks(1)
    with watched.dog.loading():
        pass
    assert watched.looks(4, *two(1.0, 15.5, b={OURS: 9 * GB})) is Level.CRITICAL


def test_a_failed_load_makes_no_process_ours() -> None:
    """After a failed load the existing processes still belong to others."""
    watched = Watched(*two(15.4, 0.5, a={OTHER: 15 * GB}), machine=True)
    watched.machine.found = (Runner(OTHER, "llama-server", GB),)
    watched.looks(1)
    with pytest.raises(OutOfMemory), watched.dog.loading():
        raise OutOfMemory("no room")
    assert watched.looks(20) is Level.OK


def test_main_memory_that_others_fill_does_not_stop_a_model_on_a_card() -> None:
    """Main memory that others fill is reported once each time and does not stop a model on a card."""
    watched = Watched(card(9, processes={OURS: 8 * GB}), machine=True).runs()
    watched.machine.now = Host(64 * GB, 2 * GB)
    assert watched.looks(100) is Level.OK
    (action,) = watched.events("memory.action")
    assert action["action"] == "main_memory_left_to_others"
    assert action["reason"].startswith(
        "62.0 GB of 64.0 GB of this machine's memory in use; other programs use it"
    )
    watched.machine.now = Host(64 * GB, 40 * GB)
    watched.looks(60)
    watched.machine.now = Host(64 * GB, 2 * GB)
    watched.looks(10)
    assert len(watched.events("memory.action")) == 2


def test_main_memory_of_ours_counts_until_it_is_ok_again() -> None:
    """After a release for main memory the level stays until memory is ok, so that no load fills it again."""
    watched = Watched(card(2), machine=True).runs(rss=7 * GB)
    watched.machine.now = Host(64 * GB, 2 * GB)
    assert watched.looks(5) is Level.CRITICAL
    watched.machine.found = ()
    assert watched.looks(60) is Level.CRITICAL
    watched.machine.now = Host(64 * GB, 30 * GB)
    assert watched.looks(50) is Level.OK


def test_main_memory_counts_where_no_card_can_be_read_and_where_the_engine_is_ours() -> None:
    """Main memory counts if no card can be read or if the engine is ours."""
    unreadable = Watched(machine=True)
    unreadable.scene = NoReading("no NVIDIA GPU on this machine", lasting=True)
    embedded = Watched(card(1), machine=True, on_cards=False)
    for watched in (unreadable, embedded):
        watched.machine.now = Host(64 * GB, 2 * GB)
        assert watched.looks(5) is Level.CRITICAL


# missing values


def test_unreadable_main_memory_is_ok_after_a_while() -> None:
    """Main memory that cannot be read any more counts as ok after a while, so that no job stops
    permanently.
    """
    watched = Watched(card(1), machine=True, on_cards=False)
    watched.machine.now = Host(64 * GB, GB)
    assert watched.looks(5) is Level.CRITICAL
    watched.machine.now = None
    assert watched.looks(15) is Level.CRITICAL
    assert watched.looks(30) is Level.OK


def test_a_card_with_a_size_of_0_is_no_reading() -> None:
    """A card with a size of 0 is no reading, and a readable card beside it counts."""
    empty = card(0, total_gb=0)
    alone = Watched(empty, machine=True)
    assert alone.looks(20) is Level.OK
    assert alone.dog.latest is not None
    assert alone.dog.latest.cards is None
    beside = Watched(empty, card(15.5, index=1))
    assert beside.looks(5) is Level.CRITICAL
