"""Runs a task next to the lanes that unloads and reloads the model as memory pressure changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from spoolama.clock import Clock
from spoolama.memory.level import Level
from spoolama.memory.room import Memory
from spoolama.model.gate import Gate
from spoolama.model.residency import ModelResidency

CALM_S = 900.0
"""Seconds for which memory must be ok before a model that was loaded smaller is loaded larger again."""
_MEASURED_AFTER = 3
"""Number of looks after a load until the reading includes the loaded model."""

_SEEN_AFTER = 2
"""Number of looks after an unload; a reading may be 1 s old when it is used."""


class PressureHandler:
    """Adapts a loaded model to the memory pressure.

    - *high*: other models that we loaded are unloaded; loads wait (`ModelResidency`).
    - *critical*: no new rows start, requests in flight finish, and the model is unloaded. It is loaded again
      when memory allows; smaller, if the model by itself filled the card. Rows continue if unloading would
      not help: we must not unload the model, it fills the card by itself and no smaller load is left, or a
      smaller load would also fill the card.
    - *ok for a long time*: a model that was loaded smaller is loaded one step larger.

    Args:
        residency: The model.
        gate: The gate to the server.
        memory: The memory watchdog.
        clock: The clock.
        releases: Whether we may unload the model.
        on_measured: Called with the sizes of each load, some looks after it.
    """

    def __init__(
        self,
        residency: ModelResidency,
        gate: Gate,
        memory: Memory,
        clock: Clock,
        *,
        releases: bool,
        on_measured: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        self._residency = residency
        self._gate = gate
        self._memory = memory
        self._clock = clock
        self._releases = releases
        self._on_measured = on_measured
        self._calm_since = clock.monotonic()
        self._idle_released = False
        self._said = False
        self._load, self._looks = -1, 0

    async def run(self) -> None:
        """Adapt the model until cancelled.

        Raises:
            JobError: the model cannot be loaded again.
            Stopping: the service stops while the model is unloaded.
        """
        while True:
            await self._memory.looked()
            await self._measure()
            level = self._memory.level
            if level is not Level.OK:
                self._calm_since = self._clock.monotonic()
            if level is Level.CRITICAL and self._residency.loaded is not None and self._helps():
                await self._relieve()
                self._calm_since = self._clock.monotonic()  # there were no looks while it was unloaded
            elif level is Level.HIGH and not self._idle_released:
                self._idle_released = True
                await self._residency.release_idle(self._residency.spec.model)
            elif level is Level.OK:
                self._idle_released = False
                if self._clock.monotonic() - self._calm_since >= CALM_S:
                    await self._enlarge()

    def _helps(self) -> bool:
        """Whether unloading the model would free memory lastingly; if not, logs the reason once."""
        residency, measured = self._residency, self._residency.measured
        alone = measured.fills_alone(residency.spec)
        if not self._releases:
            why = "spoolama does not unload models of this server"
        elif measured.leaves_hardly_any(residency.spec) and alone and not residency.sizes.can_shrink:
            why = "the model by itself needs this memory, and no smaller load is possible"
        elif (
            self._memory.where == "host" and not residency.sizes.can_shrink and residency.sizes.unloaded_often
        ):
            why = "unloading the model did not help for long, and no smaller load is possible"
        elif alone and residency.spilled:
            why = "a part of the model is in main memory, so a smaller load would also fill the GPU"
        else:
            return True
        if not self._said:
            self._said = True
            self._memory.did("left_as_it_is", why=why, **self._residency.figures())
        return False

    async def _measure(self) -> None:
        if self._residency.loads != self._load:
            self._load, self._looks = self._residency.loads, 0
        self._looks += 1
        residency = self._residency
        if self._looks == _MEASURED_AFTER and residency.loaded is not None:
            await self._on_measured(residency.measured.measure(residency.spec, residency.loaded))

    async def _relieve(self) -> None:
        residency, memory = self._residency, self._memory
        async with self._gate.hold(f"memory is critical ({memory.words}): finishing requests in flight"):
            if memory.level is not Level.CRITICAL:
                return  # the pressure is gone
            memory.did("paused", **residency.figures())
            await residency.unload_for_memory()
            await residency.load_until_done()
            memory.did("resumed", **residency.figures())

    async def _enlarge(self) -> None:
        self._calm_since = self._clock.monotonic()
        if not self._residency.can_enlarge():
            return
        async with self._gate.hold(f"loading {self._residency.spec.model} larger again"):
            if not self._residency.can_enlarge():
                return  # memory changed while requests finished
            await self._residency.unload()
            for _ in range(_SEEN_AFTER):
                await self._residency.look()
            self._residency.sizes.enlarge()
            larger = self._residency.spec
            await self._residency.load_until_done()
            if self._residency.spec == larger:
                self._memory.did("larger_load", **self._residency.figures())
