"""Counts crashes of the service per job, and holds a job that causes them.

`run_record.py` has the record of a job and the rules; this module applies them to the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from spoolama.clock import Clock, moment
from spoolama.errors import SpoolamaError
from spoolama.service.logs import say
from spoolama.service.queue import JobQueue, QueuedJob
from spoolama.service.run_record import (
    RunRecord,
    begun,
    cleared,
    delay_reason,
    ended,
    forget_record,
    held_reason,
    must_hold,
    probation_s,
    read_record,
    released,
    restarted,
    write_record,
)
from spoolama.spool.claim import JobDir
from spoolama.spool.ledger_reader import job_progress
from spoolama.spool.lock import LeftBy, boot_id


class Deaths:
    """Maintains the run records of the jobs in the queue.

    Args:
        queue: The jobs.
        clock: Time.
    """

    def __init__(self, queue: JobQueue, clock: Clock) -> None:
        self._queue = queue
        self._clock = clock
        self._boot = boot_id()
        self._writing = asyncio.Lock()

    async def recover(self, jobs: Sequence[JobDir], left: LeftBy) -> None:
        """Put the recovered jobs into the queue, and count a crash of the previous process.

        Args:
            jobs: The jobs in processing/.
            left: How the previous process left the spool.
        """
        on_disk = {job.name: await asyncio.to_thread(read_record, job) for job in jobs}
        # A kill after a request to stop does not count: no job is at fault.
        before = {name: ended(r) if left == "stopping" else r for name, r in on_disk.items()}
        died_idle = left in ("killed", "crashed") and not any(
            r.running and r.boot == self._boot for r in before.values()
        )
        items = [self._queue.add(job) for job in jobs]
        for item in items:
            item.record = await self._counted(
                item.job, before[item.job.name], died_idle=died_idle, killed=left == "killed"
            )
        self._hold()
        lived, now = self._clock.monotonic(), self._clock.time()
        for item in items:
            old, new = before[item.job.name], item.record
            if new.held:
                item.after_deaths = held_reason(new, item.job)
            elif new.deaths:
                wait_s = probation_s(new.deaths)
                item.not_before = lived + wait_s
                item.after_deaths = delay_reason(new, self._others(item), moment(now + wait_s))
                if new.deaths > old.deaths:
                    say("job.delayed", job=item.job.name, reason=item.after_deaths)
            elif old.deaths and died_idle:
                say("job.deaths_cleared", job=item.job.name)
            if new != on_disk[item.job.name]:
                await self._store(item)

    async def begin(self, item: QueuedJob) -> None:
        """Mark the job as running.

        Raises:
            SpoolamaError: the mark cannot be written to disk.
        """
        item.record = begun(item.record, self._boot)
        async with self._writing:
            await asyncio.to_thread(write_record, item.job, item.record)

    async def end(self, item: QueuedJob) -> None:
        """Remove the mark: the run ended without a crash."""
        item.record = ended(item.record)
        await self._store(item)

    async def note_error(self, item: QueuedJob, error: str) -> None:
        """Record the exception that ends the service; the mark stays, so the next start counts the crash."""
        item.record = replace(item.record, error=error)
        await self._store(item)

    async def finished(self) -> None:
        """Record that a job finished, so the service works, and check again which jobs to hold."""
        blamed = [item for item in self._queue.jobs() if item.record.deaths or item.record.kills]
        for item in blamed:
            item.record = replace(item.record, other_finished=True)
        self._hold()
        for item in blamed:
            await self._store(item)

    async def release(self, item: QueuedJob) -> None:
        """Let a held job run again."""
        item.record, item.not_before, item.after_deaths = released(item.record), 0.0, ""
        if item.state == "held":
            self._queue.settled(item, item.priority)
        await self._store(item)

    async def _counted(self, job: JobDir, record: RunRecord, *, died_idle: bool, killed: bool) -> RunRecord:
        """The record after this start."""
        if not record.running and not record.deaths and not record.kills:
            return record
        progress = await asyncio.to_thread(job_progress, job.ledger)
        record = restarted(record, progress, self._boot, self._clock.time(), killed=killed)
        return cleared(record) if died_idle and not record.held else record

    def _hold(self) -> None:
        """Hold the jobs that crash the service."""
        for item in self._queue.jobs():
            if not item.record.held and must_hold(item.record, self._others(item)):
                item.record = replace(item.record, held=True)
                item.after_deaths = held_reason(item.record, item.job)
                say("job.held_after_deaths", job=item.job.name, reason=item.after_deaths)
                if item.state == "ready":
                    self._queue.settled(item, item.priority)

    def _others(self, item: QueuedJob) -> list[RunRecord]:
        return [other.record for other in self._queue.jobs() if other is not item]

    async def _store(self, item: QueuedJob) -> None:
        """Write the newest record. If that fails, remove it, because an old record may blame the job."""
        async with self._writing:
            try:
                await asyncio.to_thread(write_record, item.job, item.record)
            except (SpoolamaError, OSError):
                await asyncio.to_thread(forget_record, item.job)
