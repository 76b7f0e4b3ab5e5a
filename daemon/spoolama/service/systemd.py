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

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import sdnotify

from spoolama.clock import Clock
from spoolama.service.logs import say
from spoolama.service.state import ServiceState
from spoolama.service.status import status_line

__all__ = [
    "Heartbeat",
    "Notifier",
    "SilentNotifier",
    "SystemdNotifier",
    "make_notifier",
    "watchdog_interval",
]

_SEND_TIMEOUT_S = 0.2
_STATUS_LENGTH = 500
_TICK_S = 2.0


class Notifier(Protocol):
    """Notifications of the daemon to its supervisor. No call raises, none waits long."""

    def ready(self) -> None:
        """The service works: after start, and after each reload."""
        ...

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        ...

    def watchdog(self) -> None:
        """Watchdog ping."""
        ...

    def reloading(self) -> None:
        """The configuration is being read again; `ready` follows."""
        ...

    def stopping(self) -> None:
        """The service is stopping."""
        ...

    def extend(self, seconds: float) -> None:
        """The stop (or start) takes this much longer from now on."""
        ...


class SystemdNotifier:
    """Sends to the socket in $NOTIFY_SOCKET."""

    def __init__(self) -> None:
        """Connect.

        Raises:
            OSError: the socket does not exist.
        """
        self._notifier = sdnotify.SystemdNotifier(debug=True)
        self._notifier.socket.settimeout(_SEND_TIMEOUT_S)
        self.lost = 0
        """Messages that could not be sent."""

    def ready(self) -> None:
        self._send("READY=1")

    def status(self, text: str) -> None:
        self._send(f"STATUS={_one_line(text)}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={usec}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def extend(self, seconds: float) -> None:
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def close(self) -> None:
        """Close the socket."""
        self._notifier.socket.close()

    def _send(self, text: str) -> None:
        try:
            self._notifier.notify(text.encode("utf-8", "backslashreplace").decode("latin-1"))
        except OSError:
            self.lost += 1  # systemd is busy or gone; the next message is newer anyway


class SilentNotifier:
    """Sends nothing; for a service without a supervisor."""

    def ready(self) -> None: ...

    def status(self, text: str) -> None: ...

    def watchdog(self) -> None: ...

    def reloading(self) -> None: ...

    def stopping(self) -> None: ...

    def extend(self, seconds: float) -> None: ...


def make_notifier(env: Mapping[str, str]) -> Notifier:
    """The notifier for this environment. sdnotify itself reads the process's own NOTIFY_SOCKET."""
    address = env.get("NOTIFY_SOCKET", "")
    if not address or (address.startswith("/") and not Path(address).exists()):
        return SilentNotifier()
    try:
        return SystemdNotifier()
    except OSError:
        return SilentNotifier()


def watchdog_interval(env: Mapping[str, str]) -> float | None:
    """Seconds between two pings, half of systemd's limit; None if systemd expects none from this process.

    sd_watchdog_enabled(3): WATCHDOG_PID, if set, must be this process.
    """
    usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1_000_000 / 2


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _STATUS_LENGTH else f"{line[: _STATUS_LENGTH - 1]}…"


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
