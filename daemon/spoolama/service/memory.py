"""Runs the memory watchdog in the service and logs its changes."""

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

__all__ = ["Watching"]

_LIST_EVERY_S = 10.0
_ANSWER_S = 10.0


class Watching:
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

    async def look(self) -> None:
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
