"""The way of a job: from claimed to published. Every step can be taken again after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

from spoolama import __version__
from spoolama.answer.row_counts import FIRST_ROWS, check_first_failures
from spoolama.backends.base import Backend
from spoolama.clock import Clock
from spoolama.compare.audit_phase import left_to_audit
from spoolama.errors import InputError, JobError, LedgerError, LedgerVersion, SidecarError
from spoolama.evaluation.evaluator import EVALUATION_LIMIT, Evaluator
from spoolama.job.rows import InputKind, RowLimits, detect
from spoolama.job.sidecar import Sidecar
from spoolama.memory.level import RelativeLimits
from spoolama.memory.watchdog import MemoryWatchdog
from spoolama.progress import Progress
from spoolama.publish.build import build_outputs
from spoolama.run.runner import JobRunner
from spoolama.service.intake import take_in
from spoolama.service.model import JobEnd
from spoolama.spool.claim import JobDir
from spoolama.spool.content import sha256_of
from spoolama.spool.durable import in_words
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.layout import Spool
from spoolama.spool.ledger import Durable
from spoolama.spool.ledger_format import check_format
from spoolama.spool.ledger_progress import job_progress
from spoolama.spool.ledger_read import LedgerReader
from spoolama.spool.publish import open_out, publish
from spoolama.stopping import Stop

__all__ = ["JobExecutor"]

_LEAST_PATIENCE_S = 120.0
_NOTE_EVERY_S = 30.0
_SLOW_BYTES_PER_S = 1e6
"""Hashing, sorting and writing results, on a slow and busy disk."""


class JobExecutor:
    """Takes claimed jobs to their end.

    Args:
        spool: Where jobs are published.
        backend: The model server.
        evaluator: Evaluates what users wrote.
        clock: Time.
        lanes: Requests at once, unless the sidecar says otherwise.
        limits: Bounds of rows.
        newline_required: Whether data must end with a line end.
        memory: Watches memory; None: nobody does.
    """

    def __init__(
        self,
        spool: Spool,
        backend: Backend,
        evaluator: Evaluator,
        clock: Clock,
        *,
        lanes: int = 1,
        limits: RowLimits | None = None,
        newline_required: bool = True,
        memory: MemoryWatchdog | None = None,
    ) -> None:
        self._spool = spool
        self._backend = backend
        self._evaluator = evaluator
        self._clock = clock
        self._lanes = lanes
        self._limits = limits or RowLimits()
        self._newline_required = newline_required
        self._memory = memory

    async def execute(self, job: JobDir, progress: Progress, stop: Stop) -> JobEnd:
        """Take the job from where its ledger stands to its end, or to `stop`.

        Raises:
            LedgerVersion: only another version can finish it; the job waits in processing/.
        """
        try:
            with progress.pulse.wait(_LEAST_PATIENCE_S):
                kind = await asyncio.to_thread(detect, job.data, job.data.name)
                sidecar, retired = await self._sidecar(job, kind)
        except JobError as error:
            return await self.reject(job, error)
        failure: JobError | None = None
        ledger: JobLedger | None = None
        try:
            ledger = JobLedger(job.ledger, self._clock, on_durable=lambda d: _count(progress, d))
            if retired:
                await ledger.note(retired=retired)
            finished = await self._answer(job, kind, sidecar, ledger, progress, stop)
            if not finished:
                return JobEnd("left", None, "stopped; the rest is for the next start")
        except JobError as error:
            failure = error
            if isinstance(error, LedgerError):
                return await self.reject(job, error)
            assert ledger is not None
            progress.skipped = await self._end_early(ledger, error)
        finally:
            if ledger is not None:
                await ledger.close()
        progress.phase = "publishing"
        with progress.pulse.wait(await asyncio.to_thread(_patience, job)):
            return await self._publish(job, sidecar, failure)

    async def reject(self, job: JobDir, error: JobError) -> JobEnd:
        """Publish the job in failed/ for this reason, with everything uploaded and all results there are.

        Raises:
            LedgerVersion: this version cannot read the ledger, and so not its results; nothing is published.
        """
        # First of all: a sidecar of another version may have keys that this one refuses.
        await asyncio.to_thread(check_format, job.ledger)
        if not isinstance(error, LedgerError) and await asyncio.to_thread(job.ledger.exists):
            with contextlib.suppress(JobError):  # then what there is goes as it is
                kind = await asyncio.to_thread(detect, job.data, job.data.name)
                sidecar, retired = await self._sidecar(job, kind)
                ledger = JobLedger(job.ledger, self._clock)
                try:
                    if retired:
                        await ledger.note(retired=retired)
                    await self._end_early(ledger, error)
                finally:
                    await ledger.close()
                return await self._publish(job, sidecar, error)
        await asyncio.to_thread(open_out, job)
        await asyncio.to_thread(_keep_ledger, job)
        await asyncio.to_thread(_write_error, job, error)
        path = await asyncio.to_thread(publish, self._spool, job, "failed")
        return JobEnd("failed", path, error.message)

    async def _sidecar(self, job: JobDir, kind: InputKind) -> tuple[Sidecar, list[str]]:
        """The sidecar, and the keys of settings that only earlier versions had."""
        openai = kind.format == "openai"
        if job.sidecar is not None:
            try:
                return await self._evaluator.load_sidecar(job.sidecar, openai=openai), []
            except SidecarError as error:
                if await asyncio.to_thread(job.ledger.exists):
                    with contextlib.suppress(SidecarError):
                        today = await self._evaluator.load_sidecar(job.sidecar, openai=openai, begun=True)
                        return today, [problem.key for problem in error.problems]
                if not (await asyncio.to_thread(job_progress, job.ledger)).all_read:
                    raise
                # It was accepted when the job began: an older version allowed more than this one.
                raise LedgerVersion(
                    f"This is spoolama {__version__}, which refuses the sidecar of a job that has begun: "
                    f"{error}. {job.name} waits in processing/ with its results. Install the version of "
                    "spoolama that began it to finish it."
                ) from error
        if openai:
            return Sidecar(model=""), []
        raise InputError(f"{job.data.name} came without a sidecar", fix="Drop it again with its sidecar.")

    async def _answer(
        self,
        job: JobDir,
        kind: InputKind,
        sidecar: Sidecar,
        ledger: JobLedger,
        progress: Progress,
        stop: Stop,
    ) -> bool:
        """Read the rows if that is not done yet, answer those that have no end; False if stopped."""
        with progress.pulse.wait(await asyncio.to_thread(_patience, job)):
            await self._same_files(job, sidecar, ledger)
        if not await ledger.meta("intake_done", default=False):
            began = self._clock.monotonic()
            progress.phase = "reading rows"
            complete = await take_in(
                job,
                kind,
                sidecar,
                ledger,
                self._evaluator,
                progress,
                limits=self._limits,
                newline_required=self._newline_required,
                stop=stop,
            )
            if not complete:
                return False
            await ledger.note(intake_s=self._clock.monotonic() - began)
        if early := await ledger.meta("ended_early"):
            # The service ended between the job's end and its publishing.
            raise JobError(early["message"], fix=early["fix"], code=early["code"])
        counts = await ledger.counts()
        progress.total = sum(counts.values())
        progress.ok, progress.failed, progress.skipped = counts["ok"], counts["failed"], counts["skipped"]
        progress.failures = await ledger.failures()
        await ledger.add("runs", 1)
        if await ledger.meta("started_at") is None:
            await ledger.note(started_at=self._clock.time())
        openai = kind.format == "openai"
        # All rows may have their end, but the audit not: the service ended in between.
        if counts["pending"] or (not openai and await left_to_audit(ledger)):
            if not counts["ok"]:
                check_first_failures(await ledger.first_failures(FIRST_ROWS))
            runner = JobRunner(
                sidecar=sidecar,
                openai=openai,
                store=ledger,
                backend=self._backend,
                evaluator=self._evaluator.of_job(
                    job.dropped_as,
                    progress.failures.get(EVALUATION_LIMIT, 0),
                    progress.pulse.beat,
                    stop.is_set,
                ),
                clock=self._clock,
                progress=progress,
                lanes=sidecar.lanes or self._lanes,
                stop=stop,
                memory=self._memory,
            )
            async with self._watched(sidecar, ledger):
                end = await runner.run()
            if not end.finished:
                return False
        await ledger.note(ended_at=self._clock.time())
        return True

    @contextlib.asynccontextmanager
    async def _watched(self, sidecar: Sidecar, ledger: JobLedger) -> AsyncIterator[None]:
        """Its limits of memory in force, and what memory was like noted now and then: a kill loses little."""
        if self._memory is None:
            yield
            return
        marks = None
        if sidecar.vram is not None:
            # What it leaves out is the service's: of two limits the lower one counts.
            vram = sidecar.vram
            marks = RelativeLimits(vram.high or 1.0, vram.critical or 1.0, vram.keep_free_gb or 0.0)
        with self._memory.during(marks, await ledger.meta("memory")) as tally:

            async def note() -> None:
                while True:
                    await self._clock.sleep(_NOTE_EVERY_S)
                    await ledger.note(memory=tally.to_json())

            notes = asyncio.create_task(note(), name="memory notes")
            try:
                yield
            finally:
                notes.cancel()
                await asyncio.gather(notes, return_exceptions=True)
                await ledger.note(memory=tally.to_json())

    async def _same_files(self, job: JobDir, sidecar: Sidecar, ledger: JobLedger) -> None:
        """A ledger belongs to the very files it was made from."""
        data = await asyncio.to_thread(sha256_of, job.data)
        side = await asyncio.to_thread(sha256_of, job.sidecar) if job.sidecar else None
        if sidecar.expect and sidecar.expect.sha256 and sidecar.expect.sha256.lower() != data:
            raise InputError(
                f"{job.data.name} has sha256 {data}, the sidecar expects {sidecar.expect.sha256.lower()}",
                fix="If it was cut short or has changed, send it again; else correct expect.sha256.",
                code="not_as_expected",
            )
        known = await ledger.meta("data_sha256")
        if known is None:
            await ledger.note(
                job=job.name,
                data_name=job.data.name,
                sidecar_name=job.sidecar.name if job.sidecar else None,
                data_sha256=data,
                sidecar_sha256=side,
                backend=self._backend.kind,
            )
        elif (known, await ledger.meta("sidecar_sha256")) != (data, side):
            raise LedgerError(
                "the data file or the sidecar in processing/ was changed after the job had begun",
                fix="Drop the files again; the results so far stay in the ledger beside them.",
            )

    async def _end_early(self, ledger: JobLedger, error: JobError) -> int:
        """Note why, before the rest of the rows is skipped: a restart in between must not forget it."""
        await ledger.note(ended_early=_told(error), ended_at=self._clock.time())
        return await ledger.skip_rest()

    async def _publish(self, job: JobDir, sidecar: Sidecar, failure: JobError | None) -> JobEnd:
        early = None if failure is None else _told(failure)
        where: Literal["done", "failed"] = "done" if failure is None else "failed"
        message = await asyncio.to_thread(_build, job, sidecar, early)
        if failure is not None:
            await asyncio.to_thread(_write_error, job, failure)
        path = await asyncio.to_thread(publish, self._spool, job, where)
        return JobEnd(where, path, message)


def _patience(job: JobDir) -> float:
    """Seconds that reading or writing everything of a job may take, before the watchdog wonders."""
    size = sum(path.stat().st_size for path in (job.data, job.ledger) if path.exists())
    return _LEAST_PATIENCE_S + size / _SLOW_BYTES_PER_S


def _told(error: JobError) -> dict[str, str]:
    return {"code": error.code, "message": error.message, "fix": error.fix}


def _count(progress: Progress, durable: Durable) -> None:
    progress.durable(ok=durable.ok, failed=durable.failed)


def _build(job: JobDir, sidecar: Sidecar, early: Mapping[str, Any] | None) -> str:
    open_out(job)
    with in_words(f"writing the results of {job.name}"), LedgerReader(job.ledger) as reader:
        summary = build_outputs(job.out, reader, sidecar, ended_early=early)
    return summary.outcome(None if early is None else early["message"])


def _keep_ledger(job: JobDir) -> None:
    """A ledger that cannot be used may still hold answers: it is published as it is."""
    with in_words(f"keeping the ledger of {job.name}"):
        for part in job.path.glob(job.ledger.name + "*"):
            shutil.copyfile(part, job.out / part.name)


def _write_error(job: JobDir, error: JobError) -> None:
    body: dict[str, Any] = {
        "job": job.name,
        "code": error.code,
        "message": error.message,
        "fix": error.fix,
    }
    if isinstance(error, SidecarError):
        body["problems"] = [dataclasses.asdict(problem) for problem in error.problems]
    text = json.dumps(body, indent=2, ensure_ascii=False) + "\n"
    with in_words(f"writing error.json of {job.name}"):
        (job.out / "error.json").write_text(text, encoding="utf-8", errors="backslashreplace")
