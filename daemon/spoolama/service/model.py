"""Defines the interface between the service and the executor of one job."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from spoolama.errors import JobError
from spoolama.progress import Progress
from spoolama.spool.claim import JobDir

__all__ = ["Executor", "JobEnd", "StopSignal"]


class StopSignal:
    """A request to stop that several tasks can check and wait for. Once set it stays set.

    It belongs to one event loop: to set it from another thread, use `loop.call_soon_threadsafe`.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason = ""
        """The reason: `stop`, `pause` or `cancel`."""

    def set(self, reason: str = "stop") -> None:
        """Request a stop; the first reason counts, but `cancel` replaces any other."""
        self.reason = reason if reason == "cancel" else self.reason or reason
        self._event.set()

    def is_set(self) -> bool:
        """Whether a stop was requested."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Wait until a stop is requested."""
        await self._event.wait()


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The result of the execution of one job."""

    where: Literal["done", "failed", "left"]
    """`done` or `failed`: published there. `left`: stopped; stays in processing/ for the next start."""
    path: Path | None
    """The published directory; None if left."""
    message: str
    """One line for a person: `9,970 of 10,000 rows answered, 30 failed`."""


class Executor(Protocol):
    """Executes claimed jobs, one at a time."""

    async def execute(self, job: JobDir, progress: Progress, stop: StopSignal) -> JobEnd:
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
