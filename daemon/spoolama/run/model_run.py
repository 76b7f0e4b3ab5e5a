"""Runs one model of a job: loads it, adapts it to the memory pressure, and runs its lanes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

from spoolama.answer.job_context import PROMPT_BYTES, JobContext, OpenModel
from spoolama.answer.lane import Lane
from spoolama.answer.store import completed
from spoolama.backends.base import LoadedModel, LoadSpec, Message
from spoolama.errors import RowError, SpoolamaError
from spoolama.evaluation.evaluator import EVALUATION_LIMIT
from spoolama.evaluation.protocol import Abandoned
from spoolama.memory.room import Memory
from spoolama.model.gate import RequestTimeout, Stopping
from spoolama.model.load_sizes import LoadSizes, load_steps
from spoolama.model.observer import ModelObserver
from spoolama.model.pressure import PressureHandler
from spoolama.model.primer import Primer
from spoolama.model.residency import ModelResidency, load_model

T = TypeVar("T")

_EXAMPLES = 16
"""Rows whose prompts the primer compares."""
_MOST_LOADS = 16
"""Measured loads that are kept for the metrics."""


class ModelRun:
    """A model from its load to the last row that asks for it.

    Args:
        job: Objects that all parts of the job share.
        memory: The memory watchdog.
        spec: The requested load.
        model: The model that rows ask for; None: the sidecar's.
        second_pass: Whether this is the second pass: its window must fit and is not made smaller.
    """

    def __init__(
        self,
        job: JobContext,
        memory: Memory,
        spec: LoadSpec,
        model: str | None,
        *,
        second_pass: bool = False,
    ) -> None:
        self._job = job
        self._memory = memory
        self._spec = spec
        self._model = model
        self._second_pass = second_pass
        self._open: OpenModel | None = None
        self._pressure: PressureHandler | None = None

    async def open(self) -> LoadedModel:
        """Load the model.

        Raises:
            JobError: it cannot be loaded; `ModelUnavailable` if only this model cannot.
            Stopping: the service stops.
        """
        job, sidecar, spec = self._job, self._job.sidecar, self._spec
        job.gate.open()
        steps = load_steps(spec, slots_too=job.backend.sets_slots, num_predict=sidecar.options.num_predict)
        sizes = LoadSizes((spec,) if self._second_pass else steps, job.clock)
        if not self._second_pass and (last := (await job.store.meta("load_sizes", {})).get(spec.model)):
            # The rest of a segment is asked in the window in which the segment was begun.
            sizes.start_at(*last)
        residency = ModelResidency(
            job.backend,
            sizes,
            gate=job.gate,
            progress=job.progress,
            memory=self._memory,
            clock=job.clock,
            stop=job.stop,
            must_fit=self._second_pass,
        )
        loaded = await load_model(residency, job.gate, job.progress)
        await self._note_size(residency.spec)
        primer = Primer(
            job.backend,
            residency.spec,
            # A thinking model may render another beginning than the one that is requested here.
            mode="never" if sidecar.think else sidecar.prime,
            sliding=loaded.sliding_window is not None,
            copies=loaded.copies_prefix,
            rows=await self._some_rows(),
        )
        shrink = job.planner.shrink if job.one_model else None
        self._open = OpenModel(
            residency,
            ModelObserver(job.backend, residency.spec, loaded, primer, job.progress, shrink),
            RequestTimeout(sidecar.timeout),
            defers=not self._second_pass and sidecar.long_rows == "second_pass",
        )
        residency.on_load = self._reloaded
        self._pressure = PressureHandler(
            residency,
            job.gate,
            self._memory,
            job.clock,
            releases=job.backend.releases,
            on_measured=self._measured,
        )
        await self._note_window(residency.spec, loaded)
        return loaded

    async def in_lanes(
        self, pieces: AsyncIterator[T] | Iterable[T], work: Callable[[Lane, T], Awaitable[None]]
    ) -> None:
        """Work on these pieces in all lanes at once, and adapt the model to the memory pressure meanwhile.

        Raises:
            JobError: the job cannot continue.
            Stopping: the service stops.
        """
        job, model, pressure = self._job, self._open, self._pressure
        assert model is not None, "open comes first"
        assert pressure is not None
        queue, taking = _each(pieces), asyncio.Lock()

        async def run(lane: Lane) -> None:
            with contextlib.suppress(Stopping, Abandoned):
                while not job.stop.is_set():
                    async with taking:
                        try:
                            piece = await anext(queue)
                        except StopAsyncIteration:
                            return
                    await work(lane, piece)

        async def handle_pressure() -> None:
            with contextlib.suppress(Stopping):
                await pressure.run()

        began, waited = job.clock.monotonic(), self._waited_s
        if model.residency.loaded is None:
            # Memory became critical with the last row of the previous phase.
            async with job.gate.hold(f"loading {self._spec.model} again"):
                await model.residency.load_until_done()
        ended: SpoolamaError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                handler = group.create_task(handle_pressure(), name="memory pressure")
                lanes = [
                    group.create_task(run(Lane(number, job, model)), name=f"lane {number}")
                    for number in range(max(1, self._spec.slots))
                ]
                await asyncio.wait(lanes)
                handler.cancel()
        except* SpoolamaError as several:
            # Raised below: before Python 3.11.4, raising here would wrap it in a group.
            ended = _first(several)
        finally:
            waiting = self._waited_s - waited
            await job.store.add("active_s", max(0.0, job.clock.monotonic() - began - waiting))
        if ended is not None:
            raise ended
        if job.stop.is_set():
            raise Stopping

    async def close(self) -> None:
        """Note for the metrics what was observed of the model."""
        if self._open is None:
            return
        spec, notes = self._spec, self._open.watch.notes()
        known = await self._job.store.meta("watch", [])
        note = {"model": spec.model, "num_ctx": spec.num_ctx, **notes}
        await self._job.store.note(watch=[*known, note])

    @property
    def _waited_s(self) -> float:
        return self._job.gate.waited_s + self._job.gate.held_s

    async def _reloaded(self, spec: LoadSpec, loaded: LoadedModel) -> None:
        """Record that the model was loaded again, possibly with another size."""
        assert self._open is not None
        self._open.watch.loaded(loaded, spec)
        await self._note_size(spec)
        await self._note_window(spec, loaded)

    async def _note_size(self, spec: LoadSpec) -> None:
        """Note the size with which a resume starts."""
        known = await self._job.store.meta("load_sizes", {})
        now = [spec.num_ctx, spec.slots]
        requested = [self._spec.num_ctx, self._spec.slots]
        if not self._second_pass and known.get(spec.model, requested) != now:
            await self._job.store.note(load_sizes={**known, spec.model: now})

    async def _note_window(self, spec: LoadSpec, loaded: LoadedModel) -> None:
        """Add a plan version if the window changed, since prompts depend on it."""
        if self._job.one_model and not self._second_pass:
            window = min(spec.num_ctx, loaded.num_ctx or spec.num_ctx)
            if window != (self._job.planner.latest.window or self._spec.num_ctx):
                await self._job.planner.shrink(window)

    async def _measured(self, load: dict[str, Any]) -> None:
        loads = await self._job.store.meta("loads", [])
        await self._job.store.note(loads=[*loads, load][-_MOST_LOADS:])

    async def _some_rows(self) -> list[tuple[Message, ...]]:
        """Return the own messages of a few rows, from which the primer derives what all prompts share."""
        job = self._job
        found: list[tuple[Message, ...]] = []
        memory = 0
        rows = await job.store.pending(0, 1 << 61, self._model, _EXAMPLES)
        for part in rows or await job.store.deferred(self._model, -1, _EXAMPLES):
            row = await completed(part, job.store)
            try:
                ask = await job.asker.ask(row.fields, row.line, row.request)
                found.append(ask.own)
                if (memory := memory + ask.memory) > PROMPT_BYTES:
                    break
            except RowError as error:
                if error.code == EVALUATION_LIMIT:
                    break  # a lane gives the row its error; more of them would end the job before that
        return found


async def _each(pieces: AsyncIterator[T] | Iterable[T]) -> AsyncIterator[T]:
    if isinstance(pieces, AsyncIterator):
        async for piece in pieces:
            yield piece
    else:
        for piece in pieces:
            yield piece


def _first(group: BaseExceptionGroup[SpoolamaError]) -> SpoolamaError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("an exception group is never empty")
