"""A clock that is moved by hand, both times together or separately."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class HandClock:
    """For code that reads the time and never waits; set `wall` alone to simulate a jump of the
    machine's clock.
    """

    wall: float = 1_790_000_000.0
    mono: float = 500.0

    def time(self) -> float:
        """Seconds since the epoch."""
        return self.wall

    def monotonic(self) -> float:
        """Seconds from an arbitrary start."""
        return self.mono

    async def sleep(self, seconds: float) -> None:
        """Move the clock instead of waiting."""
        self.move(seconds)

    def move(self, seconds: float) -> None:
        """Move the time (or move it back, for files with real times)."""
        self.wall += seconds
        self.mono += seconds
