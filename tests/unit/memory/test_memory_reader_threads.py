"""The threads that read cards and /proc: the latest reading, its maximum age, and reads that hang."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from nvml_stub import Script
from spoolama.memory.level import Level
from spoolama.memory.reader_threads import CardThread, HostThread
from spoolama.memory.readings import Card, Host, NoReading, Runner
from spoolama.memory.room import RequiredMemory
from spoolama.memory.watchdog import MemoryWatchdog
from support.cards import GB, ScriptedCards, card
from support.hand_clock import HandClock


class Gated:
    """A probe whose calls block from the second one on, until the gate opens."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.hanging = threading.Event()
        self.back = threading.Event()
        self.calls = 0

    def read(self) -> tuple[Card, ...]:
        self.calls += 1
        if self.calls == 4:
            self.back.set()  # the thread called again, so it has stored the third reading
        if self.calls == 2:
            self.hanging.set()
            assert self.gate.wait(60)
        return (card(self.calls),)


def test_the_latest_reading_is_returned() -> None:
    """A reading is replaced by the next one."""
    clock = HandClock()
    cards = CardThread(ScriptedCards(lambda s: (card(s),), clock), clock)
    assert cards.read_once() == 1.0
    clock.move(4.0)
    latest = cards.latest()
    assert (latest.cards, latest.unreadable) == ((card(0),), None)
    cards.read_once()
    assert cards.latest().cards == (card(4),)


def test_before_the_first_reading_nothing_is_known() -> None:
    """Before the first reading there are no cards and a reason; after a while without a reading, NVML does
    not answer.
    """
    clock = HandClock()
    cards = CardThread(ScriptedCards([(0, (card(1),))], clock), clock)
    assert (cards.latest().cards, cards.latest().unreadable) == (None, "the GPUs have not been read yet")
    clock.move(6)
    assert cards.latest().unreadable == "NVML has not answered for 6 s"


def test_an_old_reading_is_no_reading() -> None:
    """A reading older than 5 s gives no cards."""
    clock = HandClock()
    script = ScriptedCards([(0, (card(1),)), (100, NoReading("away"))], clock)
    cards = CardThread(script, clock)
    cards.read_once()
    clock.move(5.0)
    assert cards.latest().cards == (card(1),)
    clock.move(7.0)
    latest = cards.latest()
    assert (latest.cards, latest.unreadable) == (None, "NVML has not answered for 12 s")
    clock.move(100)
    cards.read_once()
    assert cards.latest().unreadable == "away"
    clock.move(6)
    assert cards.latest().unreadable == "NVML has not answered for 6 s"


def test_a_machine_without_cards_is_read_once_a_minute() -> None:
    """A machine without cards is read once a minute, its result does not expire, and a new
    driver is found.
    """
    clock = HandClock()
    absent = NoReading("no NVIDIA driver on this machine", lasting=True)
    cards = CardThread(ScriptedCards([(0, absent), (60, (card(2),))], clock), clock)
    assert cards.read_once() == 60.0
    clock.move(60)
    latest = cards.latest()
    assert (latest.unreadable, latest.lasting) == ("no NVIDIA driver on this machine", True)
    assert cards.read_once() == 1.0
    assert (cards.latest().cards, cards.latest().lasting) == ((card(2),), False)


def test_the_age_of_a_slow_reading_counts_from_its_start() -> None:
    """The age of a reading counts from its start, and after a call of 3 s the next one waits
    half a second.
    """
    clock = HandClock()

    def slow(seconds: float) -> tuple[Card, ...]:
        clock.move(3.0)
        return (card(1),)

    cards = CardThread(ScriptedCards(slow, clock), clock)
    assert cards.read_once() == 0.5
    clock.move(2.0)
    assert cards.latest().cards == (card(1),)
    clock.move(1.0)
    assert cards.latest().unreadable == "NVML has not answered for 6 s"


def test_an_unexpected_error_in_a_probe_is_reported_and_passes() -> None:
    """An unexpected exception becomes a reason, and the next reading is made."""
    clock = HandClock()

    def broken(seconds: float) -> tuple[Card, ...]:
        if seconds < 1:
            raise ZeroDivisionError("division by zero")
        return (card(1),)

    cards = CardThread(ScriptedCards(broken, clock), clock)
    cards.read_once()
    assert cards.latest().unreadable == "reading the GPUs failed: ZeroDivisionError: division by zero"
    clock.move(1)
    cards.read_once()
    assert cards.latest().cards == (card(1),)


def test_while_a_call_hangs_the_age_grows_until_it_answers() -> None:
    """While the driver hangs nobody waits for it, and when it answers, readings resume."""
    clock, probe = HandClock(), Gated()
    cards = CardThread(probe, clock, every_s=0.002)
    cards.start()
    try:
        assert probe.hanging.wait(30)
        assert cards.latest().cards == (card(1),)
        clock.move(12)
        assert cards.latest().unreadable == "NVML has not answered for 12 s"
        probe.gate.set()
        assert probe.back.wait(30)
        assert cards.latest().unreadable is None
    finally:
        probe.gate.set()
        cards.stop()


def test_stop_leaves_a_hanging_call_behind() -> None:
    """`stop` waits 0.2 s, and the thread ends once its call returns."""
    probe = Gated()
    cards = CardThread(probe, every_s=0.002)
    cards.start()
    assert probe.hanging.wait(30)
    thread = next(t for t in threading.enumerate() if t.name == "gpu readings")
    began = time.monotonic()
    cards.stop()
    took = time.monotonic() - began
    assert thread.is_alive()
    assert thread.daemon
    assert took < 5  # 0.2 s on a free machine; the call hangs for 60
    probe.gate.set()
    thread.join(30)
    assert not thread.is_alive()
    assert probe.calls == 2


def test_a_stopped_thread_does_not_read() -> None:
    """A stopped thread never calls the probe, and stopping an idle one is no error."""
    clock = HandClock()
    probe = ScriptedCards([(0, (card(1),))], clock)
    cards = CardThread(probe, clock)
    cards.stop()
    cards.start()
    cards.stop()
    assert probe.reads == 0


_NVML_HANGS = """
import sys, threading
from spoolama.memory.reader_threads import CardThread
from spoolama.memory.nvml import NvmlCards

cards = CardThread(NvmlCards())
cards.start()
print("started", flush=True)
sys.stdin.readline()
cards.stop()
print([t.name for t in threading.enumerate() if t.daemon], cards.latest(), flush=True)
"""


@pytest.mark.parametrize("call", ["nvmlInitWithFlags", "nvmlDeviceGetMemoryInfo"])
def test_a_process_ends_while_nvml_hangs(tmp_path: Path, call: str) -> None:
    """A process whose pynvml call hangs for a minute ends within seconds with status 0."""
    script = Script(tmp_path / "script", hanging=[call])
    script.write()
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _NVML_HANGS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | script.env(),
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    script.wait_until_a_call_hangs()
    began = time.monotonic()
    out, _ = child.communicate("\n", timeout=50)
    took = time.monotonic() - began
    assert out.startswith("['gpu readings'] CardReading(at=")
    assert "cards=None, unreadable='the GPUs have not been read yet'" in out
    assert child.returncode == 0
    assert took < 20  # the call would hang for 60 s


def test_scripted_cards_follow_their_scenes() -> None:
    """Each scene holds until the next, the first one from the beginning; sizes are in GB of 2^30 bytes."""
    clock = HandClock()
    probe = ScriptedCards([(2, (card(1, 24, index=1),)), (5, NoReading("gone", lasting=True))], clock)
    assert probe.read() == (Card(1, "scripted card", 24 * GB, GB),)
    clock.move(4.9)
    assert probe.read()[0].free_bytes == 23 * GB
    clock.move(0.1)
    with pytest.raises(NoReading, match="gone") as caught:
        probe.read()
    assert caught.value.lasting
    assert probe.reads == 3


class StuckProc:
    """Reads memory, and blocks in the scan of processes while `go` is not set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.back = threading.Event()
        self.calls = 0

    def host(self) -> Host | None:
        return Host(64 * GB, GB)

    def runners(self, pids: Iterable[int] = ()) -> tuple[Runner, ...]:
        self.calls += 1
        if self.calls == 3:
            self.back.set()  # the thread reads again, so it has stored the result of the second call
        self.go.wait()
        return (Runner(7, "llama-server", GB),)

    def look_again(self) -> None:
        """Nothing is cached."""


def test_an_expired_reading_is_none() -> None:
    """After 5 s neither machine nor processes are known, which differs from before the first reading."""
    clock, source = HandClock(), StuckProc()
    source.go.set()
    host = HostThread(source, clock)
    assert (host.latest().not_yet, host.latest().known) == (True, False)
    host.read_once()
    assert host.latest().host == Host(64 * GB, GB)
    clock.move(5.1)
    assert (host.latest().host, host.latest().runners, host.latest().known) == (None, (), False)
    assert not host.latest().not_yet


def test_the_watchdog_runs_while_a_read_of_proc_hangs() -> None:
    """The watchdog reads each second although /proc hangs, and a load waits for it at most 5 s."""
    clock, source = HandClock(), StuckProc()
    cards = CardThread(ScriptedCards(lambda _: (card(15.5),), clock), clock)
    host = HostThread(source, clock, every_s=0.01)
    dog = MemoryWatchdog(cards, host, clock)

    def look(times: int) -> None:
        for _ in range(times):
            cards.read_once()
            dog.look()
            clock.move(1.0)

    host.start()
    try:
        look(5)
        assert dog.level is Level.CRITICAL
        assert not dog.room(RequiredMemory(GB, "host")).fits
        look(3)
        assert dog.room(RequiredMemory(GB, "host")).fits
        source.go.set()
        assert source.back.wait(30)
        dog.look()
        assert dog.latest is not None
        assert [runner.pid for runner in dog.latest.runners] == [7]
    finally:
        source.go.set()
        host.stop()


_PROC_HANGS = """
import asyncio, threading
from spoolama.clock import SystemClock
from spoolama.memory.reader_threads import CardThread
from spoolama.memory.reader_threads import HostThread
from spoolama.memory.readings import NoCards
from spoolama.memory.watchdog import MemoryWatchdog

class Stuck:
    def host(self): threading.Event().wait()
    def runners(self, pids=()): return ()
    def look_again(self): pass

async def main():
    clock = SystemClock()
    cards = CardThread(NoCards(), clock)
    dog = MemoryWatchdog(cards, HostThread(Stuck(), clock), clock, every_s=0.01)
    task = asyncio.create_task(dog.run())
    await dog.looked()
    await dog.looked()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    print("looked")

asyncio.run(main())
"""


def test_python_ends_though_a_read_of_proc_hangs() -> None:
    """Python exits without the thread, while it would wait for a thread of asyncio's pool."""
    done = subprocess.run(
        [sys.executable, "-c", _PROC_HANGS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("looked\n", 0), done.stderr
