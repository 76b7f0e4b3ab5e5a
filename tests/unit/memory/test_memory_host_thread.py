"""Readings of /proc that hang: the watchdog goes on, and Python ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterable

from spoolama.memory.card_thread import CardThread
from spoolama.memory.host_thread import HostThread
from spoolama.memory.level import GB, Level
from spoolama.memory.readings import Host, Runner
from spoolama.memory.room import Need
from spoolama.memory.watchdog import MemoryWatchdog
from support.cards import ScriptedCards, card
from support.hand_clock import HandClock


class Stuck:
    """Reads memory, and hangs in the look for processes while `go` is not set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.again = 0

    def host(self) -> Host | None:
        return Host(64 * GB, GB)

    def runners(self, pids: Iterable[int] = ()) -> tuple[Runner, ...]:
        self.go.wait()
        return (Runner(7, "llama-server", GB),)

    def look_again(self) -> None:
        self.again += 1


def test_a_reading_that_grew_old_is_none() -> None:
    """After 5 s neither machine nor processes are known; what was not read yet is something else."""
    clock, source = HandClock(), Stuck()
    source.go.set()
    host = HostThread(source, clock)
    assert (host.latest().not_yet, host.latest().known) == (True, False)
    host.read_once()
    assert host.latest().host == Host(64 * GB, GB)
    clock.move(5.1)
    assert (host.latest().host, host.latest().runners, host.latest().known) == (None, (), False)
    assert not host.latest().not_yet


def test_the_watchdog_looks_on_while_a_read_of_proc_hangs() -> None:
    """It looks each second though the first reading never came; a load waits for it for 5 s only."""
    clock, source = HandClock(), Stuck()
    cards = CardThread(ScriptedCards(lambda _: (card(15.5),), clock), clock)
    host = HostThread(source, clock, wait_s=0.02)
    dog = MemoryWatchdog(cards, host, clock)

    async def look(times: int) -> None:
        for _ in range(times):
            cards.read_once()
            await host.refresh()
            dog.look()
            clock.move(1.0)

    async def work() -> None:
        await look(5)
        assert dog.level is Level.CRITICAL
        assert not dog.room(Need(GB, "host")).fits
        await look(3)
        assert dog.room(Need(GB, "host")).fits
        source.go.set()
        while not host.latest().known:
            await host.refresh()
            await asyncio.sleep(0)
        dog.look()
        assert dog.latest is not None
        assert [runner.pid for runner in dog.latest.runners] == [7]
        host.stop()

    asyncio.run(work())


_HANGS = """
import asyncio, threading
from spoolama.clock import SystemClock
from spoolama.memory.card_thread import CardThread
from spoolama.memory.host_thread import HostThread
from spoolama.memory.readings import NoCards
from spoolama.memory.watchdog import MemoryWatchdog

class Stuck:
    def host(self): threading.Event().wait()
    def runners(self, pids=()): return ()
    def look_again(self): pass

async def main():
    clock = SystemClock()
    cards = CardThread(NoCards(), clock)
    dog = MemoryWatchdog(cards, HostThread(Stuck(), clock, wait_s=0.05), clock, every_s=0.01)
    task = asyncio.create_task(dog.run())
    await dog.looked()
    await dog.looked()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    print("looked")

asyncio.run(main())
"""


def test_python_ends_though_a_read_of_proc_hangs() -> None:
    """The thread is left behind; asyncio's pool would be waited for, for ever."""
    done = subprocess.run(
        [sys.executable, "-c", _HANGS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("looked\n", 0), done.stderr
