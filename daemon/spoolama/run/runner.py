"""Runs a job: loads its model, hands segments to lanes, and says how it ended."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace

from spoolama.answer.handout import Handout
from spoolama.answer.lane import Lane
from spoolama.answer.planner import Planner
from spoolama.answer.row_counts import RowCounts
from spoolama.answer.store import RowStore
from spoolama.backends.base import Backend
from spoolama.clock import Clock
from spoolama.compare.anchoring import Anchoring, RunLanes
from spoolama.compare.auditing import Auditing, audit_budget, left_to_audit
from spoolama.compare.piloting import Piloting
from spoolama.context.budget import message_bytes
from spoolama.context.turns import Turns
from spoolama.errors import JobError, ModelLost
from spoolama.evaluation.asking import Asker
from spoolama.evaluation.evaluator import JobEvaluator
from spoolama.evaluation.protocol import Abandoned
from spoolama.job.plan import first_plan, pilot_asks
from spoolama.job.row import Failed, StoredRow
from spoolama.job.sidecar import Sidecar
from spoolama.memory.room import Memory, Unwatched
from spoolama.model.gate import Gate, Stopping
from spoolama.progress import Progress
from spoolama.run.model_run import ModelRun, Terms
from spoolama.run.second_pass import sort_out
from spoolama.run.segments import Segments
from spoolama.stopping import Stop

__all__ = ["JobRunner", "RunEnd"]

_AHEAD = 64


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended."""

    finished: bool
    """Every row has its end; False: the service stops and the rest is for the next start."""


class JobRunner:
    """One run of one job.

    Args:
        sidecar: What the user asked for.
        store: Rows, answers and plans.
        backend: The model server.
        evaluator: Evaluates what the user wrote.
        clock: Time.
        progress: Where to tell how far it is.
        lanes: Requests in flight at once.
        stop: A wish to stop.
        rng: For jitter only; nothing that is asked depends on it.
        memory: The memory watchdog; None: nobody watches.
    """

    def __init__(
        self,
        *,
        sidecar: Sidecar,
        store: RowStore,
        backend: Backend,
        evaluator: JobEvaluator,
        clock: Clock,
        progress: Progress,
        lanes: int,
        stop: Stop,
        rng: random.Random | None = None,
        memory: Memory | None = None,
    ) -> None:
        self._sidecar = sidecar
        self._store = store
        self._backend = backend
        self._clock = clock
        self._progress = progress
        self._lanes = lanes
        self._stop = stop
        self._gate = Gate(clock, progress, stop, limit=lanes, rng=rng)
        self._evaluator = evaluator
        self._asker = Asker(sidecar, evaluator)
        self._turns = Turns(sidecar, self._asker, evaluator)
        self._memory = memory or Unwatched()

    async def run(self) -> RunEnd:
        """Answer every row that has no end yet, or stop when asked to.

        Raises:
            JobError: the job cannot go on; its results so far are in the store.
        """
        counts = await self._store.counts()
        total = sum(counts.values())
        models = await self._store.models()
        if not models and await left_to_audit(self._store):
            models = [None]
        # Of all rows, not of those that are left: what is learned must not depend on where a resume begins.
        asked = await self._store.meta("asked_models")
        if asked is None:
            asked = models
            await self._store.note(asked_models=asked)
        one_model = not await self._store.meta("own_requests", False)
        pilot = one_model and pilot_asks(self._sidecar, total) > 0
        budget = await audit_budget(self._sidecar, self._store, total)
        planner = Planner(
            self._store,
            first_plan(self._sidecar, total, pilot=pilot),
            prefix_bytes=message_bytes(self._asker.prefix),
            total=total,
            stop=self._stop,
            density=asked == [None],
        )
        await planner.open()
        tally = RowCounts(
            total, ok=counts["ok"], failed=counts["failed"], max_failed=self._sidecar.max_failed
        )
        terms = Terms(
            sidecar=self._sidecar,
            store=self._store,
            backend=self._backend,
            memory=self._memory,
            clock=self._clock,
            progress=self._progress,
            stop=self._stop,
            gate=self._gate,
            asker=self._asker,
            evaluator=self._evaluator,
            turns=self._turns,
            planner=planner,
            tally=tally,
            one_model=one_model,
            audit=budget,
        )
        waker = asyncio.create_task(self._gate.wake_on_stop(), name="wake waiting lanes")
        try:
            for model in models:
                await self._run_model(model, terms, total)
            for long_model, sizes in (await self._store.deferred_sizes()).items():
                await self._run_long(long_model, sizes, terms)
        except (Stopping, Abandoned):
            return RunEnd(finished=False)
        finally:
            waker.cancel()
            await asyncio.gather(waker, return_exceptions=True)
            await self._store.add("waited_s", self._gate.waited_s)
            await self._store.add("held_s", self._gate.held_s)
            await self._store.flush()
        return RunEnd(finished=not (await self._store.counts())["pending"])

    async def _run_model(self, model: str | None, terms: Terms, total: int) -> None:
        planner, tally = terms.planner, terms.tally
        spec = self._asker.load_spec(model or self._sidecar.model, self._lanes)
        run = ModelRun(terms, spec, model, defers=self._sidecar.long_rows == "second_pass")
        try:
            loaded = await run.open()
        except JobError as error:
            if model is None:
                raise
            await self._fail_model(model, tally, total, error)
            return
        await self._store.note(model=asdict(loaded), lanes=self._lanes)
        trained = await self._store.meta("trained", {})
        await self._store.note(trained={**trained, loaded.name: loaded.trained_ctx})
        anchoring = Anchoring(
            self._sidecar, self._store, planner, self._asker, self._turns, tally, total=total
        )
        watched = terms.one_model
        auditing = None
        if watched and terms.audit.rows:
            auditing = Auditing(
                self._sidecar,
                self._store,
                planner,
                self._turns,
                tally,
                self._progress,
                total=total,
                budget=terms.audit,
            )
        segments = Segments(model, self._store, planner, anchoring, auditing, self._stop, total=total)
        try:
            if watched:
                self._progress.phase = "answering rows of which the anchors are chosen"
                await anchoring.prepare(run.in_lanes)
                await self._pilot(planner, anchoring, run.in_lanes, total)
            self._progress.phase = "answering"
            await segments.answer(run.in_lanes)
        except ModelLost as error:
            if model is None:
                raise
            await self._fail_model(model, tally, total, error)
        finally:
            await run.close()

    async def _pilot(self, planner: Planner, anchoring: Anchoring, run: RunLanes, total: int) -> None:
        if not pilot_asks(self._sidecar, total) and await self._store.meta("pilot") is None:
            return
        piloting = Piloting(
            self._sidecar, self._store, planner, anchoring, self._turns, self._progress, total=total
        )
        await piloting.prepare(run)

    async def _run_long(self, model: str | None, sizes: list[tuple[int, int]], terms: Terms) -> None:
        """The second pass: rows too long for the window, each alone, in one that fits them."""
        planner, tally = terms.planner, terms.tally
        name = model or self._sidecar.model
        trained = (await self._store.meta("trained", {})).get(name)
        rows = sort_out(sizes, trained)
        for ordinal, tokens in rows.too_long:
            self._too_long(ordinal, tokens, f"the model's own window has {trained:,}", tally)
        if not rows.fitting:
            return
        spec = self._asker.load_spec(name, min(self._lanes, len(rows.fitting) or 1))
        run = ModelRun(terms, replace(spec, num_ctx=rows.window), model, defers=False, long=True)
        try:
            await run.open()
        except JobError as error:
            await self._none_fits(model, sizes, rows.window, error, tally)
            return
        waiting = Handout(self._long_rows(model))
        size = planner.segment_rows

        async def work(lane: Lane) -> None:
            while not self._stop.is_set():
                row = await waiting.take()
                if row is None:
                    return
                await lane.run_long(row, row.ordinal // size, row.ordinal % size, planner.latest)

        self._progress.phase = f"answering {len(rows.fitting)} long rows with a window of {rows.window:,}"
        try:
            await run.in_lanes(work)
        except ModelLost as error:
            await self._none_fits(model, sizes, rows.window, error, tally)
        finally:
            await run.close()

    async def _none_fits(
        self,
        model: str | None,
        sizes: list[tuple[int, int]],
        window: int,
        error: JobError,
        tally: RowCounts,
    ) -> None:
        """The larger window is not to be had: the rows that wait for it fail with their sizes."""
        tokens = dict(sizes)
        async for row in self._long_rows(model):
            if row.ordinal in tokens:
                why = f"a window of {window:,} cannot be loaded: {error.message}"
                self._too_long(row.ordinal, tokens[row.ordinal], why, tally)

    def _too_long(self, ordinal: int, tokens: int, why: str, tally: RowCounts) -> None:
        message = f"prompt and answer may have {tokens:,} tokens; {why}. Shorten the row."
        self._store.failed(Failed(ordinal, "context_overflow", message, 1, {"tokens": tokens}))
        tally.failed("context_overflow", message)

    async def _long_rows(self, model: str | None) -> AsyncIterator[StoredRow]:
        after = -1
        while found := await self._store.deferred(model, after, _AHEAD):
            for row in found:
                yield row
            after = found[-1].ordinal

    async def _fail_model(self, model: str, tally: RowCounts, total: int, error: JobError) -> None:
        """A model that rows request cannot be loaded: that is an error of these rows, not of the job."""
        while rows := await self._store.pending(0, total, model, 256):
            for row in rows:
                message = f"{error.message} {error.fix}".strip()
                self._store.failed(Failed(row.ordinal, "request_refused", message, len(row.attempts)))
                tally.failed("request_refused", message)
