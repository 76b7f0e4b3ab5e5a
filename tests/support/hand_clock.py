"""A clock that is moved by hand, its two times together or apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class HandClock:
    """For what looks at the time and never waits; set `wall` alone to let the machine's clock jump."""

    wall: float = 1_790_000_000.0
    mono: float = 500.0

    def time(self) -> float:
        """Seconds since the epoch."""
        return self.wall

    def monotonic(self) -> float:
        """Seconds from an arbitrary start."""
        return self.mono

    async def sleep(self, seconds: float) -> None:
        """Waiting moves the clock."""
        self.move(seconds)

    def move(self, seconds: float) -> None:
        """Let time pass (or, for files whose times are real, come back)."""
        self.wall += seconds
        self.mono += seconds
