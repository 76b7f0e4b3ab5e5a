"""Reads main memory and processes in a separate thread, because reading /proc can block forever.

`/proc/PID/cmdline` waits for a lock of that process. A process that hangs in a driver or on a network file
system never releases it. Such a read must block neither the watchdog nor the shutdown of the service, so it
does not run in asyncio's thread pool, which Python waits for at exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from spoolama.clock import Clock
from spoolama.memory.readings import Host, Runner

__all__ = ["HostSource", "HostThread", "SeenHost"]

_LONGEST_STOP_S = 0.2


class HostSource(Protocol):
    """Reads this machine's memory; may block forever."""

    def host(self) -> Host | None:
        """Return the memory of the machine."""
        ...

    def runners(self, pids: Iterable[int] = ()) -> tuple[Runner, ...]:
        """Return the processes that hold a model."""
        ...

    def look_again(self) -> None:
        """Scan all processes at the next call, because some may have started or ended."""
        ...


@dataclass(frozen=True, slots=True)
class SeenHost:
    """The current state of this machine; if it is too old, only `at` and `known` are set."""

    at: float
    """Monotonic seconds when the reading began."""
    host: Host | None = None
    runners: tuple[Runner, ...] = ()
    own: frozenset[int] = frozenset()
    """Process ids of our own engine."""
    known: bool = False
    """Whether there is a recent reading."""
    not_yet: bool = False
    """The first reading is still outstanding and not overdue."""


class HostThread:
    """Reads on request in its own thread; or call `read_once` without a thread.

    Args:
        source: Source of the readings. Calls to it never overlap.
        clock: Measures the age of readings.
        pids: Returns the process ids of our own engine.
        stale_after_s: Readings older than this are discarded.
        patience_s: Seconds that `refresh` waits for a reading.
    """

    def __init__(
        self,
        source: HostSource,
        clock: Clock,
        *,
        pids: Callable[[], Iterable[int]] = tuple,
        stale_after_s: float = 5.0,
        wait_s: float = 1.0,
    ) -> None:
        self._source = source
        self._clock = clock
        self._pids = pids
        self._stale_after_s = stale_after_s
        self._wait_s = wait_s
        self._wanted = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._reading: asyncio.Future[None] | None = None
        # Replaced as a whole, so that readers get a consistent value without a lock that could hang.
        self._kept = SeenHost(clock.monotonic(), not_yet=True)

    def latest(self) -> SeenHost:
        """Return the latest reading. Never waits."""
        kept = self._kept
        if self._clock.monotonic() - kept.at > self._stale_after_s:
            return SeenHost(kept.at)
        return kept

    def look_again(self) -> None:
        """Scan all processes at the next reading."""
        self._source.look_again()

    def read_once(self) -> None:
        """Read now and store the result; may block as long as the kernel does."""
        began, own = self._clock.monotonic(), frozenset(self._pids())
        self._kept = SeenHost(began, self._source.host(), self._source.runners(own), own, known=True)

    async def refresh(self) -> None:
        """Request a reading and wait up to `wait_s` for it; starts the thread if necessary."""
        if self._reading is not None and not self._reading.done():
            return  # the last reading hangs; its result is stored when it returns
        if self._thread is None:
            loop = asyncio.get_running_loop()
            self._thread = threading.Thread(
                target=self._run, args=(loop,), name="machine readings", daemon=True
            )
            self._thread.start()
        self._reading = asyncio.get_running_loop().create_future()
        self._wanted.set()
        await asyncio.wait({self._reading}, timeout=self._wait_s)

    def stop(self) -> None:
        """Stop reading. Waits at most 0.2 s; a read that hangs is abandoned."""
        self._stopped = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(_LONGEST_STOP_S)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._stopped:
                return
            # An exception in a reading does not end the thread; the last reading becomes stale.
            with contextlib.suppress(Exception):
                self.read_once()
            with contextlib.suppress(RuntimeError):  # the event loop ended while this read hung
                loop.call_soon_threadsafe(self._has_read)

    def _has_read(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)
