"""Executes the queued jobs, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

from spoolama.clock import Clock
from spoolama.errors import DiskFull, EvaluationFailed, JobError, LedgerVersion, SpoolamaError, shortened
from spoolama.progress import Progress, Pulse
from spoolama.service.deaths import Deaths
from spoolama.service.logs import say
from spoolama.service.queue import QueuedJob, is_paused
from spoolama.service.state import JobEnd, RunningJob, ServiceState
from spoolama.spool.claim import JobDir
from spoolama.stopping import Stop, first_of

_RETRY_S: Final = 30.0


class Executor(Protocol):
    """Executes claimed jobs, one at a time."""

    async def execute(self, job: JobDir, progress: Progress, stop: Stop) -> JobEnd:
        """Resume the job from its ledger and run it until its end or until `stop`.

        After `stop` no new row starts; rows in flight finish and are recorded; then it returns `left`
        (or `done` if no row is left).

        Args:
            job: The claimed job.
            progress: Updated during the run for the status; its pulse feeds the watchdog.
            stop: Set to stop the job.

        Raises:
            SpoolamaError: it cannot continue for now, such as DiskFull; the job stays in processing/.
            Exception: any other exception is a defect; the job stays and the service restarts.
        """
        ...

    async def reject(self, job: JobDir, error: JobError) -> JobEnd:
        """Publish the job in failed/ for this reason, with its uploads and all results so far."""
        ...


def cancelled() -> JobError:
    """The reason in a cancelled job's error.json."""
    return JobError(
        "The job was cancelled by a .cancel file.",
        fix="To process all rows, upload the files again.",
        code="cancelled",
    )


async def reject(state: ServiceState, executor: Executor, item: QueuedJob, error: JobError) -> bool:
    """Publish the job in failed/ for this reason.

    Returns:
        Whether it is published. If the disk reports an error, or this version cannot read the job's ledger,
        the job is held in processing/ until the next start.
    """
    item.state = "held"  # from now on no other task takes it
    try:
        ended = await executor.reject(item.job, error)
    except LedgerVersion as problem:
        say("job.held", job=item.job.name, error=str(problem))
        state.queue.hold(item, str(problem))
        return False
    except (SpoolamaError, OSError) as problem:
        say("job.held", job=item.job.name, error=str(problem), exc_info=True)
        state.queue.hold(item, f"It could not be moved to failed/: {problem}")
        return False
    state.queue.remove(item)
    state.end(item.job, replace(ended, message=shortened(ended.message)), None)
    return True


class Worker:
    """Executes the jobs of the queue.

    Args:
        state: Has the queue; shows the running job.
        executor: Executes one job.
        clock: Time.
        models: A lock that is held while a job runs, so that its models are not released.
        deaths: Records which job runs.
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
        self._stopping = Stop()

    def stop(self) -> None:
        """Start no further job; the running job sends no further rows."""
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
            # No await between `next` and this: a command must find the job either waiting or running.
            progress = Progress(
                item.job.name,
                self._clock,
                Pulse(self._clock),
                on_notice=partial(_say_notice, item.job.name),
            )
            running = RunningJob(item, progress, Stop())
            item.state = "running"
            self._state.running, self._state.pulses["job"] = running, progress.pulse
            self._state.changed.set()
            async with self._models:
                await self._execute(running)
            self._state.idle_since = self._clock.monotonic()
            self._on_end()

    async def _until_changed(self, at: float | None) -> None:
        """Wait for a change of the queue, or until this monotonic time."""
        waits: list[Awaitable[object]] = [self._state.queue.changed.wait()]
        if at is not None:
            waits.append(self._clock.sleep(max(0.0, at - self._clock.monotonic())))
        await first_of(*waits)

    async def _execute(self, running: RunningJob) -> None:
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
            raise  # without a request to stop, another task died, and the service with it during this job
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

    def _note_end(self, item: QueuedJob, ended: JobEnd, progress: Progress, stop: Stop) -> None:
        job, queue = item.job, self._state.queue
        if ended.where != "left":
            queue.remove(item)
            ended = replace(ended, message=shortened(ended.message))  # error.json has all of it
            self._state.end(job, ended, progress)
            event = "job.ended" if ended.where == "done" else "job.failed"
            say(event, job=job.name, where=ended.where, outcome=ended.words, failures=progress.failures)
            return
        say("job.left", job=job.name, outcome=ended.message)
        if stop.reason == "pause" and is_paused(job):
            queue.pause(item)
        elif stop.reason == "pause":  # resumed while rows were still in flight
            queue.settled(item, item.priority)
        elif self._stopping.is_set():
            queue.hold(item, "The service has stopped. The job resumes when it starts again.")
        else:
            raise RuntimeError(f"the executor left {job.name} without a request to stop")

    def _hold(self, item: QueuedJob, error: SpoolamaError) -> None:
        """Hold a job that cannot continue for a reason outside the job; the next one runs."""
        queue, retry_at = self._state.queue, self._clock.monotonic() + _RETRY_S
        match error:
            case DiskFull():
                say("spool.disk_full", job=item.job.name, error=str(error))
                queue.hold(item, str(error), retry_at=retry_at)
            case EvaluationFailed():
                say("job.held", job=item.job.name, error=str(error))
                queue.hold(item, f"{error}. It is tried again every {_RETRY_S:g} s.", retry_at=retry_at)
            case LedgerVersion():  # its message says what to do; a restart changes nothing
                say("job.held", job=item.job.name, error=str(error))
                queue.hold(item, str(error))
            case _:
                say("job.held", job=item.job.name, error=str(error), exc_info=True)
                queue.hold(item, f"{error} It is tried again at the next start of the service.")


def _say_notice(job: str, kind: str, message: str) -> None:
    if kind == "harm":
        say("job.harm", job=job, harm=message)
    else:
        say("model.changed", job=job, kind=kind, notice=message)
