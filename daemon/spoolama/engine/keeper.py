"""The task beside the lanes that acts on what memory comes to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from spoolama.clock import Clock
from spoolama.engine.gate import Gate
from spoolama.engine.holder import Holder
from spoolama.gpu.level import Level
from spoolama.gpu.room import Memory

__all__ = ["CALM_S", "Keeper"]

CALM_S = 900.0
"""So long memory must be ok before a model that was loaded smaller is loaded larger again."""
_MEASURED_AFTER = 3
"""Looks after a load: by then the reading is one of the loaded model."""

_SEEN_AFTER = 2
"""Looks after a release: a reading may be a second old when it is looked at."""


class Keeper:
    """Keeps a loaded model as memory allows.

    - *high*: other models that we loaded are released; loads wait (`Holder`).
    - *critical*: no new rows, rows in flight finish, the model is released, and loaded again when there is
      room; a smaller one, if the model itself is what filled the card. Where it is not ours to release, or
      where it alone fills the card and no smaller load is left, or a smaller one would fill it as well, rows
      go on: to wait would free nothing.
    - *ok for long*: a model that was loaded smaller is loaded one rung larger.

    Args:
        holder: The model.
        gate: The door to the server.
        memory: The watchdog.
        clock: Time.
        releases: Whether the model is ours to release.
        on_measured: Called with the sizes of each load, some looks after it.
    """

    def __init__(
        self,
        holder: Holder,
        gate: Gate,
        memory: Memory,
        clock: Clock,
        *,
        releases: bool,
        on_measured: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        self._holder = holder
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
        """Act until cancelled.

        Raises:
            JobError: the model could not be loaded again.
            Stopping: the service stops while the model is out.
        """
        while True:
            await self._memory.looked()
            await self._measure()
            level = self._memory.level
            if level is not Level.OK:
                self._calm_since = self._clock.monotonic()
            if level is Level.CRITICAL and self._holder.loaded is not None and self._helps():
                await self._step_back()
                self._calm_since = self._clock.monotonic()  # nobody looked while it was out
            elif level is Level.HIGH and not self._idle_released:
                self._idle_released = True
                await self._holder.release_idle(self._holder.spec.model)
            elif level is Level.OK:
                self._idle_released = False
                if self._clock.monotonic() - self._calm_since >= CALM_S:
                    await self._climb()

    def _helps(self) -> bool:
        """Whether to release the model would make room for long; if not, that is said once."""
        holder, sizes = self._holder, self._holder.footprint
        alone = sizes.fills_alone(holder.spec)
        if not self._releases:
            why = "the model is not ours to release"
        elif sizes.leaves_hardly_any(holder.spec) and alone and not holder.can_shrink:
            why = "the model alone takes this much, and no smaller load is left to be tried"
        elif self._memory.where == "host" and not holder.can_shrink and holder.released_often:
            why = "to release the model did not help for long, and no smaller load is left to be tried"
        elif alone and holder.spilled:
            why = "a part of the model is in main memory, so a smaller load would fill the GPU just so"
        else:
            return True
        if not self._said:
            self._said = True
            self._memory.did("left_as_it_is", why=why, **self._holder.figures())
        return False

    async def _measure(self) -> None:
        if self._holder.loads != self._load:
            self._load, self._looks = self._holder.loads, 0
        self._looks += 1
        holder = self._holder
        if self._looks == _MEASURED_AFTER and holder.loaded is not None:
            await self._on_measured(holder.footprint.measure(holder.spec, holder.loaded))

    async def _step_back(self) -> None:
        holder, memory = self._holder, self._memory
        async with self._gate.hold(f"memory is critical ({memory.words}): rows in flight finish"):
            if memory.level is not Level.CRITICAL:
                return  # it passed while they did
            memory.did("paused", **holder.figures())
            await holder.let_go_for_memory()
            await holder.load_patiently()
            memory.did("resumed", **holder.figures())

    async def _climb(self) -> None:
        self._calm_since = self._clock.monotonic()
        if not self._holder.could_climb():
            return
        async with self._gate.hold(f"loading {self._holder.spec.model} larger again"):
            if not self._holder.could_climb():
                return  # while rows in flight finished
            await self._holder.let_go()
            for _ in range(_SEEN_AFTER):
                await self._holder.look()
            self._holder.climb()
            larger = self._holder.spec
            await self._holder.load_patiently()
            if self._holder.spec == larger:
                self._memory.did("larger_load", **self._holder.figures())
