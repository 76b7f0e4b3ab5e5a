"""The model that a job holds: loaded when there is room, released when memory is critical, loaded smaller
where it does not fit.

Keys and values are allocated when a model is loaded (`gpu/estimate.py`), so neither fewer rows in flight nor
shorter conversations free anything. What frees memory is to release the model, and to load it with a smaller
window or with fewer slots.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence

from spoolama.backends.base import Backend, LoadedModel, LoadSpec
from spoolama.clock import Clock
from spoolama.engine.footprint import DESKTOP_BYTES, Footprint
from spoolama.engine.gate import LOAD_BOUND_S, Gate, Stopping
from spoolama.engine.progress import Progress
from spoolama.engine.rungs import OFTEN, Rungs
from spoolama.engine.store import Stop
from spoolama.engine.waiting import until
from spoolama.errors import BackendError, ModelLost, OutOfMemory, RequestRefused, ServerDied
from spoolama.gpu.level import Level
from spoolama.gpu.room import Memory

__all__ = ["PATIENCE_S", "Holder"]

PATIENCE_S = 600.0
"""So long a load waits for room; then a smaller one is tried."""
_LONGER = 6
"""So many times as long where no smaller load would do, and rows would fail."""
_LAST_WAITS_S = (5.0, 15.0, 30.0, 60.0, 120.0)
"""Between tries of the smallest load."""
_LOOK_S = 60.0
_MOST_WAITS = 30
"""Tries, two minutes apart, of a load that worked before."""
_ANSWER_S = 120.0
"""What a backend may take to release its models, or to say what it holds."""
_AGAIN_S = 15.0


class Holder:
    """Loads one model, and keeps it as memory allows.

    Args:
        backend: The model server.
        rungs: Loads from the one asked for down to the smallest; see `engine/ladder.py`.
        gate: Nothing is in flight while the model is released or exchanged.
        progress: Where to say what it waits for.
        memory: The watchdog.
        clock: Time.
        stop: A wish to stop.
        must_fit: A load for which there is no room in `PATIENCE_S` is given up instead of tried all the same.
    """

    def __init__(
        self,
        backend: Backend,
        rungs: Sequence[LoadSpec],
        *,
        gate: Gate,
        progress: Progress,
        memory: Memory,
        clock: Clock,
        stop: Stop,
        must_fit: bool = False,
    ) -> None:
        self._backend = backend
        self._rungs = Rungs(rungs)
        self._gate = gate
        self._progress = progress
        self._memory = memory
        self._clock = clock
        self._stop = stop
        self.footprint = Footprint(memory)
        self._must_fit = must_fit
        self._short: tuple[int, bool] = (-1, False)
        """The load at which answers did last, and whether a smaller one was left then."""
        self.on_load: Callable[[LoadSpec, LoadedModel], Awaitable[None]] | None = None
        """Called after each load but the first, before rows go on."""
        self._in_force: LoadSpec | None = None
        """The load that rows in flight may be answered by."""
        self._unreleased: float | None = None
        """When a release last failed; it is tried again."""
        self.loads = 0
        """Loads that worked."""
        self.loaded: LoadedModel | None = None

    @property
    def spec(self) -> LoadSpec:
        """The load that is in force."""
        return self._rungs.spec

    @property
    def smaller(self) -> bool:
        """Whether it is smaller than what was asked for."""
        return self._rungs.larger is not None

    @property
    def can_shrink(self) -> bool:
        """Whether a smaller load is left to be tried."""
        return self._rungs.can_shrink

    def begin_at(self, num_ctx: int, slots: int) -> None:
        """Begin with the load that an earlier run of the job ended with; one that is not known is ignored."""
        self._rungs.begin_at(num_ctx, slots)

    def would_fit(self, tokens: int) -> bool:
        """Whether a row of this length fits the window that was asked for, though not the one in force."""
        asked = self._rungs.asked.num_ctx
        return self.spec.num_ctx < asked and tokens < asked

    async def load(self) -> LoadedModel:
        """Load the model as soon as there is room, smaller where it runs out of memory.

        Raises:
            ModelLost: even the smallest load does.
            BackendError: it cannot be loaded now for another reason.
            Stopping: the service stops.
        """
        await self.footprint.ask(self._backend, self.spec)
        waits = 0
        while True:
            if waits and self._stop.is_set():
                raise Stopping  # a pause ends at once then, and the tries would be used up
            await self._wait_for_room()
            if self._in_force != self.spec:
                await self._gate.drained()  # rows in flight would lose the model that they are answered by
            if not await self._is_held():
                self.footprint.before_load()
            try:
                with self._progress.pulse.wait(LOAD_BOUND_S), self._memory.loading():
                    self.loaded = await self._backend.load(self.spec)
            except OutOfMemory as error:
                self.loaded = None
                self._rungs.failed(self._clock.monotonic())
                if self._ran_short(f"the load ran out of memory: {error.message}"):
                    await self._gate.pause(1.0)
                    continue
                # The smallest load: others may have what it lacks, seen or not. One that worked before will
                # again, unless an hour says otherwise.
                most = _MOST_WAITS if self.loads else 0 if self._card_is_ours else len(_LAST_WAITS_S)
                most = min(most, 2) if self._must_fit else most  # its rows can be dropped again
                if waits >= most:
                    raise self._lost(f"{self.spec.model} does not fit: {error.message}") from error
                await self._gate.pause(_LAST_WAITS_S[min(waits, len(_LAST_WAITS_S) - 1)])
                waits += 1
                continue
            self._gate.narrow(self.spec.slots)
            self._in_force = self.spec
            self.loads += 1
            return self.loaded

    @property
    def _card_is_ours(self) -> bool:
        """Whether hardly anybody else has memory on the cards, while the model has none."""
        taken = self._memory.taken().cards_bytes
        return taken is not None and taken < 2 * DESKTOP_BYTES

    async def reload(self) -> None:
        """Load the model again after it died or was away, or see that it is still there."""
        loaded = await self.load()
        if self.on_load is not None:
            await self.on_load(self.spec, loaded)

    def ran_short(self, message: str) -> bool:
        """An answer ran out of memory; whether a smaller load is left to be tried, now or next time."""
        if self._short[0] != self.loads:  # several lanes that met the same end are one shortage
            self._short = (self.loads, self.can_shrink)
            self._ran_short(message)
        return self._short[1]

    def _ran_short(self, message: str) -> bool:
        """Count it; whether to try again, on this rung or on the next."""
        self._memory.did("out_of_memory", error=message, **self.figures())
        often = self._rungs.short(self._clock.monotonic())
        return not often or self.descend("it ran out of memory")

    def _lost(self, message: str, mend: str = "", code: str = OutOfMemory.code) -> ModelLost:
        if not mend:
            mend = "Free memory on the server, or take a smaller model or num_ctx."
            mend = f"{self.footprint.shortage(self._rungs.asked)} {mend}".strip()
        return ModelLost(message, mend=mend, code=code)

    def descend(self, why: str) -> bool:
        """The next smaller load is the next one; False: there is none."""
        if not self._rungs.down():
            return False
        self._memory.did("smaller_load", why=why, **self.figures())
        return True

    # Room.

    async def _wait_for_room(self) -> None:
        """Until the load fits; what waits too long is loaded smaller, and in the end as it is.

        Raises:
            ModelLost: it must fit, and there is no room.
            Stopping: the service stops.
        """
        if await self._fits_now():
            return
        before = self._progress.phase
        began = self._clock.monotonic()
        patience_s = PATIENCE_S * (_LONGER if self._must_fit else 1)
        await self._release_others()
        try:
            while not self._stop.is_set():
                if await self._fits_now():
                    return
                room, level = self._memory.room(self.footprint.need(self.spec)), self._memory.level
                why = room.why if level is Level.OK else self._memory.words
                if (room.fits or not room.ever) and (paced := self._rungs.paced(self._clock.monotonic())):
                    began = self._clock.monotonic()  # patience is for want of room
                    times = self._rungs.releases(began)
                    why = f"critical {times} times in an hour, the next load comes in {paced:.0f} s"
                elif level is Level.OK and not room.ever:
                    if self._must_fit:
                        raise self._lost(f"{self.spec.model} is larger than memory: {why}")
                    # An estimate may be wrong, and a server may put a part on the CPU: it is tried.
                    self._memory.did("loaded_in_spite", why=why, **self.figures())
                    return
                elif self._clock.monotonic() - began >= patience_s and level < Level.CRITICAL:
                    if self._must_fit and not room.fits:
                        raise self._lost(f"no room for {patience_s / 60:.0f} minutes: {why}")
                    if not room.fits and self.descend(f"no room for {PATIENCE_S / 60:.0f} minutes: {why}"):
                        began = self._clock.monotonic()
                    elif room.fits or not room.ever or room.lacks_bytes <= DESKTOP_BYTES:
                        # Else others have it, and they will go; a desktop may not.
                        self._memory.did("loaded_in_spite", why=why, **self.figures())
                        return
                self._progress.waiting, self._progress.phase = True, f"waiting for memory: {why}"
                await self._release_again()
                await self.look()
            raise Stopping
        finally:
            self._progress.waiting, self._progress.phase = False, before

    async def _fits_now(self) -> bool:
        """Whether the load may be tried: memory is ok, it fits, and it was not released too often lately."""
        fits = self._memory.room(self.footprint.need(self.spec)).fits
        paced = self._rungs.paced(self._clock.monotonic())
        if self._memory.level is Level.OK and fits and not paced:
            return True
        if not self._backend.releases and self.footprint.need(self.spec) is None:
            return True  # a server that holds its model whatever we do
        # One that could not be released is still there, and is what makes memory tense.
        return self._unreleased is None and await self._is_held()

    async def _is_held(self) -> bool:
        """Whether the server holds the model, with this window or a larger one: a load takes nothing more."""
        try:
            with self._progress.pulse.wait(_ANSWER_S):
                now = await self._backend.inspect(self.spec)
        except BackendError:
            return False
        return now is not None and (now.num_ctx is None or now.num_ctx >= self.spec.num_ctx)

    async def look(self) -> None:
        """Wait for the next look at memory, or for a wish to stop."""
        with self._progress.pulse.wait(_LOOK_S):
            await until(self._memory.looked(), self._stop)

    # For whoever keeps it while the job runs (`engine/keeper.py`).

    async def let_go_for_memory(self) -> None:
        """Release the model since memory is critical; where that comes often, the next load is smaller."""
        alone = self.footprint.fills_alone(self.spec)
        await self.let_go()
        self._rungs.released(self._clock.monotonic())
        if alone:
            self.descend("the model alone made memory critical")
        elif self.released_often:
            self.descend(f"memory became critical {OFTEN} times in an hour")

    @property
    def released_often(self) -> bool:
        """Whether this very load was released for want of memory often in the last hour."""
        return self._rungs.released_often(self._clock.monotonic())

    def could_climb(self) -> bool:
        """Whether the next larger load fits in place of this one."""
        larger = self._rungs.larger
        if larger is None or self._memory.level is not Level.OK:
            return False
        return self._rungs.may_climb(self._clock.monotonic()) and self.footprint.would_fit(larger, self.spec)

    @property
    def spilled(self) -> bool:
        """Whether the server keeps a part in main memory: then it has filled the cards as far as it does."""
        model = self.loaded
        if model is None or not model.size_bytes or model.vram_bytes is None:
            return False
        return 0 < model.vram_bytes < model.size_bytes

    def climb(self) -> None:
        """The next load is one rung larger."""
        self._rungs.up()

    async def load_patiently(self) -> None:
        """Load, with the door closed; a server that is away or busy is tried again at growing distances.

        Raises:
            ModelLost: the model cannot be had any more.
            Stopping: the service stops.
        """
        delay, deaths = 1.0, 0
        while not self._stop.is_set():
            try:
                await self.reload()
                return
            except RequestRefused as error:
                message = f"{self.spec.model} cannot be loaded again: {error.message}"
                raise self._lost(message, error.mend, error.code) from error
            except BackendError as error:
                deaths += isinstance(error, ServerDied)
                if deaths >= _MOST_WAITS:
                    message = f"{self.spec.model} cannot be loaded again: {error.message}"
                    raise self._lost(message, code=error.code) from error
                self._progress.phase = f"waiting for the server: {error.message}"
                await self._gate.pause(delay)
                delay = min(30.0, delay * 2)
        raise Stopping

    async def let_go(self) -> None:
        """Release the model. A server that does not answer has other troubles, and tells at the next load."""
        self.loaded = None
        try:
            with self._progress.pulse.wait(_ANSWER_S):
                await self._backend.release()
        except BackendError as error:
            self._unreleased = self._clock.monotonic()
            self._memory.did("release_failed", error=error.message)
        else:
            self._unreleased = None
            self._memory.did("released", **self.figures())

    async def _release_again(self) -> None:
        """A release that failed is tried again: to wait for room beside our own model would be for ever."""
        if self._unreleased is not None and self._clock.monotonic() - self._unreleased >= _AGAIN_S:
            await self.let_go()

    async def _release_others(self) -> None:
        """What this service may have in memory before the first load, also from before it was killed."""
        left = None
        if not self.loads:
            with contextlib.suppress(BackendError), self._progress.pulse.wait(_ANSWER_S):
                left = await self._backend.inspect(self.spec)
        name = self.spec.model
        await self.release_idle(name if self.loads else None, also=name if left is not None else None)

    async def release_idle(self, keep: str | None, *, also: str | None = None) -> None:
        """Other models that were loaded from here."""
        try:
            with self._progress.pulse.wait(_ANSWER_S):
                names = await self._backend.release(keep=keep, also=also)
        except BackendError:
            return
        if names:
            self._memory.did("idle_released", models=", ".join(names))

    def figures(self) -> dict[str, object]:
        """The load in force, for the log and the metrics."""
        return {"model": self.spec.model, "num_ctx": self.spec.num_ctx, "slots": self.spec.slots}
