"""Hands the segments of a model to lanes, and has each one audited when it is done."""

from __future__ import annotations

from collections.abc import AsyncIterator

from spoolama.answer.handout import Handout
from spoolama.answer.lane import Lane
from spoolama.answer.planner import Planner
from spoolama.answer.store import RowStore
from spoolama.compare.anchoring import Anchoring, RunLanes
from spoolama.compare.auditing import Auditing
from spoolama.job.plan import Plan
from spoolama.stopping import Stop

__all__ = ["Segments"]

_AHEAD = 64


class Segments:
    """The segments of one model's rows.

    Args:
        model: The model that these rows ask for; None is the job's own.
        store: Has the rows.
        planner: Has the plan of each segment.
        anchoring: Has the turns in front.
        auditing: Audits conversations; None: nobody does.
        stop: A wish to stop.
        total: Rows of the job.
    """

    def __init__(
        self,
        model: str | None,
        store: RowStore,
        planner: Planner,
        anchoring: Anchoring,
        auditing: Auditing | None,
        stop: Stop,
        *,
        total: int,
    ) -> None:
        self._model = model
        self._store = store
        self._planner = planner
        self._anchoring = anchoring
        self._auditing = auditing
        self._stop = stop
        self._total = total

    async def answer(self, run: RunLanes) -> None:
        """Have every row answered that has no end yet, and every conversation audited.

        Raises:
            JobError: the job cannot go on.
        """
        if self._auditing is not None:
            await self._auditing.open()
        while True:
            waiting = Handout(self._pending())

            async def work(lane: Lane, waiting: Handout[int] = waiting) -> None:
                while (segment := await waiting.take()) is not None:
                    if self._stop.is_set() or not await self._one(lane, segment):
                        return

            await run(work)
            if self._auditing is None or (self._stop.is_set() and await self._left()):
                return
            # The service may have ended between a segment's last row and its audit.
            left = Handout(_each(await self._store.unaudited()))

            async def look(lane: Lane, left: Handout[int] = left) -> None:
                while (segment := await left.take()) is not None:
                    await self._one(lane, segment)

            await run(look)
            await self._auditing.finish()
            # An audit may have taken back answers of segments that were done.
            if not await self._left():
                return

    async def _left(self) -> bool:
        """Whether a row has no end yet."""
        return bool(await self._store.pending_segments(-1, self._planner.segment_rows, self._model, 1))

    async def _one(self, lane: Lane, segment: int) -> bool:
        """False if the service stops before its plan can be known."""
        plan = await self._planner.plan_for(segment)
        if plan is None:
            return False
        first = segment * self._planner.segment_rows
        last = min(self._total, first + self._planner.segment_rows) - 1
        await self._rows(lane, segment, first, last, plan)
        if self._auditing is None or first >= last:
            return True
        if await self._auditing.look(segment, first, last, lane):
            with self._auditing.isolating(segment):
                await self._rows(lane, segment, first, last, plan)
        return True

    async def _rows(self, lane: Lane, segment: int, first: int, last: int, plan: Plan) -> None:
        anchors = await self._anchoring.turns_of(plan)
        await lane.run_segment(segment, first, last, self._model, plan, anchors)

    async def _pending(self) -> AsyncIterator[int]:
        after, rows = -1, self._planner.segment_rows
        while found := await self._store.pending_segments(after, rows, self._model, _AHEAD):
            for segment in found:
                yield segment
            after = found[-1]


async def _each(segments: list[int]) -> AsyncIterator[int]:
    for segment in segments:
        yield segment
