"""What the service and the executor of one job say to each other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from spoolama.engine.progress import Progress
from spoolama.errors import JobError
from spoolama.spool.claim import JobDir

__all__ = ["Ended", "Executor", "StopSignal"]


class StopSignal:
    """A request to stop that many may look at and wait for. Once set it stays set.

    It belongs to one event loop: `set` from another thread goes through `loop.call_soon_threadsafe`.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason = ""
        """Why, in a word: `stop`, `pause` or `cancel`."""

    def set(self, reason: str = "stop") -> None:
        """Ask everybody to come to an end; the first reason counts, but for a cancel, which always does."""
        self.reason = reason if reason == "cancel" else self.reason or reason
        self._event.set()

    def is_set(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Return as soon as somebody asks."""
        await self._event.wait()


@dataclass(frozen=True, slots=True)
class Ended:
    """How the execution of one job came to its end."""

    where: Literal["done", "failed", "left"]
    """`done` or `failed`: published there. `left`: drained; stays in processing/ for the next start."""
    path: Path | None
    """The published directory; None if left."""
    message: str
    """One line for a person: `9,970 of 10,000 rows answered, 30 failed`."""


class Executor(Protocol):
    """Executes claimed jobs, one at a time."""

    async def execute(self, job: JobDir, progress: Progress, stop: StopSignal) -> Ended:
        """Take the job from where its ledger stands to its end, or to `stop`.

        After `stop` no new row is begun; rows in flight finish and are recorded; then it returns `left`
        (or `done`, if that was all).

        Args:
            job: The claimed job.
            progress: Kept up to date for whoever shows it; its pulse feeds the watchdog.
            stop: Set when the job is to stop.

        Raises:
            SpoolamaError: it cannot go on for now, such as DiskFull; the job stays in processing/.
            Exception: anything else is a defect; the job stays and the service restarts.
        """
        ...

    async def reject(self, job: JobDir, error: JobError) -> Ended:
        """Publish the job in failed/ for this reason, with everything uploaded and all results there are."""
        ...
