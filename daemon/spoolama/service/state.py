"""What the service knows about itself at one moment; its tasks write it, status and watchdog read it."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from spoolama.clock import Clock
from spoolama.engine.progress import Progress, Pulse
from spoolama.gpu.watchdog import MemoryWatchdog
from spoolama.service.model import Ended, StopSignal
from spoolama.service.queue import JobQueue, Queued
from spoolama.spool.claim import JobDir
from spoolama.spool.ready import Held

__all__ = ["EndedJob", "Running", "ServerState", "ServiceState"]


@dataclass(frozen=True)
class Running:
    """The job that is being executed."""

    item: Queued
    progress: Progress
    stop: StopSignal
    """Stops this job alone."""


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that was published."""

    job: JobDir
    ended: Ended
    at: float
    """Seconds since the epoch."""
    progress: Progress | None
    """Its last counters; None if it never ran."""


@dataclass
class ServerState:
    """The model server, as last seen."""

    kind: str
    address: str
    version: str | None = None
    away: str | None = None
    """Why it does not answer; None if it does or was not asked yet."""
    away_since: float | None = None
    """Monotonic."""


@dataclass
class ServiceState:
    """The whole service at a glance."""

    clock: Clock
    server: ServerState
    queue: JobQueue = field(default_factory=JobQueue)
    phase: Literal["starting", "working", "stopping", "stopped"] = "starting"
    running: Running | None = None
    held: list[Held] = field(default_factory=list)
    """What stays in incoming/, and why; beyond `MOST_HELD` names they are only counted."""
    more_held: int = 0
    """Files that are held beyond these."""
    more_arriving: int = 0
    """Files that arrive, or wait for their other half, beyond these."""
    unwatched: str | None = None
    """Why incoming/ brings no events; None if it does."""
    ended: deque[EndedJob] = field(default_factory=lambda: deque(maxlen=20))
    """Latest last."""
    ended_count: int = 0
    """All that ended since the start."""
    unwritten: list[EndedJob] = field(default_factory=list)
    """Ended jobs whose status file does not say so yet."""
    idle_since: float = 0.0
    """Monotonic time of the last job's end."""
    memory: MemoryWatchdog | None = None
    """What watches memory; None: nobody does."""
    pulses: dict[str, Pulse] = field(default_factory=dict)
    """Who must show signs of life, by name."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to have the status written at once."""

    def end(self, job: JobDir, ended: Ended, progress: Progress | None) -> None:
        """Note that a job was published."""
        done = EndedJob(job, ended, self.clock.time(), progress)
        self.ended.append(done)
        self.ended_count += 1
        self.unwritten.append(done)
        self.changed.set()

    def silent(self) -> list[str]:
        """Whoever gives no sign of life."""
        return [name for name, pulse in self.pulses.items() if not pulse.alive()]
