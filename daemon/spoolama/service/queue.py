"""Orders the claimed jobs by priority, then by arrival, then by name.

Jobs during which the service died run after all others, and only after the service has run for a while.
A file in the job's directory records that the job is paused, so that the pause survives a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Final, Literal

from spoolama.service.run_record import RunRecord
from spoolama.spool.claim import JobDir
from spoolama.spool.durable import write_atomic

JobState = Literal["settling", "ready", "running", "paused", "held"]
_PAUSED: Final = "paused"


@dataclass
class QueuedJob:
    """One claimed job."""

    job: JobDir
    state: JobState = "settling"
    """`settling`: a process may still write to its files. `held`: until `retry_at`, or the next start."""
    priority: int = 0
    """From the sidecar; known once the job is settled."""
    reason: str = ""
    """Why it does not run."""
    retry_at: float | None = None
    """Monotonic time from which a held job may run again; None: at the next start."""
    record: RunRecord = field(default_factory=RunRecord)
    """Whether the service died while the job ran."""
    not_before: float = 0.0
    """Monotonic time from which a ready job may run."""
    after_deaths: str = ""
    """Why it waits or is held after crashes of the service; empty if it did not crash."""

    @property
    def sort_key(self) -> tuple[int, int, float, str]:
        """The job with the lowest key runs next."""
        return (self.record.deaths + self.record.kills, -self.priority, self.job.arrived, self.job.name)


class JobQueue:
    """All jobs in processing/."""

    def __init__(self) -> None:
        self._items: dict[str, QueuedJob] = {}
        self.changed = asyncio.Event()
        """Set whenever a job may have become ready; the waiting task clears it."""

    def __len__(self) -> int:
        return len(self._items)

    def add(self, job: JobDir) -> QueuedJob:
        """Add a claimed job."""
        item = QueuedJob(job)
        self._items[job.name] = item
        self.changed.set()
        return item

    def settled(self, item: QueuedJob, priority: int) -> None:
        """Mark a job as settled: it may run, unless it is held after crashes of the service."""
        item.state = "held" if item.record.held else "ready"
        item.priority, item.reason, item.retry_at = priority, item.after_deaths, None
        self.changed.set()

    def pause(self, item: QueuedJob) -> None:
        """Keep it in processing/ until a user resumes it."""
        item.state, item.retry_at = "paused", None
        item.reason = f"Paused. To continue, put {item.job.name}.resume into incoming/."
        self.changed.set()

    def hold(self, item: QueuedJob, reason: str, *, retry_at: float | None = None) -> None:
        """Keep it in processing/ without running it."""
        item.state, item.reason, item.retry_at = "held", reason, retry_at
        self.changed.set()

    def release_due(self, now: float) -> None:
        """Let held jobs run again whose `retry_at` has passed."""
        for item in self._items.values():
            if item.state == "held" and item.retry_at is not None and item.retry_at <= now:
                self.settled(item, item.priority)

    def jobs(self) -> list[QueuedJob]:
        """All jobs."""
        return list(self._items.values())

    def ready(self) -> list[QueuedJob]:
        """Jobs that can run."""
        return [item for item in self._items.values() if item.state == "ready"]

    def next(self, now: float) -> QueuedJob | None:
        """The job to run at this monotonic time, or None."""
        due = [item for item in self.ready() if item.not_before <= now]
        return min(due, key=lambda item: item.sort_key, default=None)

    def next_at(self) -> float | None:
        """Monotonic time from which the first ready job may run, or None."""
        return min((item.not_before for item in self.ready()), default=None)

    def remove(self, item: QueuedJob) -> None:
        """Remove a job that has left processing/."""
        self._items.pop(item.job.name, None)
        self.changed.set()

    def settling(self) -> list[QueuedJob]:
        """Jobs that are not settled yet."""
        return [item for item in self._items.values() if item.state == "settling"]

    def waiting(self) -> list[QueuedJob]:
        """All jobs in order, without the running job."""
        waiting = [item for item in self._items.values() if item.state != "running"]
        return sorted(waiting, key=lambda item: item.sort_key)

    def busy(self) -> bool:
        """Whether a job runs, or will run without action by a user."""
        return any(
            item.state in ("settling", "ready", "running") or item.retry_at is not None
            for item in self._items.values()
        )

    def find(self, target: str) -> list[QueuedJob]:
        """The jobs that match a job's name, an uploaded file's name or its stem."""
        return [
            item
            for item in self._items.values()
            if target in (item.job.name, item.job.dropped_as) or item.job.dropped_as.startswith(f"{target}.")
        ]


def note_pause(job: JobDir) -> None:
    """Record on disk that the job is paused."""
    write_atomic(job.path / _PAUSED, b"")


def remove_pause(job: JobDir) -> None:
    """Remove the record of a pause."""
    with contextlib.suppress(FileNotFoundError):
        (job.path / _PAUSED).unlink()


def is_paused(job: JobDir) -> bool:
    """Whether the job is paused on disk."""
    return (job.path / _PAUSED).exists()
