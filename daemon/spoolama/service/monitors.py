"""Probes the model server, releases its models while no job runs, and watches the memory."""

from __future__ import annotations

import asyncio
from typing import Any

from spoolama.backends.base import Backend
from spoolama.clock import Clock
from spoolama.errors import BackendError
from spoolama.memory.level import Level
from spoolama.memory.reader_threads import CardThread
from spoolama.memory.watchdog import MemoryWatchdog
from spoolama.service.logs import say
from spoolama.service.state import ServiceState

_PROBE_EVERY_S = 30.0
_LIST_EVERY_S = 10.0
_ANSWER_S = 10.0
_CHECK_EVERY_S = 1.0
_RELEASE_AGAIN_S = 60.0


async def release(backend: Backend, *, say_failure: bool = True) -> bool:
    """Release the models that this service loaded; returns whether it worked. Waits at most 10 s."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            await backend.release()
    except (BackendError, TimeoutError) as error:
        if say_failure:
            say("models.release_failed", error=str(error) or f"no answer in {_ANSWER_S:.0f} s")
        return False
    return True


class ServerProber:
    """Probes the server while no job runs."""

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
        """Probe once, and record and log a change."""
        server = self._state.server
        try:
            async with asyncio.timeout(_ANSWER_S):
                info = await self._backend.probe()
        except (BackendError, TimeoutError) as error:
            words = server.away_text(str(error)) or f"no answer in {_ANSWER_S:.0f} s"
            if server.away is None:
                server.away_since = self._clock.monotonic()
                say("server.away", error=words)
            server.away = words
        else:
            if server.away is not None and server.away_since is not None:
                say("server.back", seconds=round(self._clock.monotonic() - server.away_since))
            server.version, server.away, server.away_since = info.version, None, None
        self._state.changed.set()


class ModelReleaser:
    """Releases the models when the queue is empty for a while, or at once if memory pressure is not ok.

    Args:
        backend: The backend of the models.
        state: Has the time since which the service is idle.
        clock: Time.
        models: A lock that is held while a job runs.
        after_s: Seconds with an empty queue.
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
        """Time of the last failed release; the next attempt is a minute later."""

    async def run(self) -> None:
        """Check every second until cancelled."""
        while True:
            await self.release_if_due()
            await self._clock.sleep(_CHECK_EVERY_S)

    async def release_if_due(self) -> None:
        """Release the models if it is due, once per idle time; retry every minute, but log a failure once."""
        since = self._state.idle_since
        idle = self._state.running is None and not self._state.queue.ready()
        pressure = self._state.memory is not None and self._state.memory.level is not Level.OK
        now = self._clock.monotonic()
        if not idle or since == self._released_at or not (now - since >= self.after_s or pressure):
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


class MemoryMonitor:
    """Runs the watchdog as two tasks of the service.

    Args:
        watchdog: Determines the memory pressure.
        thread: Reads the cards for the watchdog.
        backend: Lists the models in memory.
        state: Shows the last reading.
        clock: Time.
    """

    def __init__(
        self,
        watchdog: MemoryWatchdog,
        thread: CardThread,
        backend: Backend,
        state: ServiceState,
        clock: Clock,
    ) -> None:
        self.watchdog = watchdog
        self._thread = thread
        self._backend = backend
        self._state = state
        self._clock = clock
        watchdog.on_change = self._say
        state.memory = watchdog

    async def watch(self) -> None:
        """Read the memory every second until cancelled."""
        self._thread.start()
        try:
            await self.watchdog.run()
        finally:
            self._thread.stop()

    async def list_models(self) -> None:
        """List the models in memory while a job runs or memory pressure is not ok, until cancelled."""
        while True:
            if self._state.running is not None or self.watchdog.level is not Level.OK:
                try:
                    async with asyncio.timeout(_ANSWER_S):
                        self.watchdog.listed(await self._backend.in_memory())
                except (BackendError, TimeoutError):
                    self.watchdog.listed(None)
            await self._clock.sleep(_LIST_EVERY_S)

    def _say(self, event: str, facts: dict[str, Any]) -> None:
        running = self._state.running
        job = {} if running is None else {"job": running.item.job.name}
        shown = {key: value for key, value in facts.items() if value is not None}
        say(_EVENTS.get((event, str(facts.get("to"))), event), **job, **shown)
        self._state.changed.set()


_EVENTS = {
    ("memory.level", "ok"): "memory.ok",
    ("memory.level", "high"): "memory.high",
    ("memory.level", "critical"): "memory.critical",
}
