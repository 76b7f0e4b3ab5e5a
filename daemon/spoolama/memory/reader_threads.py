"""Reads the GPUs and main memory in threads of their own, because such a read can block forever.

NVML waits for the driver, and `/proc/PID/cmdline` for a lock of that process; a driver or a process that
hangs never answers. Such a read must block neither the watchdog nor the shutdown of the service, so it does
not run in asyncio's thread pool, which Python waits for at exit.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from spoolama.clock import Clock, SystemClock
from spoolama.memory.readings import Card, CardProbe, Host, NoReading, Runner

NOT_YET = "the GPUs have not been read yet"
"""The reason reported until the first reading arrives or times out."""
_LONGEST_STOP_S = 0.2


class ReaderThread(ABC):
    """A daemon thread that reads again and again. Call `start` and `stop` once each.

    Args:
        name: The name of the thread.
        clock: Measures the age of readings.
        every_s: Seconds from the start of one reading to the start of the next.
        stale_after_s: Readings older than this are discarded.
    """

    def __init__(self, name: str, clock: Clock, every_s: float, stale_after_s: float) -> None:
        self._clock = clock
        self._every_s = every_s
        self._stale_after_s = stale_after_s
        self._stop = threading.Event()
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread, unless it was started or stopped before."""
        if self._thread.ident is None and not self._stop.is_set():
            self._thread.start()

    def stop(self) -> None:
        """Stop reading. Waits at most 0.2 s; a read that hangs is abandoned."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_LONGEST_STOP_S)

    def wait_for_first(self, seconds: float) -> None:
        """Block until the thread has read once, or until this time is over."""
        self._first.wait(seconds)

    @abstractmethod
    def read_once(self) -> float:
        """Read now and store the result; may block forever. Calls must not overlap.

        Returns:
            Seconds until the next reading is due.
        """

    def _pause_s(self, began: float) -> float:
        """Return the rest of the interval, but at least half of it, however long the reading took."""
        return max(self._every_s / 2, self._every_s - (self._clock.monotonic() - began))

    def _run(self) -> None:
        while not self._stop.is_set():
            pause_s = self.read_once()
            self._first.set()
            self._stop.wait(pause_s)


@dataclass(frozen=True, slots=True)
class CardReading:
    """A reading of the cards."""

    at: float
    """Monotonic seconds when the reading began; the values can be that old."""
    cards: tuple[Card, ...] | None
    """None if the cards cannot be read or the last reading is too old; `unreadable` has the reason."""
    unreadable: str | None
    """Why `cards` is None, as text; None if there are cards."""
    lasting: bool = False
    """True if there is no card or no driver; False if a driver does not answer."""


class CardThread(ReaderThread):
    """Reads the cards.

    Args:
        probe: Source of the readings.
        clock: Measures the age of readings.
        every_s: Seconds from the start of one reading to the start of the next.
        stale_after_s: Readings older than this are discarded.
        absent_every_s: Seconds between readings if there is no card or no driver.
    """

    def __init__(
        self,
        probe: CardProbe,
        clock: Clock | None = None,
        *,
        every_s: float = 1.0,
        stale_after_s: float = 5.0,
        absent_every_s: float = 60.0,
    ) -> None:
        super().__init__("gpu readings", clock or SystemClock(), every_s, stale_after_s)
        self._probe = probe
        self._absent_every_s = absent_every_s
        # Replaced as a whole, so that readers get a consistent value without a lock that could hang.
        self._kept = CardReading(self._clock.monotonic(), None, NOT_YET)

    def latest(self) -> CardReading:
        """Return the latest reading. Never waits."""
        kept = self._kept
        age_s = max(0.0, self._clock.monotonic() - kept.at)
        allowed_s = self._stale_after_s + (self._absent_every_s if kept.lasting else 0.0)
        if age_s > allowed_s:
            return CardReading(kept.at, None, f"NVML has not answered for {age_s:.0f} s")
        return kept

    def read_once(self) -> float:
        began = self._clock.monotonic()
        try:
            kept = CardReading(began, self._probe.read(), None)
        except NoReading as error:
            kept = CardReading(began, None, error.reason, error.lasting)
        except Exception as error:
            # Report a defect in a probe, but keep reading: the memory limits depend on the readings.
            kept = CardReading(began, None, f"reading the GPUs failed: {type(error).__name__}: {error}")
        self._kept = kept
        return self._absent_every_s if kept.lasting else self._pause_s(began)


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
class HostReading:
    """A reading of this machine; if it is too old, only `at` is set."""

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


class HostThread(ReaderThread):
    """Reads this machine's memory and the model processes.

    Args:
        source: Source of the readings.
        clock: Measures the age of readings.
        pids: Returns the process ids of our own engine.
        every_s: Seconds from the start of one reading to the start of the next.
        stale_after_s: Readings older than this are discarded.
    """

    def __init__(
        self,
        source: HostSource,
        clock: Clock,
        *,
        pids: Callable[[], Iterable[int]] = tuple,
        every_s: float = 1.0,
        stale_after_s: float = 5.0,
    ) -> None:
        super().__init__("machine readings", clock, every_s, stale_after_s)
        self._source = source
        self._pids = pids
        # Replaced as a whole, so that readers get a consistent value without a lock that could hang.
        self._kept = HostReading(clock.monotonic(), not_yet=True)

    def latest(self) -> HostReading:
        """Return the latest reading. Never waits."""
        kept = self._kept
        if self._clock.monotonic() - kept.at > self._stale_after_s:
            return HostReading(kept.at)
        return kept

    def look_again(self) -> None:
        """Scan all processes at the next reading."""
        self._source.look_again()

    def read_once(self) -> float:
        began = self._clock.monotonic()
        # After an exception the last reading becomes stale.
        with contextlib.suppress(Exception):
            own = frozenset(self._pids())
            self._kept = HostReading(began, self._source.host(), self._source.runners(own), own, known=True)
        return self._pause_s(began)
