"""Distributes the segments of a model's rows to lanes, and has each one audited when it is finished."""

from __future__ import annotations

from collections.abc import AsyncIterator

from spoolama.answer.job_context import JobContext
from spoolama.answer.lane import Lane, RunLanes
from spoolama.compare.anchor_phase import AnchorPhase
from spoolama.compare.audit_phase import AuditPhase
from spoolama.job.plan import Plan

_AHEAD = 64


class Segments:
    """The segments of one model's rows.

    Args:
        model: The model that these rows ask for; None: the sidecar's.
        job: Objects that all parts of the job share.
        anchors: Provides the turns of the anchors.
        audit: Audits conversations; None: there is no audit.
    """

    def __init__(
        self, model: str | None, job: JobContext, anchors: AnchorPhase, audit: AuditPhase | None
    ) -> None:
        self._model = model
        self._job = job
        self._anchors = anchors
        self._audit = audit

    async def answer(self, run: RunLanes) -> None:
        """Answer every row without a result, and audit every conversation.

        Raises:
            JobError: the job cannot continue.
            Stopping: the service stops.
        """
        if self._audit is None:
            await run(self._pending(), self._one)
            return
        await self._audit.open()
        while True:
            await run(self._pending(), self._one)
            # The service may have ended between a segment's last row and its audit.
            await run(await self._job.store.unaudited(), self._one)
            await self._audit.finish()
            # An audit may have taken back answers of finished segments.
            if not await self._next(-1, 1):
                return

    async def _one(self, lane: Lane, segment: int) -> None:
        """Answer and audit a segment; nothing if the service stops before its plan can be known."""
        planner = self._job.planner
        plan = await planner.plan_for(segment)
        if plan is None:
            return
        first = segment * planner.segment_rows
        last = min(self._job.total, first + planner.segment_rows) - 1
        await self._rows(lane, segment, first, last, plan)
        if self._audit is not None and first < last and await self._audit.check(segment, first, last, lane):
            with self._audit.isolating(segment):
                await self._rows(lane, segment, first, last, plan)

    async def _rows(self, lane: Lane, segment: int, first: int, last: int, plan: Plan) -> None:
        anchors = await self._anchors.turns_of(plan)
        await lane.run_segment(segment, first, last, self._model, plan, anchors)

    async def _pending(self) -> AsyncIterator[int]:
        after = -1
        while found := await self._next(after, _AHEAD):
            for segment in found:
                yield segment
            after = found[-1]

    async def _next(self, after: int, limit: int) -> list[int]:
        rows = self._job.planner.segment_rows
        return await self._job.store.pending_segments(after, rows, self._model, limit)
