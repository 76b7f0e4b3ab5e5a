"""Runs a job: loads its models one after another, and distributes their rows to lanes."""

from __future__ import annotations

import asyncio
import random
from dataclasses import asdict, dataclass

from spoolama.answer.job_context import JobContext
from spoolama.answer.planner import Planner
from spoolama.answer.row_counts import RowCounts
from spoolama.answer.store import RowStore
from spoolama.backends.base import Backend
from spoolama.clock import Clock
from spoolama.compare.anchor_phase import AnchorPhase
from spoolama.compare.audit import AuditBudget
from spoolama.compare.audit_phase import AuditPhase, audit_budget, left_to_audit
from spoolama.compare.pilot_phase import PilotPhase
from spoolama.context.budget import message_bytes
from spoolama.context.turns import Turns
from spoolama.errors import JobError, ModelUnavailable
from spoolama.evaluation.asking import MessageBuilder
from spoolama.evaluation.evaluator import JobEvaluator
from spoolama.evaluation.protocol import Abandoned
from spoolama.job.plan import first_plan, pilot_asks
from spoolama.job.row import Failed
from spoolama.job.sidecar import Sidecar
from spoolama.memory.room import Memory, UnlimitedMemory
from spoolama.model.gate import Gate, Stopping
from spoolama.progress import Progress
from spoolama.run.model_run import ModelRun
from spoolama.run.second_pass import answer_long_rows
from spoolama.run.segments import Segments
from spoolama.stopping import Stop


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended."""

    finished: bool
    """Every row has its result; False: the service stops, and the next start continues."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRunner:
    """One run of one job."""

    sidecar: Sidecar
    store: RowStore
    backend: Backend
    evaluator: JobEvaluator
    """Evaluates templates, schemas and scores of the sidecar."""
    clock: Clock
    progress: Progress
    lanes: int
    """Maximum number of requests in flight."""
    stop: Stop
    """Set when the service stops."""
    rng: random.Random | None = None
    """Random source for jitter; prompts do not depend on it."""
    memory: Memory | None = None
    """The memory watchdog; None: memory is not watched."""

    async def run(self) -> RunEnd:
        """Answer every row without a result, until all have one or the service stops.

        Raises:
            JobError: the job cannot continue; its results so far are in the store.
        """
        store = self.store
        counts = await store.counts()
        total = sum(counts.values())
        models = await store.models()
        if not models and await left_to_audit(store):
            models = [None]
        budget = await audit_budget(self.sidecar, store, total)
        job = await self._context(models, counts)
        waker = asyncio.create_task(job.gate.wake_on_stop(), name="wake waiting lanes")
        try:
            for model in models:
                await self._run_model(model, job, budget)
            for model, sizes in (await store.deferred_sizes()).items():
                spec = job.asker.load_spec(model or self.sidecar.model, self.lanes)
                await answer_long_rows(job, self._memory, spec, model, sizes)
        except (Stopping, Abandoned):
            return RunEnd(finished=False)
        finally:
            waker.cancel()
            await asyncio.gather(waker, return_exceptions=True)
            await store.add("waited_s", job.gate.waited_s)
            await store.add("held_s", job.gate.held_s)
            await store.flush()
        return RunEnd(finished=not (await store.counts())["pending"])

    @property
    def _memory(self) -> Memory:
        return UnlimitedMemory() if self.memory is None else self.memory

    async def _context(self, models: list[str | None], counts: dict[str, int]) -> JobContext:
        sidecar, store, total = self.sidecar, self.store, sum(counts.values())
        # The models of all rows, not of pending ones: what is learned must not depend on resumes.
        asked = await store.meta("asked_models")
        if asked is None:
            asked = models
            await store.note(asked_models=asked)
        one_model = not await store.meta("own_requests", False)
        asker = MessageBuilder(sidecar, self.evaluator)
        planner = Planner(
            store,
            first_plan(sidecar, total, pilot=one_model and pilot_asks(sidecar, total) > 0),
            prefix_bytes=message_bytes(asker.prefix),
            total=total,
            stop=self.stop,
            density=asked == [None],
        )
        await planner.open()
        return JobContext(
            sidecar=sidecar,
            total=total,
            store=store,
            backend=self.backend,
            evaluator=self.evaluator,
            asker=asker,
            turns=Turns(sidecar, asker, self.evaluator),
            planner=planner,
            gate=Gate(self.clock, self.progress, self.stop, limit=self.lanes, rng=self.rng),
            counts=RowCounts(total, ok=counts["ok"], failed=counts["failed"], max_failed=sidecar.max_failed),
            progress=self.progress,
            clock=self.clock,
            stop=self.stop,
            one_model=one_model,
        )

    async def _run_model(self, model: str | None, job: JobContext, budget: AuditBudget) -> None:
        spec = job.asker.load_spec(model or self.sidecar.model, self.lanes)
        run = ModelRun(job, self._memory, spec, model)
        try:
            loaded = await run.open()
        except JobError as error:
            await self._fail_model(model, job, error)
            return
        trained = await job.store.meta("trained", {})
        await job.store.note(
            model=asdict(loaded), lanes=self.lanes, trained={**trained, loaded.name: loaded.trained_ctx}
        )
        anchors = AnchorPhase(job)
        try:
            if job.one_model:
                self.progress.phase = "answering candidates for the anchors"
                await anchors.prepare(run.in_lanes)
                piloted = pilot_asks(self.sidecar, job.total) or await job.store.meta("pilot") is not None
                if piloted:
                    await PilotPhase(job, anchors).prepare(run.in_lanes)
            self.progress.phase = "answering"
            audit = AuditPhase(job, budget) if job.one_model and budget.rows else None
            await Segments(model, job, anchors, audit).answer(run.in_lanes)
        except ModelUnavailable as error:
            await self._fail_model(model, job, error)
        finally:
            await run.close()

    async def _fail_model(self, model: str | None, job: JobContext, error: JobError) -> None:
        """Fail the rows of an OpenAI line's own model that cannot be loaded; otherwise the job fails."""
        if model is None:
            raise error
        message = f"{error.message} {error.fix}".strip()
        while rows := await job.store.pending(0, job.total, model, 256):
            for row in rows:
                job.store.failed(Failed(row.ordinal, "request_refused", message, len(row.attempts)))
                job.counts.failed("request_refused", message)
