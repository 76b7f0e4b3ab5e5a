"""Sends watchdog pings and the status line to systemd.

A ping is sent only while every task is alive: the scanner has scanned recently, and the running job has made
progress, or waits with a deadline that was fixed when the wait began. Otherwise the pings stop, and systemd
restarts the service.
"""

from __future__ import annotations

from spoolama.clock import Clock
from spoolama.service.logs import say
from spoolama.service.notify import Notifier
from spoolama.service.state import ServiceState
from spoolama.service.status_text import status_line

__all__ = ["Heartbeat"]

_TICK_S = 2.0


class Heartbeat:
    """Sends pings and the status.

    Args:
        state: Has the liveness of every task.
        notifier: Receives pings and status.
        clock: Time.
        interval_s: Seconds between pings; None: no pings.
    """

    def __init__(
        self, state: ServiceState, notifier: Notifier, clock: Clock, *, interval_s: float | None
    ) -> None:
        self._state = state
        self._notifier = notifier
        self._clock = clock
        self._interval_s = interval_s
        self._said = ""
        self._silent: list[str] = []

    async def run(self) -> None:
        """Send pings until cancelled."""
        tick = _TICK_S if self._interval_s is None else min(_TICK_S, self._interval_s)
        while True:
            self.beat()
            await self._clock.sleep(tick)

    def beat(self) -> bool:
        """Check liveness once and update the status; returns whether it sent a ping."""
        silent = self._state.silent()
        if silent and silent != self._silent:
            say("service.silent", who=", ".join(silent))
        self._silent = silent
        self.tell()
        if self._interval_s is None or silent:
            return False
        self._notifier.watchdog()
        return True

    def tell(self) -> None:
        """Send the status if it has changed."""
        text = status_line(self._state)
        if text != self._said:
            self._notifier.status(text)
            self._said = text
