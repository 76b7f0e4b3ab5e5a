"""A service in a test: a real spool, real tasks, and a scripted executor."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec

from spoolama.clock import Clock, SystemClock
from spoolama.errors import JobError
from spoolama.memory.reader_threads import CardThread
from spoolama.memory.watchdog import MemoryWatchdog
from spoolama.progress import Progress
from spoolama.service.daemon import Daemon
from spoolama.service.incoming import priority_of
from spoolama.service.logs import configure
from spoolama.service.settings import Settings, load_settings
from spoolama.service.state import JobEnd
from spoolama.spool.claim import JobDir
from spoolama.spool.layout import Spool
from spoolama.spool.publication import open_out, publish
from spoolama.stopping import Stop
from support.backend import ScriptedBackend
from support.evaluation import inline_evaluator
from support.notify_socket import RecordingNotifier

P = ParamSpec("P")

SIDECAR = "model: m\nprompt: '{{ text }}'\n"
"""The smallest valid sidecar."""


@dataclass
class FakeExecutor:
    """Publishes every job at once, unless `act` does something else."""

    spool: Spool
    act: Callable[[JobDir, Progress, Stop], Awaitable[JobEnd | None]] | None = None
    """Called first; None: publish in done/."""
    executed: list[str] = field(default_factory=list)
    """Names of the data files, in the order of execution."""
    rejected: list[tuple[str, JobError]] = field(default_factory=list)

    async def execute(self, job: JobDir, progress: Progress, stop: Stop) -> JobEnd:
        """Execute as the test says."""
        self.executed.append(job.dropped_as)
        ended = await self.act(job, progress, stop) if self.act else None
        return ended or await self._publish(job, "done")

    async def reject(self, job: JobDir, error: JobError) -> JobEnd:
        """Publish in failed/ with only the uploads."""
        self.rejected.append((job.dropped_as, error))
        return await self._publish(job, "failed", error.message)

    async def _publish(self, job: JobDir, where: str, message: str = "all answered") -> JobEnd:
        await asyncio.to_thread(open_out, job)
        if where == "done":
            return JobEnd("done", await asyncio.to_thread(publish, self.spool, job, "done"), message)
        return JobEnd("failed", await asyncio.to_thread(publish, self.spool, job, "failed"), message)


class Service:
    """A spool with its daemon and short times.

    Args:
        root: Where the spool is created.
        clock: Time; None: the machine's own.
        settings: Keys as in the environment's variables, in lower case.
    """

    def __init__(self, root: Path, clock: Clock | None = None, **settings: object) -> None:
        # As the real one does; structlog's own default prints every local variable of a traceback.
        configure("info", env={}, rendering="json")
        self.spool = Spool(root)
        self.spool.create()
        self.clock: Clock = clock or SystemClock()
        self.executor = FakeExecutor(self.spool)
        self.backend = ScriptedBackend(self.clock)
        self.notifier = RecordingNotifier()
        self.settings = self.with_settings(**settings)

    def with_settings(self, **settings: object) -> Settings:
        """Return the short times with these settings."""
        given = {"spool": self.spool.root, "quiet_s": 0, "rescan_s": 0.2, "min_free_bytes": 0} | settings
        return load_settings(None, {f"SPOOLAMA_{k.upper()}": str(v) for k, v in given.items()})

    def drop(self, name: str, data: str = "text\nx\n", sidecar: str | None = SIDECAR) -> None:
        """Put NAME.csv and NAME.yaml into incoming/, the sidecar first."""
        if sidecar is not None:
            (self.spool.incoming / f"{name}.yaml").write_text(sidecar)
        (self.spool.incoming / f"{name}.csv").write_text(data)

    def daemon(
        self,
        *,
        once: bool = False,
        reload: Callable[[], Settings] | None = None,
        watchdog_s: float | None = None,
        memory: tuple[MemoryWatchdog, CardThread] | None = None,
    ) -> Daemon:
        """Make a daemon; call it inside the loop."""
        return Daemon(
            self.settings,
            self.spool,
            self.backend,
            self.executor,
            self.notifier,
            self.clock,
            once=once,
            reload=reload,
            watchdog_s=watchdog_s,
            priority_of=partial(priority_of, evaluator=inline_evaluator()),
            memory=memory,
        )

    @asynccontextmanager
    async def running(
        self,
        reload: Callable[[], Settings] | None = None,
        watchdog_s: float | None = None,
        memory: tuple[MemoryWatchdog, CardThread] | None = None,
    ) -> AsyncIterator[Daemon]:
        """A running daemon, which is stopped at the end."""
        daemon = self.daemon(reload=reload, watchdog_s=watchdog_s, memory=memory)
        task = asyncio.create_task(daemon.run())
        try:
            await until(lambda: "ready" in self.notifier.sent or task.done())
            yield daemon
        finally:
            daemon.stop()
            await task

    def published(self, where: str = "done") -> list[str]:
        """Return the jobs in done/ or failed/ by the uploads' stems."""
        parent = self.spool.done if where == "done" else self.spool.failed
        return sorted(path.name.split("-")[0] for path in parent.iterdir())


async def until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until the condition is true; raise TimeoutError otherwise."""
    async with asyncio.timeout(timeout_s):
        while not true():
            await asyncio.sleep(0.01)


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test in its own event loop."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run
