"""The claimed jobs and whose turn it is: higher priority first, then first come, then by name.

Jobs during which the service died go behind all others, and not before the service has lived for a while.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal

from spoolama.service.run_record import RunRecord
from spoolama.spool.claim import JobDir

__all__ = ["JobQueue", "Queued", "Standing"]

Standing = Literal["settling", "ready", "running", "paused", "held"]


@dataclass
class Queued:
    """One claimed job."""

    job: JobDir
    standing: Standing = "settling"
    """`settling`: somebody may still write to its files. `held`: until `retry_at`, or the next start."""
    priority: int = 0
    """From the sidecar; known once it is settled."""
    reason: str = ""
    """Why it does not run, in words."""
    retry_at: float | None = None
    """Monotonic time from which a held job may be tried again; None: at the next start."""
    record: RunRecord = field(default_factory=RunRecord)
    """Whether the service died while the job ran."""
    not_before: float = 0.0
    """Monotonic time from which a ready job may run."""
    after_deaths: str = ""
    """Why it waits or is held since the service died, in words; empty if it did not."""

    @property
    def turn(self) -> tuple[int, int, float, str]:
        """What it is sorted by."""
        return (self.record.deaths + self.record.kills, -self.priority, self.job.arrived, self.job.name)


class JobQueue:
    """Everything in processing/, in order."""

    def __init__(self) -> None:
        self._items: dict[str, Queued] = {}
        self.changed = asyncio.Event()
        """Set whenever something may have become ready; whoever waits clears it."""

    def __len__(self) -> int:
        return len(self._items)

    def add(self, job: JobDir) -> Queued:
        """Take a claimed job in."""
        item = Queued(job)
        self._items[job.name] = item
        self.changed.set()
        return item

    def settled(self, item: Queued, priority: int) -> None:
        """Its content is frozen: it may run, unless it is held for the deaths of the service."""
        item.standing = "held" if item.record.held else "ready"
        item.priority, item.reason, item.retry_at = priority, item.after_deaths, None
        self.changed.set()

    def hold(self, item: Queued, reason: str, *, retry_at: float | None = None) -> None:
        """Keep it in processing/ without running it."""
        item.standing, item.reason, item.retry_at = "held", reason, retry_at
        self.changed.set()

    def release_due(self, now: float) -> None:
        """Let held jobs whose time has come run again."""
        for item in self._items.values():
            if item.standing == "held" and item.retry_at is not None and item.retry_at <= now:
                self.settled(item, item.priority)

    def jobs(self) -> list[Queued]:
        """All of them."""
        return list(self._items.values())

    def ready(self) -> list[Queued]:
        """Jobs that run as soon as it is their turn."""
        return [item for item in self._items.values() if item.standing == "ready"]

    def next(self, now: float) -> Queued | None:
        """Whose turn it is at this monotonic time; None if nobody's."""
        due = [item for item in self.ready() if item.not_before <= now]
        return min(due, key=lambda item: item.turn, default=None)

    def next_at(self) -> float | None:
        """Monotonic time from which the first of the ready jobs may run; None if there is none."""
        return min((item.not_before for item in self.ready()), default=None)

    def remove(self, item: Queued) -> None:
        """It left processing/."""
        self._items.pop(item.job.name, None)
        self.changed.set()

    def settling(self) -> list[Queued]:
        """Jobs to ask about once more."""
        return [item for item in self._items.values() if item.standing == "settling"]

    def in_line(self) -> list[Queued]:
        """All that wait, in the order of their turns; the running one is not among them."""
        waiting = [item for item in self._items.values() if item.standing != "running"]
        return sorted(waiting, key=lambda item: item.turn)

    def busy(self) -> bool:
        """Whether anything runs, or will without anybody's help."""
        return any(
            item.standing in ("settling", "ready", "running") or item.retry_at is not None
            for item in self._items.values()
        )

    def find(self, target: str) -> list[Queued]:
        """The jobs that a command means: a job's name, a dropped file's name or its stem."""
        return [
            item
            for item in self._items.values()
            if target in (item.job.name, item.job.dropped_as) or item.job.dropped_as.startswith(f"{target}.")
        ]
