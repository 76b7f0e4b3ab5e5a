"""Provides the clock as a dependency, so that tests can replace real time, and formats times for people."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The clock functions that the service uses."""

    def time(self) -> float:
        """Seconds since the epoch (may jump)."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start (never jumps)."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for this time."""
        ...


class SystemClock:
    """The real clock of the machine."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def duration(seconds: float) -> str:
    """Format a length of time for people: `4.2 s`, `40 s`, `2 min 10 s`, `9 h 58 min`, `3 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    shown_s = 1 if seconds < 3600 else 60 if seconds < 86_400 else 3600  # the smallest unit that is shown
    left = round(seconds / shown_s) * shown_s
    parts: list[tuple[int, str]] = []
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count or parts:
            parts.append((count, unit))
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count)


def moment(at: float) -> str:
    """Format a time in UTC, to the second: `2026-01-31T23:59:59Z`."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
