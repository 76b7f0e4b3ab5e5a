"""Writes the status of the service and of each drop to status/."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

from spoolama import __version__
from spoolama.clock import Clock
from spoolama.errors import DiskFull
from spoolama.service.logs import say
from spoolama.service.state import ServiceState
from spoolama.service.status_text import (
    ended_payload,
    held_payload,
    moment,
    queued_payload,
    running_payload,
    service_payload,
    service_text,
)
from spoolama.spool.layout import Spool
from spoolama.spool.status import SERVICE_JSON, StatusBoard

__all__ = ["Reporting"]

_EVERY_S = 2.0
_AT_LEAST_S = 30.0


class Reporting:
    """Writes changed status files every two seconds, and at once when the state changes."""

    def __init__(self, spool: Spool, state: ServiceState, clock: Clock) -> None:
        self._spool = spool
        self._board = StatusBoard(spool)
        self._state = state
        self._clock = clock
        self._started_at = clock.time()
        self._service: dict[str, Any] = {}
        self._written_at = float("-inf")
        self._drops: dict[str, Mapping[str, Any]] = {}
        self._full = False

    async def run(self) -> None:
        """Write until cancelled."""
        await asyncio.to_thread(self._forget_stale)
        while True:
            self._state.changed.clear()
            await self.write()
            # Not asyncio.wait_for: in Python 3.11 it swallows a cancellation that comes with the event
            # (github.com/python/cpython/issues/86296); then a dead worker would not end the service.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S):
                    await self._state.changed.wait()

    async def write(self) -> None:
        """Update the files now."""
        service = service_payload(
            self._state, version=__version__, pid=os.getpid(), started_at=self._started_at
        )
        unwritten, self._state.unwritten = self._state.unwritten, []
        ended = [ended_payload(done) for done in unwritten]
        drops = {h.name: held_payload(h) for h in self._state.held}
        # A job that waits hides a later drop of the same name only in NAME.json; service.json has both.
        for place, item in reversed(list(enumerate(self._state.queue.in_line(), 1))):
            drops[item.job.dropped_as] = queued_payload(item, place)
        running = running_payload(self._state)
        if running is not None:
            drops[running["name"]] = running
        try:
            await asyncio.to_thread(self._put, service, drops, ended)
            self._full = False
        except DiskFull as error:
            self._state.unwritten = unwritten + self._state.unwritten
            if not self._full:
                say("spool.disk_full", error=str(error))
            self._full = True

    def _put(
        self, service: dict[str, Any], drops: Mapping[str, Mapping[str, Any]], ended: list[dict[str, Any]]
    ) -> None:
        for payload in ended:
            self._board.write(payload["name"], payload)
        finished = {payload["name"] for payload in ended}
        for name in self._drops.keys() - drops.keys() - finished:
            if self._drops[name]["job"] is None:  # the owner removed it from incoming/
                self._board.forget(name)
        for name, drop in drops.items():
            self._board.write(name, drop)
        self._drops = dict(drops)
        now = self._clock.time()
        if service != self._service or now - self._written_at >= _AT_LEAST_S:
            self._board.write_service({**service, "at": moment(now)}, service_text(service, now))
            self._service, self._written_at = service, now

    def _forget_stale(self) -> None:
        """Remove the status of names in incoming/ from an earlier run; the first scan writes it again."""
        for path in self._spool.status.glob("*.json"):
            if path.name == SERVICE_JSON:
                continue
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if json.loads(path.read_bytes()).get("state") in ("held", "arriving"):
                    path.unlink()
