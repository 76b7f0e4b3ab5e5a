"""Runs a job: loads its model, hands segments to lanes, and says how it ended."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

from spoolama.backends.base import Backend, LoadedModel, LoadSpec
from spoolama.clock import Clock
from spoolama.engine.budget import message_bytes
from spoolama.engine.checks import AnswerChecks
from spoolama.engine.gate import Gate, Stopping
from spoolama.engine.lane import Lane, Shared
from spoolama.engine.patience import Patience
from spoolama.engine.planner import Planner
from spoolama.engine.progress import Progress
from spoolama.engine.store import RowStore, Stop
from spoolama.engine.tally import Tally
from spoolama.errors import BackendError, ConfigError, JobError, RequestRefused, SpoolamaError, WrongServer
from spoolama.job.asking import Asker
from spoolama.job.plan import first_plan
from spoolama.job.record import Failed
from spoolama.job.sidecar import Sidecar

__all__ = ["JobRunner", "RunEnd"]

_AHEAD = 64
_LOAD_DEATHS = 5
"""A model whose process dies so often while it loads does not fit or is broken."""


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

    async def run(self) -> RunEnd:
        """Answer every row that has no end yet, or stop when asked to.

        Raises:
            JobError: the job cannot go on; its results so far are in the store.
        """
        counts = await self._store.counts()
        total = sum(counts.values())
        models = await self._store.models()
        planner = Planner(
            self._store,
            first_plan(self._sidecar),
            prefix_bytes=message_bytes(self._asker.prefix),
            total=total,
            stop=self._stop,
            learn=models == [None],
        )
        await planner.open()
        shared = Shared(
            store=self._store,
            backend=self._backend,
            asker=self._asker,
            checks=AnswerChecks(),
            gate=self._gate,
            patience=Patience(self._sidecar.timeout),
            progress=self._progress,
            tally=Tally(total, ok=counts["ok"], failed=counts["failed"], max_failed=self._sidecar.max_failed),
            clock=self._clock,
            retries=self._sidecar.retries,
            refusal_ends_job=not self._openai,
        )
        waker = asyncio.create_task(self._gate.wake_on_stop(), name="wake waiting lanes")
        try:
            for model in models:
                await self._run_model(model, planner, shared, total)
        except Stopping:
            return RunEnd(finished=False)
        finally:
            waker.cancel()
            await asyncio.gather(waker, return_exceptions=True)
            await self._store.add("waited_s", self._gate.waited_s)
            await self._store.flush()
        return RunEnd(finished=not (await self._store.counts())["pending"])

    async def _run_model(self, model: str | None, planner: Planner, shared: Shared, total: int) -> None:
        spec = self._asker.load_spec(model or self._sidecar.model, self._lanes)
        try:
            loaded = await self._load(spec)
        except JobError as error:
            if not self._openai or model is None:
                raise
            await self._fail_model(model, shared, total, error)
            return
        await self._store.note(model=asdict(loaded), lanes=self._lanes)
        self._progress.phase = "answering"
        segments = self._segments(planner, model)
        lock = asyncio.Lock()

        async def work(number: int) -> None:
            lane = Lane(number, shared, spec)
            try:
                while True:
                    async with lock:
                        segment = await anext(segments, None)
                    if segment is None or self._stop.is_set():
                        return
                    plan = await planner.plan_for(segment)
                    if plan is None:
                        return
                    first = segment * planner.segment_rows
                    last = min(total, first + planner.segment_rows) - 1
                    await lane.run_segment(segment, first, last, model, plan)
                    planner.segment_ended()
            except Stopping:
                return

        began, waited = self._clock.monotonic(), self._gate.waited_s
        ended: SpoolamaError | None = None
        try:
            async with asyncio.TaskGroup() as lanes:
                for number in range(self._lanes):
                    lanes.create_task(work(number), name=f"lane {number}")
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

    async def _segments(self, planner: Planner, model: str | None) -> AsyncIterator[int]:
        after = -1
        while found := await self._store.pending_segments(after, planner.segment_rows, model, _AHEAD):
            for segment in found:
                yield segment
            after = found[-1]

    async def _load(self, spec: LoadSpec) -> LoadedModel:
        """Load the model, waiting for the server as long as it takes."""
        self._progress.phase = f"loading {spec.model}"
        loaded: list[LoadedModel] = []

        async def attempt() -> None:
            loaded.append(await self._backend.load(spec))

        try:
            try:
                with self._progress.pulse.wait(900.0):
                    await attempt()
            except RequestRefused:
                raise
            except BackendError as error:
                await self._gate.recover(error.message, attempt, patience=_LOAD_DEATHS)
        except WrongServer as error:
            raise ConfigError(f"{error.message}. {error.mend}") from error
        except RequestRefused as error:
            raise JobError(error.message, mend=error.mend, code=error.code) from error
        except BackendError as error:
            raise JobError(
                f"{spec.model} cannot be loaded: {error.message}",
                mend="Free memory on the server, take a smaller model or a smaller num_ctx.",
                code=error.code,
            ) from error
        if not loaded:
            raise Stopping
        return loaded[-1]

    async def _fail_model(self, model: str, shared: Shared, total: int, error: JobError) -> None:
        """An OpenAI line's own model is not to be had: that is the error of its rows, not of the job."""
        while rows := await self._store.pending(0, total, model, 256):
            for row in rows:
                message = f"{error.message} {error.mend}".strip()
                self._store.failed(Failed(row.ordinal, "request_refused", message, len(row.attempts)))
                shared.tally.failed("request_refused", message)


def _first(group: BaseExceptionGroup[SpoolamaError]) -> SpoolamaError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("an exception group is never empty")
