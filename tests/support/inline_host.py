"""Reads a machine's memory on each call instead of in a thread, for tests with a simulated clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from spoolama.clock import Clock
from spoolama.memory.reader_threads import HostReading, HostSource, HostThread


class InlineHost(HostThread):
    """A `HostThread` without a thread.

    Args:
        source: Source of the readings; must not block.
        clock: Measures the age of readings.
        pids: Returns the process ids of our own engine.
    """

    def __init__(
        self, source: HostSource, clock: Clock, *, pids: Callable[[], Iterable[int]] = tuple
    ) -> None:
        super().__init__(source, clock, pids=pids)

    def start(self) -> None:
        """Start no thread."""

    def latest(self) -> HostReading:
        """Read, and return the reading."""
        self.read_once()
        return super().latest()
