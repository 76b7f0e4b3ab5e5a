"""The tasks about the model server while nothing runs: is it there, and may it have its memory back."""

from __future__ import annotations

import asyncio

from spoolama.backends.base import Backend
from spoolama.clock import Clock
from spoolama.errors import BackendError
from spoolama.gpu.level import Level
from spoolama.service.logs import say
from spoolama.service.state import ServiceState

__all__ = ["Probing", "Releasing", "release"]

_PROBE_EVERY_S = 30.0
_ANSWER_S = 10.0
_LOOK_EVERY_S = 1.0
_RELEASE_AGAIN_S = 60.0


async def release(backend: Backend, *, say_failure: bool = True) -> bool:
    """Have the models released that were loaded from here; whether it worked. Waits 10 s at most."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            await backend.release()
    except (BackendError, TimeoutError) as error:
        if say_failure:
            say("models.release_failed", error=str(error) or f"no answer in {_ANSWER_S:.0f} s")
        return False
    return True


class Probing:
    """Asks the server for a sign of life while no job does."""

    def __init__(self, backend: Backend, state: ServiceState, clock: Clock) -> None:
        self._backend = backend
        self._state = state
        self._clock = clock

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            if self._state.running is None:
                await self.probe()
            elif self._state.running.progress.ok:
                self._state.server.away = None
            await self._clock.sleep(_PROBE_EVERY_S)

    async def probe(self) -> None:
        """One sign of life, or the lack of it."""
        server = self._state.server
        try:
            async with asyncio.timeout(_ANSWER_S):
                info = await self._backend.probe()
        except (BackendError, TimeoutError) as error:
            words = str(error) or f"no answer in {_ANSWER_S:.0f} s"
            if server.away is None:
                server.away_since = self._clock.monotonic()
                say("server.away", error=words)
            server.away = words
        else:
            if server.away is not None and server.away_since is not None:
                say("server.back", seconds=round(self._clock.monotonic() - server.away_since))
            server.version, server.away, server.away_since = info.version, None, None
        self._state.changed.set()


class Releasing:
    """Releases the models when the queue has been empty for a while, or is empty and memory is tense.

    Args:
        backend: Whose models.
        state: Since when it is idle.
        clock: Time.
        models: A lock that whoever runs a job holds.
        after_s: Seconds of empty queue.
    """

    def __init__(
        self, backend: Backend, state: ServiceState, clock: Clock, models: asyncio.Lock, *, after_s: float
    ) -> None:
        self._backend = backend
        self._state = state
        self._clock = clock
        self._models = models
        self.after_s = after_s
        self._released_at = state.idle_since
        self._failed_at: float | None = None
        """When the last release did not work; the next one is tried a minute later."""

    async def run(self) -> None:
        """Look each second until cancelled."""
        while True:
            await self.look()
            await self._clock.sleep(_LOOK_EVERY_S)

    async def look(self) -> None:
        """Release if it is time, once for each time of idleness; each minute until it works, said once."""
        since = self._state.idle_since
        idle = self._state.running is None and not self._state.queue.ready()
        tense = self._state.memory is not None and self._state.memory.level is not Level.OK
        now = self._clock.monotonic()
        if not idle or since == self._released_at or not (now - since >= self.after_s or tense):
            return
        if self._failed_at is not None and now - self._failed_at < _RELEASE_AGAIN_S:
            return
        async with self._models:
            if self._state.running is not None:
                return
            if await release(self._backend, say_failure=self._failed_at is None):
                say("models.released")
                self._released_at, self._failed_at = since, None
            else:
                self._failed_at = self._clock.monotonic()
