"""Provides the clock as a dependency, so that tests can replace real time."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


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
