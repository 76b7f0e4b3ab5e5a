"""The latest reading of main memory and processes, kept by a thread of its own.

Reading /proc may block for ever: `/proc/PID/cmdline` waits for a lock of that process, which one that hangs
in a driver or on a network file system does not give back. Such a read must stop neither the watchdog nor
the end of the service, so it is not made in asyncio's pool, for which Python waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from spoolama.clock import Clock
from spoolama.gpu.readings import Host, Runner

__all__ = ["HostSource", "HostThread", "SeenHost"]

_LONGEST_STOP_S = 0.2


class HostSource(Protocol):
    """Reads this machine's memory; may block for ever."""

    def host(self) -> Host | None:
        """The machine now."""
        ...

    def runners(self, pids: Iterable[int] = ()) -> tuple[Runner, ...]:
        """Processes that hold a model."""
        ...

    def look_again(self) -> None:
        """Processes may have begun or ended: look for them at the next call."""
        ...


@dataclass(frozen=True, slots=True)
class SeenHost:
    """What is known of this machine at this moment; all but `at` and `known` empty where it is too old."""

    at: float
    """Monotonic seconds when the reading began."""
    host: Host | None = None
    runners: tuple[Runner, ...] = ()
    own: frozenset[int] = frozenset()
    """Process ids of our own engine."""
    known: bool = False
    """Whether there is a reading, and it is not too old."""
    not_yet: bool = False
    """Nothing was read so far, and it has not taken too long yet."""


class HostThread:
    """Reads when it is asked to, in a thread of its own; or call `read_once` without a thread.

    Args:
        source: Where readings come from. It is never called twice at once.
        clock: Tells the age of readings.
        pids: Process ids of our own engine.
        stale_after_s: A reading older than that is no reading.
        patience_s: So long `refresh` waits for a reading.
    """

    def __init__(
        self,
        source: HostSource,
        clock: Clock,
        *,
        pids: Callable[[], Iterable[int]] = tuple,
        stale_after_s: float = 5.0,
        patience_s: float = 1.0,
    ) -> None:
        self._source = source
        self._clock = clock
        self._pids = pids
        self._stale_after_s = stale_after_s
        self._patience_s = patience_s
        self._wanted = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._reading: asyncio.Future[None] | None = None
        # Replaced as a whole, so that whoever takes it sees one reading without a lock that could hang.
        self._kept = SeenHost(clock.monotonic(), not_yet=True)

    def latest(self) -> SeenHost:
        """What is known now. Never waits."""
        kept = self._kept
        if self._clock.monotonic() - kept.at > self._stale_after_s:
            return SeenHost(kept.at)
        return kept

    def look_again(self) -> None:
        """Processes may have begun or ended."""
        self._source.look_again()

    def read_once(self) -> None:
        """Read now and keep what came; may block as long as the kernel does."""
        began, own = self._clock.monotonic(), frozenset(self._pids())
        self._kept = SeenHost(began, self._source.host(), self._source.runners(own), own, known=True)

    async def refresh(self) -> None:
        """Have it read anew and wait for that, though not for one that hangs; starts the thread."""
        if self._reading is not None and not self._reading.done():
            return  # the last one hangs; what it brings is there when it comes back
        if self._thread is None:
            loop = asyncio.get_running_loop()
            self._thread = threading.Thread(
                target=self._run, args=(loop,), name="machine readings", daemon=True
            )
            self._thread.start()
        self._reading = asyncio.get_running_loop().create_future()
        self._wanted.set()
        await asyncio.wait({self._reading}, timeout=self._patience_s)

    def stop(self) -> None:
        """Read no more. Waits 0.2 s at most; a read that hangs is left behind."""
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
            # A defect in a reading leaves the last one to grow old, and does not end them.
            with contextlib.suppress(Exception):
                self.read_once()
            with contextlib.suppress(RuntimeError):  # the loop has ended while this read hung
                loop.call_soon_threadsafe(self._has_read)

    def _has_read(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)
