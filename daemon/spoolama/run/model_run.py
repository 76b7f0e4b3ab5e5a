"""One model of a job: loaded, kept as memory allows, and worked at by all lanes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from spoolama.answer.byte_budget import ByteBudget
from spoolama.answer.lane import Lane
from spoolama.answer.planner import Planner
from spoolama.answer.row_counts import RowCounts
from spoolama.answer.shared import Shared
from spoolama.answer.store import RowStore, completed
from spoolama.backends.base import Backend, LoadedModel, LoadSpec, Message
from spoolama.clock import Clock
from spoolama.compare.audit import AuditBudget
from spoolama.context.turns import Turns
from spoolama.errors import RowError, SpoolamaError
from spoolama.evaluation.asking import Asker
from spoolama.evaluation.base import Abandoned
from spoolama.evaluation.evaluator import EVALUATION_LIMIT, JobEvaluator
from spoolama.job.sidecar import Sidecar
from spoolama.memory.room import Memory
from spoolama.model.gate import Gate, RequestTimeout, Stopping
from spoolama.model.load_sizes import ladder
from spoolama.model.pressure import PressureHandler
from spoolama.model.primer import Primer
from spoolama.model.residency import ModelResidency, load_model
from spoolama.model.surprises import Surprises
from spoolama.model.watch import Watch
from spoolama.progress import Progress
from spoolama.stopping import Stop

__all__ = ["ModelRun", "Terms"]

_ROW_BYTES, _FREE_ROW = 1024 * 1024, 16 * 1024
"""Of large rows in work at once, and what is not large. A row exists several times over while it is asked."""
_PROMPT_BYTES, _FREE_PROMPT = 4 * 1024 * 1024, 64 * 1024
"""Of long prompts in work at once, and what is not long: at 4 bytes a token, a card of 16 GB has no room for
the context of more than these at once."""
_MOST_RENDERING = 16
"""Rows that are rendered at once: before that it is not known how long their prompts are."""
_EXAMPLES = 16
"""Rows by which the shared beginning of prompts is found."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What all models of a job have in common."""

    sidecar: Sidecar
    openai: bool
    store: RowStore
    backend: Backend
    memory: Memory
    clock: Clock
    progress: Progress
    stop: Stop
    gate: Gate
    asker: Asker
    evaluator: JobEvaluator
    turns: Turns
    planner: Planner
    tally: RowCounts
    one_model: bool
    """Whether the job's own model is the only one."""
    audit: AuditBudget
    """What the audit may ask."""


class ModelRun:
    """A model from its load to the last row that wants it.

    Args:
        terms: What all models of the job have in common.
        spec: The load that is asked for.
        model: What rows call it; None: the job's own.
        defers: Whether rows too long for the window are left for the second pass.
        long: Whether this is the second pass: its window is not made smaller, and must fit.
    """

    def __init__(
        self, terms: Terms, spec: LoadSpec, model: str | None, *, defers: bool, long: bool = False
    ) -> None:
        self._t = terms
        self._spec = spec
        self._model = model
        self._defers = defers
        self._long = long
        self._shared: Shared | None = None
        self._keeper: PressureHandler | None = None

    async def open(self) -> LoadedModel:
        """Load the model.

        Raises:
            JobError: it cannot be had; `ModelLost` where only this model cannot.
            Stopping: the service stops.
        """
        t = self._t
        t.gate.open()
        slots_too = t.backend.kind == "embedded"
        rungs = ladder(self._spec, slots_too=slots_too, num_predict=t.sidecar.options.num_predict)
        residency = ModelResidency(
            t.backend,
            (self._spec,) if self._long else rungs,
            gate=t.gate,
            progress=t.progress,
            memory=t.memory,
            clock=t.clock,
            stop=t.stop,
            must_fit=self._long,
        )
        if not self._long and (last := (await t.store.meta("load_sizes", {})).get(self._spec.model)):
            # The rest of a segment is asked in the window in which it was begun.
            residency.begin_at(*last)
        loaded = await load_model(residency, t.gate, t.progress)
        await self._note_rung(residency.spec)
        self._shared = await self._share(residency, loaded)
        residency.on_load = self._reloaded
        self._keeper = PressureHandler(
            residency, t.gate, t.memory, t.clock, releases=t.backend.releases, on_measured=self._measured
        )
        await self._new_window(residency.spec, loaded)
        return loaded

    async def in_lanes(self, work: Callable[[Lane], Awaitable[None]]) -> None:
        """Run this in every lane at once, and keep the model meanwhile.

        Raises:
            JobError: the job cannot go on.
            Stopping: the service stops.
        """
        t, shared, keeper = self._t, self._shared, self._keeper
        assert shared is not None, "open comes first"
        assert keeper is not None

        async def run(lane: Lane) -> None:
            with contextlib.suppress(Stopping, Abandoned):
                await work(lane)

        async def keep() -> None:
            with contextlib.suppress(Stopping):
                await keeper.run()

        began, waited = t.clock.monotonic(), self._waited_s
        if shared.residency.loaded is None:
            # Memory became critical with the last row of the phase before this one.
            async with t.gate.hold(f"loading {self._spec.model} again"):
                await shared.residency.load_patiently()
        ended: SpoolamaError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                kept = group.create_task(keep(), name="memory keeper")
                lanes = [
                    group.create_task(run(Lane(number, shared)), name=f"lane {number}")
                    for number in range(max(1, self._spec.slots))
                ]
                await asyncio.wait(lanes)
                kept.cancel()
        except* SpoolamaError as several:
            # Raised below: before Python 3.11.4 what is raised here would come out wrapped in a group.
            ended = _first(several)
        finally:
            waiting = self._waited_s - waited
            await t.store.add("active_s", max(0.0, t.clock.monotonic() - began - waiting))
        if ended is not None:
            raise ended
        if t.stop.is_set():
            raise Stopping

    async def close(self) -> None:
        """Note what was seen of the model."""
        if self._shared is None:
            return
        spec = self._spec
        notes = await self._t.store.meta("watch", [])
        seen: dict[str, Any] = self._shared.watch.notes()
        await self._t.store.note(watch=[*notes, {"model": spec.model, "num_ctx": spec.num_ctx, **seen}])

    @property
    def _waited_s(self) -> float:
        return self._t.gate.waited_s + self._t.gate.held_s

    async def _reloaded(self, spec: LoadSpec, loaded: LoadedModel) -> None:
        """The model was loaded again, perhaps on other terms."""
        assert self._shared is not None
        self._shared.watch.loaded(loaded, spec)
        await self._note_rung(spec)
        await self._new_window(spec, loaded)

    async def _note_rung(self, spec: LoadSpec) -> None:
        """Where a resume begins."""
        known = await self._t.store.meta("load_sizes", {})
        now = [spec.num_ctx, spec.slots]
        asked = [self._spec.num_ctx, self._spec.slots]
        if not self._long and known.get(spec.model, asked) != now:
            await self._t.store.note(load_sizes={**known, spec.model: now})

    async def _new_window(self, spec: LoadSpec, loaded: LoadedModel) -> None:
        """What rows are asked follows from the plan, so a window that changes is one of its versions."""
        if self._t.one_model and not self._long:
            window = min(spec.num_ctx, loaded.num_ctx or spec.num_ctx)
            if window != (self._t.planner.latest.window or self._spec.num_ctx):
                await self._t.planner.shrink(window)

    async def _measured(self, load: dict[str, Any]) -> None:
        loads = await self._t.store.meta("loads", [])
        await self._t.store.note(loads=[*loads, load][-_EXAMPLES:])

    async def _share(self, residency: ModelResidency, loaded: LoadedModel) -> Shared:
        """What the lanes have in common while this model is loaded."""
        t, sidecar = self._t, self._t.sidecar
        primer = Primer(
            t.backend,
            residency.spec,
            # A thinking model may render another beginning than the one that is asked for here.
            mode="never" if sidecar.think else sidecar.prime,
            sliding=loaded.sliding_window is not None,
            copies=loaded.copies_prefix,
            rows=await self._some_rows(),
        )
        surprises = Surprises(t.backend, residency.spec, loaded)
        shrink = t.planner.shrink if t.one_model else None
        return Shared(
            store=t.store,
            backend=t.backend,
            residency=residency,
            asker=t.asker,
            evaluator=t.evaluator,
            rows_in_work=ByteBudget(_ROW_BYTES, _FREE_ROW),
            prompts_in_work=ByteBudget(_PROMPT_BYTES, _FREE_PROMPT),
            rendering=asyncio.Semaphore(_MOST_RENDERING),
            gate=t.gate,
            request_timeout=RequestTimeout(sidecar.timeout),
            progress=t.progress,
            tally=t.tally,
            clock=t.clock,
            retries=sidecar.retries,
            turns=t.turns,
            watch=Watch(surprises, primer, t.progress, shrink),
            row_ended=t.planner.moved,
            defers=self._defers,
            repair_temperature=sidecar.repair.temperature,
            refusal_ends_job=not t.openai,
        )

    async def _some_rows(self) -> list[tuple[Message, ...]]:
        """Own messages of a few rows, by which the primer finds what all of them share."""
        t = self._t
        found: list[tuple[Message, ...]] = []
        memory = 0
        rows = await t.store.pending(0, 1 << 61, self._model, _EXAMPLES)
        for part in rows or await t.store.deferred(self._model, -1, _EXAMPLES):
            row = await completed(part, t.store)
            try:
                ask = await t.asker.ask(row.fields, row.line)
                found.append(ask.own)
                if (memory := memory + ask.memory) > _PROMPT_BYTES:
                    break
            except RowError as error:
                if error.code == EVALUATION_LIMIT:
                    break  # a lane gives the row its error; more of them would end the job before that
        return found


def _first(group: BaseExceptionGroup[SpoolamaError]) -> SpoolamaError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("an exception group is never empty")
