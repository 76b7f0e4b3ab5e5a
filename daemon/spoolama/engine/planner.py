"""Numbered plans: what is learned while a job runs takes effect at a fixed place, however fast it ran.

Learned from the first segments (at least 100 rows), in force from 16 segments on. Both places depend on the
plan alone, not on lanes, crashes or speed; a lane that gets there early waits for what it is learned from.
"""

from __future__ import annotations

import asyncio

from spoolama.engine.store import RowStore, Stop
from spoolama.job.plan import Plan

__all__ = ["Planner"]

_LEARN_ROWS = 100
_FORCE_AFTER = 16
_SAFETY = 1.25
"""The bound is a quarter above the densest text seen, ..."""
_LEAST_DENSITY = 0.2
"""... and never below this: English prose has some 0.25 tokens a byte."""


class Planner:
    """Hands out the plan of each segment.

    Args:
        store: Keeps plan versions, and what they are learned from.
        first: The plan that the job starts with.
        prefix_bytes: UTF-8 bytes of the shared prefix.
        total: Rows of the job.
        learn: Whether anything is to be learned.
    """

    def __init__(
        self, store: RowStore, first: Plan, *, prefix_bytes: int, total: int, stop: Stop, learn: bool = True
    ) -> None:
        self._store = store
        self._plans = [first]
        self._prefix_bytes = prefix_bytes
        self._stop = stop
        rows = first.segment_rows or total or 1
        self._learn_last = -(-_LEARN_ROWS // rows) - 1
        """Last segment that is learned from."""
        self._force_from = self._learn_last + _FORCE_AFTER
        self._learn_end = (self._learn_last + 1) * rows
        self._learned = not learn
        self._lock = asyncio.Lock()
        self._moved = asyncio.Event()

    async def open(self) -> None:
        """Read the versions so far; write the first one if there is none."""
        bodies = await self._store.plans()
        if bodies:
            self._plans = [Plan.from_json(body) for body in bodies]
            self._learned = self._learned or len(self._plans) > 1
        else:
            await self._store.add_plan(self._plans[0].version, self._plans[0].to_json())

    @property
    def segment_rows(self) -> int:
        """Rows of a segment; a number beyond any job if all rows are one."""
        return self._plans[0].segment_rows or 1 << 61

    def segment_ended(self) -> None:
        """To be called when a segment ends: somebody may wait for what can now be learned."""
        self._moved.set()

    async def plan_for(self, segment: int) -> Plan | None:
        """The plan in force for this segment; None if the service stops before it can be known."""
        if segment >= self._force_from and not self._learned:
            async with self._lock:
                if not self._learned and not await self._learn():
                    return None
        return next(plan for plan in reversed(self._plans) if plan.from_segment <= segment)

    async def _learn(self) -> bool:
        while True:
            self._moved.clear()
            if not await self._store.pending(0, self._learn_end - 1, None, 1):
                break
            moved = asyncio.ensure_future(self._moved.wait())
            stop = asyncio.ensure_future(self._stop.wait())
            try:
                await asyncio.wait({moved, stop}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                moved.cancel()
                stop.cancel()
            if self._stop.is_set():
                return False
        measured = await self._store.measured_density(self._learn_last, self._prefix_bytes)
        current = self._plans[-1]
        if measured is not None:
            density = max(_LEAST_DENSITY, round(measured[0] * _SAFETY, 3))
            if density < current.tokens_per_byte:
                plan = current.next_version(from_segment=self._force_from, tokens_per_byte=density)
                await self._store.add_plan(plan.version, plan.to_json())
                self._plans.append(plan)
        self._learned = True
        return True
