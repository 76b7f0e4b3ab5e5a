"""The latest reading of the cards, kept by a thread of its own: a driver may hang, the service may not."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from spoolama.clock import Clock, SystemClock
from spoolama.gpu.readings import Card, CardProbe, NoReading

__all__ = ["NOT_YET", "CardThread", "Latest"]

NOT_YET = "the GPUs have not been read yet"
"""Why there are no cards until the first reading, or until it takes too long."""
_LONGEST_STOP_S = 0.2


@dataclass(frozen=True, slots=True)
class Latest:
    """What is known of the cards at this moment."""

    cards: tuple[Card, ...] | None
    """None: they cannot be read, or what was read is too old; `blind` says which."""
    blind: str | None
    """Why there are no cards, in words; None with cards."""
    lasting: bool = False
    """There is no card or no driver to read, rather than one that does not answer."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the last finished reading said."""

    at: float
    """Monotonic seconds when it began: what it says may be as old."""
    cards: tuple[Card, ...] | None
    blind: str | None
    lasting: bool = False


class CardThread:
    """Reads the cards every second. `start` and `stop` it once; or call `read_once` without a thread.

    Args:
        probe: Where readings come from. It is never called twice at once.
        clock: Tells the age of readings.
        every_s: Seconds from one reading's begin to the next one's.
        stale_after_s: A reading older than that is no reading.
        absent_every_s: Seconds between two looks where there is no card or no driver.
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
        # Replaced as a whole, so that whoever reads it sees one reading without a lock that could hang.
        self._kept = _Kept(self._clock.monotonic(), None, NOT_YET)

    def start(self) -> None:
        """Begin to read, in a thread that Python does not wait for at its end. After `stop`: nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gpu readings", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Read no more. Waits 0.2 s at most; a call that hangs is left behind."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LONGEST_STOP_S)

    def latest(self) -> Latest:
        """What is known now. Never waits."""
        kept = self._kept
        age_s = max(0.0, self._clock.monotonic() - kept.at)
        allowed_s = self._stale_after_s + (self._absent_every_s if kept.lasting else 0.0)
        if age_s > allowed_s:
            return Latest(None, f"NVML has not answered for {age_s:.0f} s")
        return Latest(kept.cards, kept.blind, kept.lasting)

    def read_once(self) -> float:
        """Read now and keep what came; may block as long as the probe does.

        Returns:
            Seconds until the next reading is due.
        """
        began = self._clock.monotonic()
        try:
            kept = _Kept(began, self._probe.read(), None)
        except NoReading as error:
            kept = _Kept(began, None, error.reason, error.lasting)
        except Exception as error:
            # A defect in a probe is told, and does not end the readings, on which other programs rely.
            kept = _Kept(began, None, f"reading the GPUs failed: {type(error).__name__}: {error}")
        self._kept = kept
        if kept.lasting:
            return self._absent_every_s
        # At least half the time is rest, whatever a reading costs.
        return max(self._every_s / 2, self._every_s - (self._clock.monotonic() - began))

    def _run(self) -> None:
        while not self._stop.is_set():
            self._stop.wait(self.read_once())
