"""Numbered plans: what is learned while a job runs takes effect at a fixed place, and is on disk before.

- *Length* (the bound of tokens a byte): learned from the first segments (at least 100 rows), in force from 16
  segments on; looked at again at twice that place, four times and so on, and raised where denser text came.
- *Anchors*, and the form that a pilot chose: before the first segment.
- *Harm*: where the audit found that the conversation harms the answers, rows are asked in isolation from the
  next segment that nobody has begun.
- *Window*: where the server turns out to hold a smaller one, from the next segment that nobody has begun.

The places depend on the plan alone, not on lanes, crashes or speed; a lane that gets there early waits.
"""

from __future__ import annotations

import asyncio
from typing import Any

from spoolama.answer.store import RowStore
from spoolama.job.plan import Plan
from spoolama.stopping import Stop, until

__all__ = ["Planner"]

_LEARN_ROWS = 100
_FORCE_AFTER = 16
_LEAST_MEASURED = 20
"""Of these rows so many must have told their length; behind anchors only those asked alone do."""
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
        stop: A wish to stop ends every wait.
        density: Whether the bound of tokens a byte is learned.
    """

    def __init__(
        self,
        store: RowStore,
        first: Plan,
        *,
        prefix_bytes: int,
        total: int,
        stop: Stop,
        density: bool = True,
    ) -> None:
        self._store = store
        self._plans = [first]
        self._prefix_bytes = prefix_bytes
        self._stop = stop
        self._density = density
        rows = first.segment_rows or total or 1
        self._rows = rows
        self._learn_last = -(-_LEARN_ROWS // rows) - 1
        """Last segment that lengths are first learned from."""
        self._checked = 0
        """How many times lengths were looked at."""
        self._begun = -1
        self._lock = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._moved = asyncio.Event()

    async def open(self) -> None:
        """Read the versions so far; write the first one if there is none."""
        bodies = await self._store.plans()
        if bodies:
            self._plans = [Plan.from_json(body) for body in bodies]
            self._begun = await self._store.last_segment()
        else:
            await self._store.add_plan(self._plans[0].version, self._plans[0].to_json())

    @property
    def segment_rows(self) -> int:
        """Rows of a segment; a number beyond any job if all rows are one."""
        return self._plans[0].segment_rows or 1 << 61

    @property
    def latest(self) -> Plan:
        """The newest version."""
        return self._plans[-1]

    def moved(self) -> None:
        """To be called when a row ends: somebody may wait for what can now be learned."""
        self._moved.set()

    async def plan_for(self, segment: int) -> Plan | None:
        """The plan in force for this segment; None if the service stops before it can be known."""
        while self._density and segment >= self._look_at:
            if not await self._locked(lambda: self._learn_density(segment)):
                return None
        # Not while a version is being written that may be meant for this very segment.
        async with self._writing:
            self._begun = max(self._begun, segment)
            return next(plan for plan in reversed(self._plans) if plan.from_segment <= segment)

    async def anchor(self, ordinals: tuple[int, ...], *, gold: bool, prefix_tokens: int | None) -> None:
        """These rows stand in front from the first segment on, behind a prefix of at most so many tokens."""
        await self._add(0, anchors=ordinals, gold=gold, prefix_tokens=prefix_tokens)

    async def adopt(self, **changes: Any) -> None:
        """The form that the pilot has chosen, in force from the first segment on."""
        await self._add(0, **changes)

    async def leave_conversations(self) -> None:
        """From the next segment that nobody has begun each row is asked in isolation."""
        latest = self._plans[-1]
        if latest.anchors or latest.strategy != "reset" or latest.every != 1:
            await self._add(None, strategy="reset", every=1, keep=0, anchors=(), gold=False)

    async def shrink(self, window: int) -> None:
        """The server holds a window of this size, whatever was asked for."""
        if self._plans[-1].window != window:
            await self._add(None, window=window)

    async def _locked(self, learn: Any) -> bool:
        async with self._lock:
            done: bool = await learn()
            return done

    @property
    def _look_at(self) -> int:
        """The segment from which on lengths looked at next are in force."""
        return self._learn_last + _FORCE_AFTER * (1 << self._checked)

    async def _learn_density(self, segment: int) -> bool:
        force_from = self._look_at
        if segment < force_from:
            return True  # another lane was faster
        last = force_from - _FORCE_AFTER
        if not await self._answered((last + 1) * self._rows):
            return False
        measured = await self._store.measured_density(last, self._prefix_bytes)
        if measured is not None:
            density = max(_LEAST_DENSITY, round(measured[0] * _SAFETY, 3))
            known = next(p for p in reversed(self._plans) if p.from_segment <= force_from).tokens_per_byte
            unlearned = known == self._plans[0].tokens_per_byte
            if density > known or (unlearned and density < known and measured[1] >= _LEAST_MEASURED):
                await self._add(force_from, tokens_per_byte=density)
        self._checked += 1  # last: other lanes go by it
        return True

    async def _answered(self, rows: int) -> bool:
        """Wait until the first rows have their end; False if the service stops."""
        while True:
            self._moved.clear()
            if not await self._store.pending(0, rows - 1, None, 1):
                return True
            await until(self._moved.wait(), self._stop)
            if self._stop.is_set():
                return False

    async def _add(self, from_segment: int | None, **changes: Any) -> None:
        """One version more, on disk before it is used; None: from the next segment that nobody has begun."""
        # Not the lock of the learners: whoever holds that one may be waiting for rows.
        async with self._writing:
            if from_segment is None:
                from_segment = self._begun + 1
            plan = self._plans[-1].next_version(from_segment=from_segment, **changes)
            await self._store.add_plan(plan.version, plan.to_json())
            self._plans.append(plan)
