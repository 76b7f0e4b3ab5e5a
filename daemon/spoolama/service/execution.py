"""Executes a job from the claimed files to the published directory; a crash can repeat any step."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from spoolama import __version__
from spoolama.answer.row_counts import FIRST_ROWS, check_first_failures
from spoolama.backends.base import Backend
from spoolama.clock import Clock
from spoolama.compare.audit_phase import left_to_audit
from spoolama.errors import InputError, JobError, LedgerError, LedgerVersion, SidecarError
from spoolama.evaluation.evaluator import EVALUATION_LIMIT, Evaluator
from spoolama.job.rows.data_file import InputKind, detect
from spoolama.job.rows.reader import RowLimits
from spoolama.job.sidecar import Sidecar
from spoolama.memory.level import RelativeLimits
from spoolama.memory.watchdog import MemoryWatchdog
from spoolama.progress import Progress
from spoolama.publish.build import build_outputs
from spoolama.run.runner import JobRunner
from spoolama.service.intake import add_requests, take_in
from spoolama.service.state import JobEnd
from spoolama.spool.claim import JobDir
from spoolama.spool.durable import in_words, sha256_of
from spoolama.spool.job_ledger import JobLedger
from spoolama.spool.layout import Spool
from spoolama.spool.ledger_format import check_format
from spoolama.spool.ledger_reader import LedgerReader, job_progress
from spoolama.spool.ledger_thread import Durable
from spoolama.spool.publication import open_out, publish
from spoolama.stopping import Stop

_MIN_LIVENESS_S = 120.0
_SLOW_BYTES_PER_S = 1e6
"""Rate of hashing, sorting and writing results on a slow and busy disk."""
_NOTE_EVERY_S = 30.0


class JobExecutor:
    """Executes claimed jobs until they are published.

    Args:
        spool: Where jobs are published.
        backend: The model server.
        evaluator: Evaluates templates, schemas and sidecars.
        clock: Time.
        lanes: Parallel requests, unless the sidecar sets them.
        limits: Size limits of rows.
        newline_required: Whether data must end with a newline.
        memory: The memory watchdog; None: no watchdog.
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
        """Resume the job from its ledger and run it until its end or until `stop`.

        Raises:
            LedgerVersion: only another version can finish the job; it waits in processing/.
        """
        try:
            with progress.pulse.wait(_MIN_LIVENESS_S):
                kind, sidecar, retired = await self._read(job)
        except JobError as error:
            return await self.reject(job, error)
        failure: JobError | None = None
        try:
            async with self._ledger(job, retired, partial(_count, progress)) as ledger:
                try:
                    if not await self._answer(job, kind, sidecar, ledger, progress, stop):
                        return JobEnd("left", None, "the remaining rows follow when it continues")
                except LedgerError:
                    raise
                except JobError as error:
                    failure = error
                    progress.skipped = await self._end_early(ledger, error)
        except LedgerError as error:
            return await self.reject(job, error)
        progress.phase = "publishing"
        with progress.pulse.wait(await asyncio.to_thread(_liveness_s, job)):
            return await self._publish(job, sidecar, failure)

    async def reject(self, job: JobDir, error: JobError) -> JobEnd:
        """Publish the job in failed/ for this reason, with its uploads and all results so far.

        Raises:
            LedgerVersion: this version cannot read the ledger, and so not its results; nothing is published.
        """
        # Checked first: a sidecar for another version may have keys that this one refuses.
        await asyncio.to_thread(check_format, job.ledger)
        if not isinstance(error, LedgerError) and await asyncio.to_thread(job.ledger.exists):
            with contextlib.suppress(JobError):  # then the ledger is published as it is
                _, sidecar, retired = await self._read(job)
                async with self._ledger(job, retired) as ledger:
                    await self._end_early(ledger, error)
                return await self._publish(job, sidecar, error)
        path = await asyncio.to_thread(_publish_unread, self._spool, job, error)
        return JobEnd("failed", path, error.message, error.fix)

    async def _read(self, job: JobDir) -> tuple[InputKind, Sidecar, list[str]]:
        """The format of the data, the sidecar, and the keys of settings that only earlier versions had."""
        kind = await asyncio.to_thread(detect, job.data, job.data.name)
        openai = kind.format == "openai"
        if job.sidecar is None:
            if openai:
                return kind, Sidecar(model=""), []
            raise InputError(
                f"{job.data.name} has no sidecar", fix="Upload the file again together with its sidecar."
            )
        try:
            return kind, await self._evaluator.load_sidecar(job.sidecar, openai=openai), []
        except SidecarError as error:
            if await asyncio.to_thread(job.ledger.exists):
                with contextlib.suppress(SidecarError):
                    updated = await self._evaluator.load_sidecar(job.sidecar, openai=openai, begun=True)
                    return kind, updated, [problem.key for problem in error.problems]
            if not (await asyncio.to_thread(job_progress, job.ledger)).all_read:
                raise
            # The sidecar was accepted when the job began: an older version allowed more than this one.
            raise LedgerVersion(
                f"This is spoolama {__version__}, which refuses the sidecar of a job that has begun: "
                f"{error}. {job.name} waits in processing/ with its results. Install the version of "
                "spoolama that began it to finish it."
            ) from error

    @contextlib.asynccontextmanager
    async def _ledger(
        self, job: JobDir, retired: list[str], on_durable: Callable[[Durable], None] | None = None
    ) -> AsyncIterator[JobLedger]:
        """The open ledger of a job; notes the retired settings of its sidecar."""
        async with JobLedger(job.ledger, self._clock, on_durable=on_durable) as ledger:
            if retired:
                await ledger.note(retired=retired)
            yield ledger

    async def _answer(
        self,
        job: JobDir,
        kind: InputKind,
        sidecar: Sidecar,
        ledger: JobLedger,
        progress: Progress,
        stop: Stop,
    ) -> bool:
        """Read the rows unless they are read, and answer those without a result; False if stopped."""
        with progress.pulse.wait(await asyncio.to_thread(_liveness_s, job)):
            await self._check_files(job, sidecar, ledger)
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
        if kind.format == "openai" and not await ledger.meta("own_requests", default=False):
            await add_requests(job, kind, ledger, self._evaluator, progress, limits=self._limits)
        if early := await ledger.meta("ended_early"):
            # The service stopped after the end of the job and before its publication.
            raise JobError(early["message"], fix=early["fix"], code=early["code"])
        counts = await ledger.counts()
        progress.total = sum(counts.values())
        progress.ok, progress.failed, progress.skipped = counts["ok"], counts["failed"], counts["skipped"]
        progress.failures = await ledger.failures()
        await ledger.add("runs", 1)
        if await ledger.meta("started_at") is None:
            await ledger.note(started_at=self._clock.time())
        # All rows may have a result while the audit is incomplete, if the service stopped in between.
        if counts["pending"] or await left_to_audit(ledger):
            if not counts["ok"]:
                check_first_failures(await ledger.first_failures(FIRST_ROWS))
            runner = JobRunner(
                sidecar=sidecar,
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
            async with self._memory_noted(sidecar, ledger):
                end = await runner.run()
            if not end.finished:
                return False
        await ledger.note(ended_at=self._clock.time())
        return True

    @contextlib.asynccontextmanager
    async def _memory_noted(self, sidecar: Sidecar, ledger: JobLedger) -> AsyncIterator[None]:
        """Apply the job's memory limits, and note memory use regularly, so that a kill loses little of it."""
        if self._memory is None:
            yield
            return
        limits = None
        if sidecar.vram is not None:
            # An omitted limit does not bind, because of this limit and the service's the lower one counts.
            vram = sidecar.vram
            limits = RelativeLimits(vram.high or 1.0, vram.critical or 1.0, vram.keep_free_gb or 0.0)
        with self._memory.during(limits, await ledger.meta("memory")) as tally:

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

    async def _check_files(self, job: JobDir, sidecar: Sidecar, ledger: JobLedger) -> None:
        """Check the expected checksum, and that the files are those from which the ledger was made."""
        data = await asyncio.to_thread(sha256_of, job.data)
        side = await asyncio.to_thread(sha256_of, job.sidecar) if job.sidecar else None
        if sidecar.expect and sidecar.expect.sha256 and sidecar.expect.sha256.lower() != data:
            raise InputError(
                f"{job.data.name} has sha256 {data}, the sidecar expects {sidecar.expect.sha256.lower()}",
                fix="If the upload was incomplete, upload the file again. Otherwise correct expect.sha256.",
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
                "the data file or the sidecar in processing/ has changed since the job began",
                fix="Upload the files again. The ledger in this directory has the results so far.",
            )

    async def _end_early(self, ledger: JobLedger, error: JobError) -> int:
        """Note the reason before the other rows are skipped, so that a restart in between knows it."""
        await ledger.note(ended_early=_reason(error), ended_at=self._clock.time())
        return await ledger.skip_rest()

    async def _publish(self, job: JobDir, sidecar: Sidecar, failure: JobError | None) -> JobEnd:
        early = None if failure is None else _reason(failure)
        where: Literal["done", "failed"] = "done" if failure is None else "failed"
        message = await asyncio.to_thread(_build, job, sidecar, early)
        if failure is not None:
            await asyncio.to_thread(_write_error, job, failure)
        path = await asyncio.to_thread(publish, self._spool, job, where)
        return JobEnd(where, path, message, "" if failure is None else failure.fix)


def _liveness_s(job: JobDir) -> float:
    """Maximum time in seconds to read or write all of a job; after that the watchdog gets no pings."""
    size = sum(path.stat().st_size for path in (job.data, job.ledger) if path.exists())
    return _MIN_LIVENESS_S + size / _SLOW_BYTES_PER_S


def _reason(error: JobError) -> dict[str, str]:
    return {"code": error.code, "message": error.message, "fix": error.fix}


def _count(progress: Progress, durable: Durable) -> None:
    progress.durable(ok=durable.ok, failed=durable.failed)


def _build(job: JobDir, sidecar: Sidecar, early: Mapping[str, Any] | None) -> str:
    open_out(job)
    with in_words(f"writing the results of {job.name}"), LedgerReader(job.ledger) as reader:
        summary = build_outputs(job.out, reader, sidecar, ended_early=early)
    return summary.outcome(None if early is None else early["message"])


def _publish_unread(spool: Spool, job: JobDir, error: JobError) -> Path:
    """Publish a job in failed/ with its ledger as it is: a ledger that cannot be used may have answers."""
    open_out(job)
    with in_words(f"keeping the ledger of {job.name}"):
        for part in job.path.glob(job.ledger.name + "*"):
            shutil.copyfile(part, job.out / part.name)
    _write_error(job, error)
    return publish(spool, job, "failed")


def _write_error(job: JobDir, error: JobError) -> None:
    body: dict[str, Any] = {"job": job.name, **_reason(error)}
    if isinstance(error, SidecarError):
        body["problems"] = [dataclasses.asdict(problem) for problem in error.problems]
    text = json.dumps(body, indent=2, ensure_ascii=False) + "\n"
    with in_words(f"writing error.json of {job.name}"):
        (job.out / "error.json").write_text(text, encoding="utf-8", errors="backslashreplace")
