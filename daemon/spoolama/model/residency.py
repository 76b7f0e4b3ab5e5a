"""Loads a job's model when memory allows, unloads it at critical pressure, and loads it smaller if needed.

The KV cache is allocated when a model is loaded (`memory/estimate.py`), so neither fewer requests in flight
nor shorter conversations free memory. Only unloading the model frees memory, and loading it with a smaller
context window or fewer slots.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

from spoolama.backends.base import Backend, LoadedModel, LoadSpec
from spoolama.clock import Clock
from spoolama.errors import (
    BackendError,
    ConfigError,
    JobError,
    ModelUnavailable,
    OutOfMemory,
    RequestRefused,
    ServerDied,
    WrongServer,
)
from spoolama.memory.level import Level
from spoolama.memory.room import Memory
from spoolama.model.gate import FIRST_DELAY_S, LOAD_BOUND_S, LONGEST_DELAY_S, Gate, Stopping
from spoolama.model.load_sizes import OFTEN, LoadSizes
from spoolama.model.model_size import DESKTOP_BYTES, MeasuredSize
from spoolama.progress import Progress
from spoolama.stopping import Stop, until

WAIT_FOR_MEMORY_S = 600.0
"""Seconds that a load waits for free memory before a smaller one is tried."""
_LONGER = 6
"""Factor of `WAIT_FOR_MEMORY_S` if a smaller load would not help and rows would fail."""
_LAST_WAITS_S = (5.0, 15.0, 30.0, 60.0, 120.0)
"""Seconds between attempts of the smallest load."""
_LOOK_S = 60.0
_MOST_WAITS = 30
"""Maximum attempts, 2 min apart, of a load that worked before."""
_ANSWER_S = 120.0
"""Timeout in seconds for a backend to unload its models or to list what it holds."""
_AGAIN_S = 15.0


class ModelResidency:
    """Loads one model and adapts it to the available memory.

    Args:
        backend: The model server.
        sizes: The loads that may be tried.
        gate: Ensures that no request is in flight while the model is unloaded or replaced.
        progress: Shows what the job waits for.
        memory: The memory watchdog.
        clock: The clock.
        stop: Set when the service stops.
        must_fit: Give up a load that does not fit within the waiting time, instead of trying it anyway.
    """

    def __init__(
        self,
        backend: Backend,
        sizes: LoadSizes,
        *,
        gate: Gate,
        progress: Progress,
        memory: Memory,
        clock: Clock,
        stop: Stop,
        must_fit: bool = False,
    ) -> None:
        self._backend = backend
        self.sizes = sizes
        self._gate = gate
        self._progress = progress
        self._memory = memory
        self._clock = clock
        self._stop = stop
        self.measured = MeasuredSize(memory)
        self._must_fit = must_fit
        self._short: tuple[int, bool] = (-1, False)
        """Number of the load in which an answer last ran short, and whether a smaller one was left."""
        self.on_load: Callable[[LoadSpec, LoadedModel], Awaitable[None]] | None = None
        """Called after each load except the first, before rows continue."""
        self._in_force: LoadSpec | None = None
        """The load that serves the requests in flight."""
        self._unreleased: float | None = None
        """When unloading last failed; it is tried again."""
        self.loads = 0
        """Number of successful loads."""
        self.loaded: LoadedModel | None = None

    @property
    def spec(self) -> LoadSpec:
        """The current load settings."""
        return self.sizes.spec

    def would_fit(self, tokens: int) -> bool:
        """Whether a row of this length fits the requested context window but not the current one."""
        requested = self.sizes.requested.num_ctx
        return self.spec.num_ctx < requested and tokens < requested

    async def load(self) -> LoadedModel:
        """Load the model as soon as memory allows, and smaller if it runs out of memory.

        Raises:
            ModelUnavailable: even the smallest load runs out of memory.
            BackendError: it cannot be loaded now for another reason.
            Stopping: the service stops.
        """
        await self.measured.ask(self._backend, self.spec)
        waits = 0
        while True:
            if waits and self._stop.is_set():
                raise Stopping  # pauses end at once when stopping, which would use up the attempts
            await self._wait_for_room()
            if self._in_force != self.spec:
                await self._gate.drained()  # requests in flight need the loaded model
            if not await self._is_held():
                self.measured.before_load()
            try:
                with self._progress.pulse.wait(LOAD_BOUND_S), self._memory.loading():
                    self.loaded = await self._backend.load(self.spec)
            except OutOfMemory as error:
                self.loaded = None
                self.sizes.load_failed()
                if self._ran_short(f"the load ran out of memory: {error.message}"):
                    await self._gate.pause(1.0)
                    continue
                # The smallest load failed: other programs may use the memory, visibly or not. Retry a load
                # that worked before for up to an hour.
                most = _MOST_WAITS if self.loads else 0 if self._card_is_ours else len(_LAST_WAITS_S)
                most = min(most, 2) if self._must_fit else most  # its rows can be uploaded again
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
        """Whether other programs use little card memory (called while the model is not loaded)."""
        taken = self._memory.taken().cards_bytes
        return taken is not None and taken < 2 * DESKTOP_BYTES

    async def reload(self) -> None:
        """Load the model again after a server failure, unless it is still loaded."""
        loaded = await self.load()
        if self.on_load is not None:
            await self.on_load(self.spec, loaded)

    def ran_short(self, message: str) -> bool:
        """Record that an answer ran out of memory; returns whether a smaller load is left to try."""
        if self._short[0] != self.loads:  # count the failure of several lanes once
            self._short = (self.loads, self.sizes.can_shrink)
            self._ran_short(message)
        return self._short[1]

    def _ran_short(self, message: str) -> bool:
        """Count a shortage; returns whether to try again, with this load or the next smaller one."""
        self._memory.did("out_of_memory", error=message, **self.figures())
        often = self.sizes.shortage()
        return not often or self._shrink("the model ran out of memory")

    def _lost(self, message: str, fix: str = "", code: str = OutOfMemory.code) -> ModelUnavailable:
        if not fix:
            fix = "Free memory on the server, or use a smaller model or num_ctx."
            fix = f"{self.measured.shortage(self.sizes.requested)} {fix}".strip()
        return ModelUnavailable(message, fix=fix, code=code)

    def _shrink(self, why: str) -> bool:
        """Select the next smaller load; False if there is none."""
        if not self.sizes.shrink():
            return False
        self._memory.did("smaller_load", why=why, **self.figures())
        return True

    # Waiting for memory.

    async def _wait_for_room(self) -> None:
        """Wait until the load fits; after too long a wait select a smaller load, and finally try it anyway.

        Raises:
            ModelUnavailable: it must fit, but memory is not available.
            Stopping: the service stops.
        """
        if await self._fits_now():
            return
        before = self._progress.phase
        began = self._clock.monotonic()
        most_s = WAIT_FOR_MEMORY_S * (_LONGER if self._must_fit else 1)
        await self._release_others()
        try:
            while not self._stop.is_set():
                if await self._fits_now():
                    return
                room, level = self._memory.room(self.measured.need(self.spec)), self._memory.level
                why = room.why if level is Level.OK else self._memory.words
                if (room.fits or not room.ever) and (wait_s := self.sizes.wait_s):
                    began = self._clock.monotonic()  # this wait does not count as waiting for memory
                    times = self.sizes.unloads
                    why = f"critical {times} times in an hour, the next load starts in {wait_s:.0f} s"
                elif level is Level.OK and not room.ever:
                    if self._must_fit:
                        raise self._lost(f"{self.spec.model} is larger than memory: {why}")
                    # Try it anyway: the estimate may be wrong, or the server may put a part on the CPU.
                    self._memory.did("loaded_in_spite", why=why, **self.figures())
                    return
                elif self._clock.monotonic() - began >= most_s and level < Level.CRITICAL:
                    if self._must_fit and not room.fits:
                        raise self._lost(f"no memory for {most_s / 60:.0f} min: {why}")
                    if not room.fits and self._shrink(
                        f"no memory for {WAIT_FOR_MEMORY_S / 60:.0f} min: {why}"
                    ):
                        began = self._clock.monotonic()
                    elif room.fits or not room.ever or room.lacks_bytes <= DESKTOP_BYTES:
                        # A shortage of up to 1 GB can be a desktop, which stays; larger programs will end.
                        self._memory.did("loaded_in_spite", why=why, **self.figures())
                        return
                self._progress.waiting, self._progress.phase = True, f"waiting for memory: {why}"
                await self._release_again()
                await self.look()
            raise Stopping
        finally:
            self._progress.waiting, self._progress.phase = False, before

    async def _fits_now(self) -> bool:
        """Whether to try the load now: memory is ok, it fits, and it was not unloaded too often recently."""
        fits = self._memory.room(self.measured.need(self.spec)).fits
        if self._memory.level is Level.OK and fits and not self.sizes.wait_s:
            return True
        if not self._backend.releases and self.measured.need(self.spec) is None:
            return True  # such a server always keeps its model loaded
        # A model that could not be unloaded is still loaded and may be the cause of the pressure.
        return self._unreleased is None and await self._is_held()

    async def _is_held(self) -> bool:
        """Whether the server holds the model with at least this window, so that a load needs no memory."""
        try:
            with self._progress.pulse.wait(_ANSWER_S):
                now = await self._backend.inspect(self.spec)
        except BackendError:
            return False
        return now is not None and (now.num_ctx is None or now.num_ctx >= self.spec.num_ctx)

    async def look(self) -> None:
        """Wait for the next memory reading or for the stop of the service."""
        with self._progress.pulse.wait(_LOOK_S):
            await until(self._memory.looked(), self._stop)

    # Used by `model/pressure.py` while the job runs.

    async def unload_for_memory(self) -> None:
        """Unload the model because memory is critical; if that happens often, the next load is smaller."""
        alone = self.measured.fills_alone(self.spec)
        await self.unload()
        self.sizes.unloaded()
        if alone:
            self._shrink("the model by itself made memory critical")
        elif self.sizes.unloaded_often:
            self._shrink(f"memory became critical {OFTEN} times in an hour")

    def can_enlarge(self) -> bool:
        """Whether the next larger load fits instead of this one."""
        larger = self.sizes.larger
        if larger is None or self._memory.level is not Level.OK:
            return False
        return self.sizes.may_enlarge() and self.measured.would_fit(larger, self.spec)

    @property
    def spilled(self) -> bool:
        """Whether the server keeps a part of the model in main memory, because the cards are full."""
        model = self.loaded
        if model is None or not model.size_bytes or model.vram_bytes is None:
            return False
        return 0 < model.vram_bytes < model.size_bytes

    async def load_until_done(self) -> None:
        """Load the model while the gate is closed; retries with growing delays if the server is away or busy.

        Raises:
            ModelUnavailable: the model cannot be loaded again.
            Stopping: the service stops.
        """
        delay, deaths = FIRST_DELAY_S, 0
        while not self._stop.is_set():
            try:
                await self.reload()
                return
            except RequestRefused as error:
                message = f"{self.spec.model} cannot be loaded again: {error.message}"
                raise self._lost(message, error.fix, error.code) from error
            except BackendError as error:
                deaths += isinstance(error, ServerDied)
                if deaths >= _MOST_WAITS:
                    message = f"{self.spec.model} cannot be loaded again: {error.message}"
                    raise self._lost(message, code=error.code) from error
                self._progress.phase = f"waiting for the server: {error.message}"
                await self._gate.pause(delay)
                delay = min(LONGEST_DELAY_S, delay * 2)
        raise Stopping

    async def unload(self) -> None:
        """Unload the model. If the server does not answer, the next load reports it."""
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
        """Retry an unload that failed: waiting for memory that our own model occupies would never end."""
        if self._unreleased is not None and self._clock.monotonic() - self._unreleased >= _AGAIN_S:
            await self.unload()

    async def _release_others(self) -> None:
        """Unload models of this service before the first load, including those of a killed process."""
        left = None
        if not self.loads:
            with contextlib.suppress(BackendError), self._progress.pulse.wait(_ANSWER_S):
                left = await self._backend.inspect(self.spec)
        name = self.spec.model
        await self.release_idle(name if self.loads else None, also=name if left is not None else None)

    async def release_idle(self, keep: str | None, *, also: str | None = None) -> None:
        """Unload other models that this service loaded."""
        try:
            with self._progress.pulse.wait(_ANSWER_S):
                names = await self._backend.release(keep=keep, also=also)
        except BackendError:
            return
        if names:
            self._memory.did("idle_released", models=", ".join(names))

    def figures(self) -> dict[str, object]:
        """Return the current load for the log and the metrics."""
        return {"model": self.spec.model, "num_ctx": self.spec.num_ctx, "slots": self.spec.slots}


_DEATHS = 5
"""Maximum deaths of the model process during the load; then the model does not fit or is damaged."""


async def load_model(residency: ModelResidency, gate: Gate, progress: Progress) -> LoadedModel:
    """Load the model.

    Raises:
        JobError: the model cannot be loaded; the error has instructions to fix it.
        ConfigError: the server is of another kind than the settings say.
        Stopping: the service stops.
    """
    name = residency.spec.model
    progress.phase = f"loading {name}"
    loaded: list[LoadedModel] = []

    async def attempt() -> None:
        loaded.append(await residency.load())

    try:
        try:
            with progress.pulse.wait(LOAD_BOUND_S):
                await attempt()
        except RequestRefused:
            raise
        except BackendError as error:
            await gate.recover(error.message, attempt, max_deaths=_DEATHS)
    except WrongServer as error:
        raise ConfigError(f"{error.message}. {error.fix}") from error
    except RequestRefused as error:
        raise JobError(error.message, fix=error.fix, code=error.code) from error
    except BackendError as error:
        raise JobError(
            f"{name} cannot be loaded: {error.message}",
            fix="Free memory on the server, or use a smaller model or a smaller num_ctx.",
            code=error.code,
        ) from error
    if not loaded:
        raise Stopping
    return loaded[-1]
