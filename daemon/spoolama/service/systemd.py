"""Sends notifications, the status line and watchdog pings to systemd, with the sdnotify package.

A ping is sent only while every task is alive: the scanner has scanned recently, and the running job has made
progress, or waits with a deadline that was fixed when the wait began. Otherwise the pings stop, and systemd
restarts the service.

sdnotify 0.3.2 has three properties that a daemon must handle:

* It encodes latin-1. systemd expects UTF-8 and clears the unit's status for anything else.
  So we pass the UTF-8 bytes as latin-1 characters, one for one: the socket then sends UTF-8.
* Its socket blocks, and a full queue of the receiver would stop the service. So the socket has a timeout.
* Its bare `except:` swallows everything, SystemExit too. In debug mode it raises; OSError is caught here.

Messages: sd_notify(3). RELOADING=1 needs MONOTONIC_USEC from systemd 253 on; older ones ignore it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import sdnotify

from spoolama.clock import Clock
from spoolama.service.logs import say
from spoolama.service.state import ServiceState
from spoolama.service.status import status_line

_SEND_TIMEOUT_S = 0.2
_STATUS_LENGTH = 500
_TICK_S = 2.0


class Notifier:
    """Sends notifications to systemd. No method raises or waits long. Without systemd nothing is sent.

    Args:
        env: The environment with $NOTIFY_SOCKET. sdnotify itself reads that of this process.
    """

    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        self._systemd: sdnotify.SystemdNotifier | None = None
        address = env.get("NOTIFY_SOCKET", "")
        if address and (not address.startswith("/") or Path(address).exists()):
            with contextlib.suppress(OSError):
                self._systemd = sdnotify.SystemdNotifier(debug=True)
                self._systemd.socket.settimeout(_SEND_TIMEOUT_S)
        self.lost = 0
        """Messages that could not be sent."""

    def ready(self) -> None:
        """The service works: after the start, and after each reload."""
        self.send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        line = " ".join(text.split())
        self.send(f"STATUS={line if len(line) <= _STATUS_LENGTH else line[: _STATUS_LENGTH - 1] + '…'}")

    def watchdog(self) -> None:
        """Watchdog ping."""
        self.send("WATCHDOG=1")

    def reloading(self) -> None:
        """The settings are being reloaded; `ready` follows."""
        self.send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The service is stopping."""
        self.send("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """The stop (or start) takes up to this much longer from now on."""
        self.send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def close(self) -> None:
        """Close the socket."""
        if self._systemd is not None:
            self._systemd.socket.close()

    def send(self, text: str) -> None:
        """Send one message."""
        if self._systemd is None:
            return
        try:
            self._systemd.notify(text.encode("utf-8", "backslashreplace").decode("latin-1"))
        except OSError:
            self.lost += 1  # systemd is busy or gone; the next message is newer anyway


def watchdog_interval(env: Mapping[str, str]) -> float | None:
    """Seconds between two pings, half of systemd's limit; None if systemd expects none from this process.

    sd_watchdog_enabled(3): WATCHDOG_PID, if set, must be this process.
    """
    usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1_000_000 / 2


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
        self._sent = ""
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
        self.send_status()
        if self._interval_s is None or silent:
            return False
        self._notifier.watchdog()
        return True

    def send_status(self) -> None:
        """Send the status if it has changed."""
        text = status_line(self._state)
        if text != self._sent:
            self._notifier.status(text)
            self._sent = text
