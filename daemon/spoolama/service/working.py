"""The task that executes jobs, one at a time, whoever's turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from spoolama.clock import Clock
from spoolama.errors import DiskFull, EvaluationFailed, LedgerVersion, SpoolamaError, shortened
from spoolama.progress import Progress, Pulse
from spoolama.service.commands import cancelled
from spoolama.service.deaths import Deaths
from spoolama.service.logs import say
from spoolama.service.model import Executor, JobEnd, StopSignal
from spoolama.service.pause_note import is_paused
from spoolama.service.queue import Queued
from spoolama.service.state import Running, ServiceState

__all__ = ["Working"]

_RETRY_S: Final = 30.0


class Working:
    """Executes the queue.

    Args:
        state: The queue, and where the running job shows.
        executor: Does the work of one job.
        clock: Time.
        models: Held while a job runs, so that nobody releases its models.
        deaths: Marks which job runs.
        on_end: Called after each job.
    """

    def __init__(
        self,
        state: ServiceState,
        executor: Executor,
        clock: Clock,
        models: asyncio.Lock,
        deaths: Deaths,
        on_end: Callable[[], None],
    ) -> None:
        self._state = state
        self._executor = executor
        self._clock = clock
        self._models = models
        self._deaths = deaths
        self._on_end = on_end
        self._stopping = StopSignal()

    def stop(self) -> None:
        """Take no new job; the running one stops taking rows."""
        self._stopping.set()
        if self._state.running is not None:
            self._state.running.stop.set()
        self._state.queue.changed.set()

    async def run(self) -> None:
        """Execute jobs until `stop`."""
        queue = self._state.queue
        while not self._stopping.is_set():
            queue.changed.clear()
            item = queue.next(self._clock.monotonic())
            if item is None:
                await self._until_changed(queue.next_at())
                continue
            # No await between the choice and this: a command must find the job either waiting or running.
            progress = Progress(
                item.job.name,
                self._clock,
                Pulse(self._clock),
                on_notice=partial(_say_notice, item.job.name),
            )
            running = Running(item, progress, StopSignal())
            item.standing = "running"
            self._state.running, self._state.pulses["job"] = running, progress.pulse
            self._state.changed.set()
            async with self._models:
                await self._execute(running)
            self._state.idle_since = self._clock.monotonic()
            self._on_end()

    async def _until_changed(self, at: float | None) -> None:
        """Wait for a change of the queue, or for this monotonic time."""
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._state.queue.changed.wait())]
        if at is not None:
            waits.append(asyncio.ensure_future(self._clock.sleep(max(0.0, at - self._clock.monotonic()))))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _execute(self, running: Running) -> None:
        item, progress, stop = running.item, running.progress, running.stop
        job = item.job
        try:
            await self._deaths.begin(item)
            say("job.started", job=job.name)
            ended = await self._executor.execute(job, progress, stop)
            if ended.where == "left" and stop.reason == "cancel":
                ended = await self._executor.reject(job, cancelled())
        except asyncio.CancelledError:
            if self._stopping.is_set():
                await self._deaths.end(item)
            raise  # without a stop another task died, and the service with it while this job ran
        except SpoolamaError as error:
            await self._deaths.end(item)
            self._hold(item, error)
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            say("job.crashed", job=job.name, error=words, exc_info=True)
            await self._deaths.note_error(item, words)
            raise
        else:
            if ended.where == "left":
                await self._deaths.end(item)
            self._note_end(item, ended, progress, stop)
            if ended.where == "done":
                await self._deaths.finished()
        finally:
            self._state.running = None
            self._state.pulses.pop("job", None)
            self._state.changed.set()

    def _note_end(self, item: Queued, ended: JobEnd, progress: Progress, stop: StopSignal) -> None:
        job = item.job
        if ended.where != "left":
            self._state.queue.remove(item)
            self._state.end(job, replace(ended, message=shortened(ended.message)), progress)
            event = "job.ended" if ended.where == "done" else "job.failed"
            message = shortened(ended.message)  # error.json has all of it
            say(event, job=job.name, where=ended.where, outcome=message, failures=progress.failures)
            return
        say("job.left", job=job.name, outcome=ended.message)
        if stop.reason == "pause" and not is_paused(job):
            self._state.queue.settled(item, item.priority)  # it was resumed before its rows had ended
        elif stop.reason == "pause":
            item.standing, item.reason = "paused", f"Paused. Drop {job.name}.resume into incoming/ to go on."
        elif self._stopping.is_set():
            self._state.queue.hold(item, "Left for the next start.")
        else:
            raise RuntimeError(f"the executor left {job.name} although nobody asked it to stop")

    def _hold(self, item: Queued, error: SpoolamaError) -> None:
        """It cannot go on, and not because of what is in it: keep it, and let the next one run."""
        if isinstance(error, DiskFull):
            say("spool.disk_full", job=item.job.name, error=str(error))
            self._state.queue.hold(item, str(error), retry_at=self._clock.monotonic() + _RETRY_S)
            return
        if isinstance(error, EvaluationFailed):
            say("job.held", job=item.job.name, error=str(error))
            reason = f"{error}. It is tried again every {_RETRY_S:g} s."
            self._state.queue.hold(item, reason, retry_at=self._clock.monotonic() + _RETRY_S)
            return
        if isinstance(error, LedgerVersion):  # it says what to do; this version's next start changes nothing
            say("job.held", job=item.job.name, error=str(error))
            self._state.queue.hold(item, str(error))
            return
        say("job.held", job=item.job.name, error=str(error), exc_info=True)
        self._state.queue.hold(item, f"{error} It is tried again at the service's next start.")


def _say_notice(job: str, kind: str, message: str) -> None:
    if kind == "harm":
        say("job.harm", job=job, harm=message)
        return
    say("model.surprise", job=job, kind=kind, notice=message)
