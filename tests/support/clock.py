"""A simulated clock, with which an hour of waiting passes at once."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualClock:
    """A clock that stops until every task sleeps and then jumps to the next wake-up.

    Args:
        start: Seconds since the epoch at the beginning.
        grace_s: Real seconds in which threads and sockets come to rest before a jump.
    """

    def __init__(self, start: float = 1_800_000_000.0, grace_s: float = 0.001) -> None:
        self._start = start
        self._now = 0.0
        self._grace_s = grace_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def time(self) -> float:
        """Seconds since the epoch."""
        return self._start + self._now

    def monotonic(self) -> float:
        """Seconds since this clock was made."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has moved this far."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        await future

    def jump(self) -> bool:
        """Move to the next sleeper's time and wake it; return False without one."""
        while self._sleepers:
            due, _, future = heapq.heappop(self._sleepers)
            if future.done():
                continue
            self._now = max(self._now, due)
            future.set_result(None)
            return True
        return False

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run this to its end, and jump whenever no task can run."""
        task = asyncio.ensure_future(work)
        while not task.done():
            await asyncio.wait({task}, timeout=self._grace_s)
            if not task.done():
                self.jump()
        return task.result()
