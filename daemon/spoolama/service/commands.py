"""Executes command files in incoming/: `NAME.cancel`, `NAME.pause` and `NAME.resume`.

NAME is an uploaded file's name, its stem, or a job's name. The command file is removed after its execution.
A paused job stays in processing/ with all its results. `.resume` also releases a job that is held because
the service died while it ran. A cancelled job is published in failed/ with its results.
"""

from __future__ import annotations

import asyncio

from spoolama.errors import JobError
from spoolama.service.deaths import Deaths
from spoolama.service.logs import say
from spoolama.service.model import Executor
from spoolama.service.pause_note import is_paused, pause, resume
from spoolama.service.queue import Queued
from spoolama.service.rejecting import reject
from spoolama.service.state import ServiceState
from spoolama.spool.layout import Spool
from spoolama.spool.scanner import Control, take_control

__all__ = ["Commands", "cancelled"]


def cancelled() -> JobError:
    """The reason in a cancelled job's error.json."""
    return JobError(
        "The job was cancelled by a .cancel file.",
        fix="To process all rows, upload the files again.",
        code="cancelled",
    )


class Commands:
    """Executes command files."""

    def __init__(self, spool: Spool, state: ServiceState, executor: Executor, deaths: Deaths) -> None:
        self._spool = spool
        self._state = state
        self._executor = executor
        self._deaths = deaths

    async def carry_out(self, control: Control) -> None:
        """Apply the command to every matching job, and remove the file."""
        items = self._state.queue.find(control.target)
        done = [await self._one(control.command, item) for item in items]
        what = "; ".join(done) if done else "no claimed job has this name"
        if not done and any(
            h.name != control.file and h.name.startswith(control.target) for h in self._state.held
        ):
            what = "the file is still in incoming/; remove it there instead"
        await asyncio.to_thread(take_control, self._spool, control)
        say("drop.commanded", name=control.file, what=what)
        self._state.changed.set()

    async def _one(self, command: str, item: Queued) -> str:
        running = self._state.running
        name = item.job.name
        if command == "pause":
            await asyncio.to_thread(pause, item.job)
            if running is not None and running.item is item:
                running.stop.set("pause")
            elif item.standing in ("ready", "held"):
                item.standing, item.retry_at = "paused", None
                item.reason = f"Paused. To continue, put {name}.resume into incoming/."
            return f"{name} is paused"
        if command == "resume":
            was_paused, was_held = is_paused(item.job), item.record.held
            await asyncio.to_thread(resume, item.job)
            if was_held:
                await self._deaths.release(item)
            if item.standing == "paused":
                self._state.queue.settled(item, item.priority)
            if was_held:
                return f"{name} is released and runs again"
            return f"{name} continues" if was_paused else f"{name} was not paused"
        if running is not None and running.item is item:
            running.stop.set("cancel")
            return f"{name} ends when its rows in flight have finished"
        if item.standing == "settling":
            return f"{name} is still being written to; not cancelled"
        if await reject(self._state, self._executor, item, cancelled()):
            return f"{name} is cancelled"
        return f"{name} is not cancelled: {item.reason.rstrip('.')}"
