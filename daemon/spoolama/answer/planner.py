"""Decides which plan applies to each segment, and adds plan versions as the job learns.

- *Tokens per byte*: learned from the first segments (at least 100 rows) and in force from 16 segments later;
  checked again at twice that distance, four times and so on, and raised if later text is denser.
- *Form*: the anchors, or the form that the pilot chose, before the first segment.
- *Harm*: after the audit has shown that the conversation harms the answers, rows are asked in isolation from
  the next segment that no lane has begun.
- *Window*: if the server holds a smaller one, from the next segment that no lane has begun.

These segments depend on the plan alone, not on lanes, crashes or speed; a lane that gets there early waits.
Each version is in the ledger before it is used.
"""

from __future__ import annotations

import asyncio
from typing import Any

from spoolama.answer.store import RowStore
from spoolama.job.plan import Plan
from spoolama.stopping import Stop, until

_LEARN_ROWS = 100
_FORCE_AFTER = 16
_LEAST_MEASURED = 20
"""Rows with a known length that are needed to lower the bound; behind anchors only isolated rows have one."""
_SAFETY = 1.25
"""Factor between the densest text so far and the bound."""
_LEAST_DENSITY = 0.2
"""The bound is never below this: English prose has about 0.25 tokens per byte."""


class Planner:
    """Provides the plan of each segment.

    Args:
        store: Stores the plan versions, and the counts from which they are learned.
        first: The plan that the job starts with.
        prefix_bytes: UTF-8 bytes of the shared prefix.
        total: Rows of the job.
        stop: Set when the service stops; ends every wait.
        density: Whether the bound of tokens per byte is learned.
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
        self._rows = first.segment_rows or total or 1
        self._learn_last = -(-_LEARN_ROWS // self._rows) - 1
        """The last segment from which the density is first learned."""
        self._checked = 0
        """How many times the density was checked."""
        self._begun = -1
        """The last segment that a lane has begun."""
        self._learning = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._row_ended = asyncio.Event()

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
        """Rows of a segment; larger than any job if all rows are one segment."""
        return self._plans[0].segment_rows or 1 << 61

    @property
    def latest(self) -> Plan:
        """The newest version."""
        return self._plans[-1]

    def row_ended(self) -> None:
        """Record that a row has its result; a lane may wait for enough rows to learn from."""
        self._row_ended.set()

    async def plan_for(self, segment: int) -> Plan | None:
        """Return the plan of this segment; None if the service stops before it can be known."""
        while self._density and segment >= self._force_from:
            async with self._learning:
                if segment >= self._force_from and not await self._learn_density():
                    return None
        # Wait for a version that is being written: it may apply to this segment.
        async with self._writing:
            self._begun = max(self._begun, segment)
            return next(plan for plan in reversed(self._plans) if plan.from_segment <= segment)

    async def adopt(self, **changes: Any) -> None:
        """Change the plan from the first segment on: anchors, or the form that the pilot chose."""
        await self._add(0, **changes)

    async def leave_conversations(self) -> None:
        """Ask each row in isolation from the next segment that no lane has begun."""
        latest = self._plans[-1]
        if latest.anchors or latest.strategy != "reset" or latest.every != 1:
            await self._add(None, strategy="reset", every=1, keep=0, anchors=(), gold=False)

    def stop_learning(self) -> None:
        """Keep the bound of tokens per byte for the rest of this run.

        Call it when answers of other segments are taken back: their rows are asked after the segments in
        work, so a lane that waits for them would wait forever.
        """
        self._density = False
        self._row_ended.set()

    async def shrink(self, window: int) -> None:
        """Use the window that the server holds from the next segment that no lane has begun."""
        if self._plans[-1].window != window:
            await self._add(None, window=window)

    @property
    def _force_from(self) -> int:
        """The segment from which the result of the next density check applies."""
        return self._learn_last + _FORCE_AFTER * (1 << self._checked)

    async def _learn_density(self) -> bool:
        force_from = self._force_from
        last = force_from - _FORCE_AFTER
        if not await self._ended((last + 1) * self._rows):
            return False
        if not self._density:
            return True
        measured = await self._store.measured_density(last, self._prefix_bytes)
        if measured is not None:
            density = max(_LEAST_DENSITY, round(measured[0] * _SAFETY, 3))
            known = next(p for p in reversed(self._plans) if p.from_segment <= force_from).tokens_per_byte
            unlearned = known == self._plans[0].tokens_per_byte
            if density > known or (unlearned and density < known and measured[1] >= _LEAST_MEASURED):
                await self._add(force_from, tokens_per_byte=density)
        self._checked += 1  # last, because other lanes rely on it
        return True

    async def _ended(self, rows: int) -> bool:
        """Wait until the first rows have their results, or learning stops; False if the service stops."""
        while self._density:
            self._row_ended.clear()
            if not await self._store.pending(0, rows - 1, None, 1):
                return True
            await until(self._row_ended.wait(), self._stop)
            if self._stop.is_set():
                return False
        return True

    async def _add(self, from_segment: int | None, **changes: Any) -> None:
        """Write the next version; None: in force from the next segment that no lane has begun."""
        # Not `_learning`: its holder may be waiting for rows.
        async with self._writing:
            if from_segment is None:
                from_segment = self._begun + 1
            plan = self._plans[-1].next_version(from_segment=from_segment, **changes)
            await self._store.add_plan(plan.version, plan.to_json())
            self._plans.append(plan)
