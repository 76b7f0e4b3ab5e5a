"""A clock that jumps: an hour of waiting passes in a moment."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualClock:
    """Time that stands still until everybody sleeps, then jumps to whoever wakes first.

    Args:
        start: Seconds since the epoch at the beginning.
        grace_s: Real seconds to let threads and sockets come to rest before a jump.
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
        """Wait for the clock to be moved that far."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        await future

    def jump(self) -> bool:
        """Move to the next sleeper's time and wake it; False if nobody sleeps."""
        while self._sleepers:
            due, _, future = heapq.heappop(self._sleepers)
            if future.done():
                continue
            self._now = max(self._now, due)
            future.set_result(None)
            return True
        return False

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run this to its end, jumping whenever nothing else moves."""
        task = asyncio.ensure_future(work)
        while not task.done():
            await asyncio.wait({task}, timeout=self._grace_s)
            if not task.done():
                self.jump()
        return task.result()
