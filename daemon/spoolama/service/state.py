"""Holds the state of the service, which its tasks write and which status and watchdog read."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from spoolama.clock import Clock
from spoolama.memory.watchdog import MemoryWatchdog
from spoolama.progress import Progress, Pulse
from spoolama.service.queue import JobQueue, QueuedJob
from spoolama.spool.claim import JobDir
from spoolama.spool.scanner import Held
from spoolama.stopping import Stop


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The result of the execution of one job."""

    where: Literal["done", "failed", "left"]
    """`done` or `failed`: published there. `left`: stopped; stays in processing/ for the next start."""
    path: Path | None
    """The published directory; None if left."""
    message: str
    """One line for a person: `9,970 of 10,000 rows answered, 30 failed`."""
    fix: str = ""
    """What the user can do after a failure, as in error.json; may be empty."""

    @property
    def words(self) -> str:
        """The message and the fix as one text."""
        if not self.fix:
            return self.message
        if "\n" in self.message:
            return f"{self.message}\n{self.fix}"
        return f"{self.message}{'' if self.message.endswith(('.', '?', '!')) else '.'} {self.fix}"


@dataclass(frozen=True)
class RunningJob:
    """The job that is being executed."""

    item: QueuedJob
    progress: Progress
    stop: Stop
    """Stops only this job."""


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that was published."""

    job: JobDir
    ended: JobEnd
    at: float
    """Seconds since the epoch."""
    progress: Progress | None
    """Its last counters; None if it never ran."""


@dataclass
class ServerState:
    """The last known state of the model server."""

    kind: str
    address: str
    version: str | None = None
    away: str | None = None
    """Why it does not answer; None if it does or was not probed yet."""
    away_since: float | None = None
    """Monotonic time since which it does not answer."""

    def no_connection(self, message: str) -> str | None:
        """Shorten an error message of the backend to `no connection to http://…`; None for other errors."""
        address = self.address.rstrip("/")
        return f"no connection to {address}" if address and message.startswith(f"{address}: ") else None

    def away_text(self, message: str) -> str:
        """Explain an error message of the backend, with what to do if there is no connection."""
        short = self.no_connection(message)
        if short is None:
            return message
        reason = message.partition(": ")[2]
        why = "" if reason.startswith("All connection attempts failed") else f" ({reason})"
        return f"{short}{why}. {_START.get(self.kind, 'Start the server, or correct backend.url')}"


_START = {"ollama": "Start Ollama, or use --backend embedded"}
"""What to do if there is no connection, by kind of server."""


@dataclass
class ServiceState:
    """The state of the whole service."""

    clock: Clock
    server: ServerState
    started_at: float = 0.0
    """Seconds since the epoch."""
    queue: JobQueue = field(default_factory=JobQueue)
    phase: Literal["starting", "working", "stopping", "stopped"] = "starting"
    running: RunningJob | None = None
    held: list[Held] = field(default_factory=list)
    """Held files in incoming/ with the reason; at most `MOST_HELD`, further ones are only counted."""
    more_held: int = 0
    """Number of further held files."""
    more_arriving: int = 0
    """Number of further files that are being uploaded, or wait for their data file or sidecar."""
    unwatched: str | None = None
    """Why incoming/ cannot be watched for events; None if it is watched."""
    ended: deque[EndedJob] = field(default_factory=lambda: deque(maxlen=20))
    """The last ended jobs, oldest first."""
    ended_count: int = 0
    """Number of jobs that ended since the start."""
    unwritten: list[EndedJob] = field(default_factory=list)
    """Ended jobs whose status file is not written yet."""
    idle_since: float = 0.0
    """Monotonic time of the last job's end."""
    memory: MemoryWatchdog | None = None
    """The memory watchdog; None: no watchdog."""
    pulses: dict[str, Pulse] = field(default_factory=dict)
    """The pulses that the watchdog checks, by task name."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to write the status at once."""

    def end(self, job: JobDir, ended: JobEnd, progress: Progress | None) -> None:
        """Record that a job was published."""
        done = EndedJob(job, ended, self.clock.time(), progress)
        self.ended.append(done)
        self.ended_count += 1
        self.unwritten.append(done)
        self.changed.set()

    def silent(self) -> list[str]:
        """Names of the tasks whose pulse has stopped."""
        return [name for name, pulse in self.pulses.items() if not pulse.alive()]
