"""Reads the GPUs in a separate thread, so that a driver that hangs does not block the service."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from spoolama.clock import Clock, SystemClock
from spoolama.memory.readings import Card, CardProbe, NoReading

__all__ = ["NOT_YET", "CardThread", "Latest"]

NOT_YET = "the GPUs have not been read yet"
"""The reason reported until the first reading arrives or times out."""
_LONGEST_STOP_S = 0.2


@dataclass(frozen=True, slots=True)
class Latest:
    """The current state of the cards."""

    cards: tuple[Card, ...] | None
    """None if the cards cannot be read or the last reading is too old; `blind` has the reason."""
    blind: str | None
    """Why `cards` is None, as text; None if there are cards."""
    lasting: bool = False
    """True if there is no card or no driver; False if a driver does not answer."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """The result of the last finished reading."""

    at: float
    """Monotonic seconds when the reading began; the values can be that old."""
    cards: tuple[Card, ...] | None
    blind: str | None
    lasting: bool = False


class CardThread:
    """Reads the cards every second. Call `start` and `stop` once each, or call `read_once` without a thread.

    Args:
        probe: Source of the readings. Calls to it never overlap.
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
        self._probe = probe
        self._clock = clock or SystemClock()
        self._every_s = every_s
        self._stale_after_s = stale_after_s
        self._absent_every_s = absent_every_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        # Replaced as a whole, so that readers get a consistent value without a lock that could hang.
        self._kept = _Kept(self._clock.monotonic(), None, NOT_YET)

    def start(self) -> None:
        """Start the daemon thread. Does nothing after `stop`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gpu readings", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop reading. Waits at most 0.2 s; a call that hangs is abandoned."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LONGEST_STOP_S)

    def latest(self) -> Latest:
        """Return the latest reading. Never waits."""
        kept = self._kept
        age_s = max(0.0, self._clock.monotonic() - kept.at)
        allowed_s = self._stale_after_s + (self._absent_every_s if kept.lasting else 0.0)
        if age_s > allowed_s:
            return Latest(None, f"NVML has not answered for {age_s:.0f} s")
        return Latest(kept.cards, kept.blind, kept.lasting)

    def read_once(self) -> float:
        """Read the cards now and store the result; may block as long as the probe does.

        Returns:
            Seconds until the next reading is due.
        """
        began = self._clock.monotonic()
        try:
            kept = _Kept(began, self._probe.read(), None)
        except NoReading as error:
            kept = _Kept(began, None, error.reason, error.lasting)
        except Exception as error:
            # Report a defect in a probe, but keep reading: the memory limits depend on the readings.
            kept = _Kept(began, None, f"reading the GPUs failed: {type(error).__name__}: {error}")
        self._kept = kept
        if kept.lasting:
            return self._absent_every_s
        # Sleep at least half of the interval, however long a reading takes.
        return max(self._every_s / 2, self._every_s - (self._clock.monotonic() - began))

    def _run(self) -> None:
        while not self._stop.is_set():
            self._stop.wait(self.read_once())
