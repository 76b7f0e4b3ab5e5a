"""Runs a job: loads its model, hands segments to lanes, and says how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, replace

from spoolama.backends.base import Backend, LoadedModel, LoadSpec, Message
from spoolama.clock import Clock
from spoolama.context.budget import message_bytes
from spoolama.context.turns import Turns
from spoolama.engine.anchoring import Anchoring, RunLanes
from spoolama.engine.auditing import audit_rows, left_to_look_at
from spoolama.engine.checks import AnswerChecks
from spoolama.engine.gate import Gate, Stopping
from spoolama.engine.guarding import Guarding
from spoolama.engine.handout import Handout
from spoolama.engine.lane import Lane
from spoolama.engine.loading import load_model
from spoolama.engine.patience import Patience
from spoolama.engine.piloting import Piloting
from spoolama.engine.planner import Planner, Wanted
from spoolama.engine.primer import Primer
from spoolama.engine.progress import Progress
from spoolama.engine.second_pass import sort_out
from spoolama.engine.segments import Segments
from spoolama.engine.shared import Shared
from spoolama.engine.store import RowStore, Stop
from spoolama.engine.surprises import Surprises
from spoolama.engine.tally import Tally
from spoolama.engine.watch import Watch
from spoolama.errors import JobError, RowError, SpoolamaError
from spoolama.job.asking import Asker
from spoolama.job.plan import first_plan, pilot_asks
from spoolama.job.record import Failed, StoredRow
from spoolama.job.sidecar import Sidecar

__all__ = ["JobRunner", "RunEnd"]

_AHEAD = 64
_EXAMPLES = 16
"""Rows by which the shared beginning of prompts is found."""


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended."""

    finished: bool
    """Every row has its end; False: the service stops and the rest is for the next start."""


class JobRunner:
    """One run of one job.

    Args:
        sidecar: What the user asked for.
        openai: Whether the rows are OpenAI batch lines.
        store: Rows, answers and plans.
        backend: The model server.
        clock: Time.
        progress: Where to tell how far it is.
        lanes: Requests in flight at once.
        stop: A wish to stop.
        rng: For jitter only; nothing that is asked depends on it.
    """

    def __init__(
        self,
        *,
        sidecar: Sidecar,
        openai: bool,
        store: RowStore,
        backend: Backend,
        clock: Clock,
        progress: Progress,
        lanes: int,
        stop: Stop,
        rng: random.Random | None = None,
    ) -> None:
        self._sidecar = sidecar
        self._openai = openai
        self._store = store
        self._backend = backend
        self._clock = clock
        self._progress = progress
        self._lanes = lanes
        self._stop = stop
        self._gate = Gate(clock, progress, stop, limit=lanes, rng=rng)
        self._asker = Asker(sidecar, openai=openai)
        self._turns = Turns(sidecar, self._asker)
        self._one_model = True

    async def run(self) -> RunEnd:
        """Answer every row that has no end yet, or stop when asked to.

        Raises:
            JobError: the job cannot go on; its results so far are in the store.
        """
        counts = await self._store.counts()
        total = sum(counts.values())
        models = await self._store.models()
        if not models and not self._openai and await left_to_look_at(self._sidecar, self._store):
            models = [None]
        # Of all rows, not of those that are left: what is learned must not depend on where a resume begins.
        asked = await self._store.meta("asked_models")
        if asked is None:
            asked = models
            await self._store.note(asked_models=asked)
        self._one_model = asked in ([None], []) and not self._openai
        conversation = self._sidecar.mode == "conversation"
        pilot = self._one_model and pilot_asks(self._sidecar, total) > 0
        planner = Planner(
            self._store,
            first_plan(self._sidecar, total, pilot=pilot),
            prefix_bytes=message_bytes(self._asker.prefix),
            total=total,
            stop=self._stop,
            wanted=Wanted(
                density=asked == [None],
                costs=asked == [None] and conversation and self._sidecar.trim.learns,
            ),
            room=self._sidecar.options.num_ctx - self._sidecar.options.num_predict,
        )
        await planner.open()
        tally = Tally(total, ok=counts["ok"], failed=counts["failed"], max_failed=self._sidecar.max_failed)
        waker = asyncio.create_task(self._gate.wake_on_stop(), name="wake waiting lanes")
        try:
            for model in models:
                await self._run_model(model, planner, tally, total)
            for long_model, sizes in (await self._store.deferred_sizes()).items():
                await self._run_long(long_model, sizes, planner, tally)
        except Stopping:
            return RunEnd(finished=False)
        finally:
            waker.cancel()
            await asyncio.gather(waker, return_exceptions=True)
            await self._store.add("waited_s", self._gate.waited_s)
            await self._store.flush()
        return RunEnd(finished=not (await self._store.counts())["pending"])

    async def _run_model(self, model: str | None, planner: Planner, tally: Tally, total: int) -> None:
        spec = self._asker.load_spec(model or self._sidecar.model, self._lanes)
        try:
            loaded = await load_model(self._backend, spec, self._gate, self._progress)
        except JobError as error:
            if not self._openai or model is None:
                raise
            await self._fail_model(model, tally, total, error)
            return
        await self._store.note(model=asdict(loaded), lanes=self._lanes)
        trained = await self._store.meta("trained", {})
        await self._store.note(trained={**trained, loaded.name: loaded.trained_ctx})
        shared = await self._shared(spec, loaded, planner, tally, model)
        anchoring = Anchoring(self._sidecar, self._store, planner, self._turns, tally, total=total)
        watched = model is None and not self._openai
        guarding = (
            Guarding(self._sidecar, self._store, planner, self._turns, tally, self._progress)
            if watched
            else None
        )
        segments = Segments(model, self._store, planner, anchoring, guarding, self._stop, total=total)

        def run(work: Callable[[Lane], Awaitable[None]]) -> Awaitable[None]:
            return self._in_lanes(shared, spec, work)

        try:
            if watched:
                self._progress.phase = "answering rows of which the anchors are chosen"
                await anchoring.prepare(run)
                await self._pilot(planner, anchoring, run, total)
            self._progress.phase = "answering"
            await segments.answer(run)
            if watched:
                await audit_rows(self._sidecar, self._store, planner.latest, run, self._progress)
        finally:
            await self._note_watch(spec, shared.watch)

    async def _pilot(self, planner: Planner, anchoring: Anchoring, run: RunLanes, total: int) -> None:
        if not self._one_model or not pilot_asks(self._sidecar, total):
            return
        piloting = Piloting(
            self._sidecar, self._store, planner, anchoring, self._turns, self._progress, total=total
        )
        await piloting.prepare(run)

    async def _run_long(
        self, model: str | None, sizes: list[tuple[int, int]], planner: Planner, tally: Tally
    ) -> None:
        """The second pass: rows too long for the window, each alone, in one that fits them."""
        name = model or self._sidecar.model
        trained = (await self._store.meta("trained", {})).get(name)
        rows = sort_out(sizes, trained)
        spec = self._asker.load_spec(name, min(self._lanes, len(rows.fitting) or 1))
        for ordinal, tokens in rows.too_long:
            self._too_long(ordinal, tokens, f"the model's own window has {trained:,}", tally)
        if not rows.fitting:
            return
        spec = replace(spec, num_ctx=rows.window)
        try:
            loaded = await load_model(self._backend, spec, self._gate, self._progress)
        except JobError as error:
            fitting = set(rows.fitting)
            for ordinal, tokens in sizes:
                if ordinal in fitting:
                    why = f"a window of {rows.window:,} cannot be loaded: {error.message}"
                    self._too_long(ordinal, tokens, why, tally)
            return
        shared = replace(await self._shared(spec, loaded, planner, tally, model), defers=False)
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
            await self._in_lanes(shared, spec, work)
        finally:
            await self._note_watch(spec, shared.watch)

    def _too_long(self, ordinal: int, tokens: int, why: str, tally: Tally) -> None:
        message = f"prompt and answer may have {tokens:,} tokens; {why}. Shorten the row."
        self._store.failed(Failed(ordinal, "context_overflow", message, 1, {"tokens": tokens}))
        tally.failed("context_overflow", message)

    async def _shared(
        self, spec: LoadSpec, loaded: LoadedModel, planner: Planner, tally: Tally, model: str | None
    ) -> Shared:
        """What the lanes have in common while this model is loaded."""
        primer = Primer(
            self._backend,
            spec,
            # A thinking model may render another beginning than the one that is asked for here.
            mode="never" if self._sidecar.think else self._sidecar.prime,
            sliding=loaded.sliding_window is not None,
            copies=loaded.copies_prefix,
            rows=await self._some_rows(model),
        )
        surprises = Surprises(self._backend, spec, loaded)
        return Shared(
            store=self._store,
            backend=self._backend,
            asker=self._asker,
            checks=AnswerChecks(),
            gate=self._gate,
            patience=Patience(self._sidecar.timeout),
            progress=self._progress,
            tally=tally,
            clock=self._clock,
            retries=self._sidecar.retries,
            turns=self._turns,
            watch=Watch(surprises, primer, self._progress, planner.shrink if self._one_model else None),
            row_ended=planner.moved,
            defers=self._sidecar.long_rows == "second_pass",
            repair_temperature=self._sidecar.repair.temperature,
            refusal_ends_job=not self._openai,
        )

    async def _some_rows(self, model: str | None) -> list[tuple[Message, ...]]:
        """Own messages of a few rows, by which the primer finds what all of them share."""
        found: list[tuple[Message, ...]] = []
        rows = await self._store.pending(0, 1 << 61, model, _EXAMPLES)
        for row in rows or await self._store.deferred(model, -1, _EXAMPLES):
            with contextlib.suppress(RowError):
                found.append(self._asker.ask(row.fields).own)
        return found

    async def _in_lanes(
        self, shared: Shared, spec: LoadSpec, work: Callable[[Lane], Awaitable[None]]
    ) -> None:
        """Run this in every lane at once."""

        async def run(lane: Lane) -> None:
            with contextlib.suppress(Stopping):
                await work(lane)

        began, waited = self._clock.monotonic(), self._gate.waited_s
        ended: SpoolamaError | None = None
        try:
            async with asyncio.TaskGroup() as lanes:
                for number in range(max(1, spec.slots)):
                    lanes.create_task(run(Lane(number, shared, spec)), name=f"lane {number}")
        except* SpoolamaError as group:
            # Raised below: before Python 3.11.4 what is raised here would come out wrapped in a group.
            ended = _first(group)
        finally:
            waiting = self._gate.waited_s - waited
            await self._store.add("active_s", max(0.0, self._clock.monotonic() - began - waiting))
        if ended is not None:
            raise ended
        if self._stop.is_set():
            raise Stopping

    async def _note_watch(self, spec: LoadSpec, watch: Watch) -> None:
        notes = await self._store.meta("watch", [])
        await self._store.note(
            watch=[*notes, {"model": spec.model, "num_ctx": spec.num_ctx, **watch.notes()}]
        )

    async def _long_rows(self, model: str | None) -> AsyncIterator[StoredRow]:
        after = -1
        while found := await self._store.deferred(model, after, _AHEAD):
            for row in found:
                yield row
            after = found[-1].ordinal

    async def _fail_model(self, model: str, tally: Tally, total: int, error: JobError) -> None:
        """An OpenAI line's own model is not to be had: that is the error of its rows, not of the job."""
        while rows := await self._store.pending(0, total, model, 256):
            for row in rows:
                message = f"{error.message} {error.mend}".strip()
                self._store.failed(Failed(row.ordinal, "request_refused", message, len(row.attempts)))
                tally.failed("request_refused", message)


def _first(group: BaseExceptionGroup[SpoolamaError]) -> SpoolamaError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("an exception group is never empty")
