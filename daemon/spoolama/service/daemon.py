"""Runs the service: starts its tasks, reloads the settings and stops cleanly.

One task group has all tasks: scanner, worker, heartbeat, reporter, retention, prober, releaser, reloader, and
with a memory watchdog also memory watch and model lister. None of them ends by itself. If one fails, the
service logs it and exits with status 1, and systemd restarts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any

from spoolama import __version__
from spoolama.backends.base import Backend
from spoolama.clock import Clock
from spoolama.errors import ConfigError, SpoolError
from spoolama.evaluation.evaluator import Evaluator
from spoolama.memory.reader_threads import CardThread
from spoolama.memory.watchdog import MemoryWatchdog
from spoolama.progress import Pulse
from spoolama.service.deaths import Deaths
from spoolama.service.incoming import IncomingScanner
from spoolama.service.logs import say, set_level
from spoolama.service.monitors import MemoryMonitor, ModelReleaser, ServerProber, release
from spoolama.service.retention import Retention
from spoolama.service.settings import Settings
from spoolama.service.state import ServerState, ServiceState
from spoolama.service.status import StatusReporter
from spoolama.service.systemd import Heartbeat, Notifier
from spoolama.service.worker import Executor, Worker
from spoolama.spool.claim import JobDir
from spoolama.spool.layout import Spool
from spoolama.spool.lock import SpoolLock, tracing_crashes
from spoolama.spool.recovery import recover
from spoolama.stopping import first_of

_NEEDS_RESTART = ("spool", "backend", "lanes", "max_cell_bytes", "final_newline")
_DRAIN_SPARE_S = 10.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Daemon:
    """The service, ready to run.

    Args:
        settings: The settings.
        spool: The spool directory.
        backend: The model server.
        executor: Executes one job.
        notifier: Receives ready, status and stop, usually for systemd.
        clock: Time.
        reload: Reads the settings again, for SIGHUP; raises ConfigError.
        watchdog_s: Seconds between two watchdog pings; None: no pings.
        priority_of: A settled job's priority, from its sidecar.
        evaluators: The evaluators of templates and schemas; closed at the end.
        once: Process the present files, then exit.
        traces_crashes: Whether a fatal signal writes a trace for the next start.
        memory: The memory watchdog and its thread for readings; None: no watchdog.
    """

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        backend: Backend,
        executor: Executor,
        notifier: Notifier,
        clock: Clock,
        *,
        reload: Callable[[], Settings] | None = None,
        watchdog_s: float | None = None,
        priority_of: Callable[[JobDir], Awaitable[int]],
        evaluators: Sequence[Evaluator] = (),
        once: bool = False,
        traces_crashes: bool = False,
        memory: tuple[MemoryWatchdog, CardThread] | None = None,
    ) -> None:
        self.settings = settings
        self._spool = spool
        self._backend = backend
        self._evaluators = evaluators
        self._notifier = notifier
        self._clock = clock
        self._reload = reload
        self._once = once
        self._tracing = partial(tracing_crashes, spool) if traces_crashes else contextlib.nullcontext
        self.state = ServiceState(clock, ServerState(backend.kind, settings.backend.address or ""))
        self.state.started_at, self.state.idle_since = clock.time(), clock.monotonic()
        models = asyncio.Lock()
        self._lock = SpoolLock(spool, clock)
        self._deaths = Deaths(self.state.queue, clock)
        self._scanner = IncomingScanner(
            spool, self.state, executor, clock, priority_of, settings, self._deaths, once=once
        )
        self._worker = Worker(self.state, executor, clock, models, self._deaths, self._scanner.wake)
        self._heartbeat = Heartbeat(self.state, notifier, clock, interval_s=watchdog_s)
        self._reporter = StatusReporter(spool, self.state, clock)
        self._retention = Retention(spool, settings.keep, clock)
        self._prober = ServerProber(backend, self.state, clock)
        self._monitor = None if memory is None else MemoryMonitor(*memory, backend, self.state, clock)
        self._releaser = ModelReleaser(backend, self.state, clock, models, after_s=settings.release_after_s)
        self._stop = asyncio.Event()
        self._reload_wanted = asyncio.Event()

    async def run(self) -> int:
        """Run until the service ends.

        Returns:
            The exit status: 0 after a stop or when all files are processed, 1 if a task failed.

        Raises:
            SpoolError: the spool is not usable (78) or locked by another daemon (75).
        """
        if not self._spool.status.is_dir():
            raise SpoolError(f"{self._spool.root} is not a spool. Run: spoolama init {self._spool.root}")
        with self._lock, self._tracing(), _listening(self.stop, self._reload_wanted.set):
            if trace := self._lock.crash_trace:
                say("service.crashed", what=trace.partition("\n")[0], trace=trace)
            await asyncio.to_thread(self._spool.prove)
            status = await self._serve()
        say("service.stopped", status=status)
        return status

    def stop(self, reason: str = "asked") -> None:
        """Begin to stop; `run` returns when rows in flight have finished, at the latest after `drain_s`."""
        if not self._stop.is_set():
            say("service.stopping", reason=reason, drain_s=self.settings.drain_s)
            self._stop.set()

    async def _serve(self) -> int:
        try:
            await self._recover()
            return await self._run_tasks()
        finally:
            self.state.phase = "stopping"
            await self._release_all()

    async def _run_tasks(self) -> int:
        status = 0
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._supervise(group), name="supervisor")
        except* _Finished:
            pass
        except* Exception:
            status = 1  # the failed task has logged the reason
            self._lock.note_death()
        return status

    async def _recover(self) -> None:
        found = await asyncio.to_thread(recover, self._spool)
        for action in found.actions:
            say("spool.recovered", action=action.rstrip("."))
        await self._deaths.recover(found.jobs, self._lock.left)

    async def _supervise(self, group: asyncio.TaskGroup) -> None:
        """Start the tasks, wait for the end, and stop them."""
        self.state.pulses["scanner"] = Pulse(self._clock, liveness_s=3 * self.settings.rescan_s + 20)
        self.state.phase = "working"
        tasks = {
            name: group.create_task(_guarded(name, work), name=name)
            for name, work in (
                ("scanner", self._scanner.run()),
                ("heartbeat", self._heartbeat.run()),
                ("reporter", self._reporter.run()),
                ("retention", self._retention.run()),
                ("prober", self._prober.run()),
                ("releaser", self._releaser.run()),
                ("reloader", self._reload_on_hup()),
            )
        }
        if self._monitor is not None:
            for name, work in (
                ("memory watch", self._monitor.watch()),
                ("model lister", self._monitor.list_models()),
            ):
                tasks[name] = group.create_task(_guarded(name, work), name=name)
        work = _guarded("worker", self._worker.run(), may_end=self._stop.is_set)
        worker = group.create_task(work, name="worker")
        say(
            "service.started",
            version=__version__,
            spool=str(self._spool.root),
            backend=f"{self.state.server.kind} {self.state.server.address}".rstrip(),
        )
        self._notifier.ready()
        self._heartbeat.send_status()
        await self._until_end()
        await asyncio.to_thread(self._lock.note_stopping)
        self._notifier.stopping()
        self.state.phase = "stopping"
        self._heartbeat.send_status()
        tasks["scanner"].cancel()
        del self.state.pulses["scanner"]
        await self._drain(worker)
        raise _Finished

    async def _until_end(self) -> None:
        """Wait for a request to stop or, with `once`, for the last job's end."""
        if self._once:
            await first_of(self._stop.wait(), self._scanner.all_done.wait())
        else:
            await self._stop.wait()
        self._stop.set()

    async def _drain(self, worker: asyncio.Task[None]) -> None:
        """Let rows in flight finish for at most `drain_s`; the next start repeats interrupted rows."""
        drain_s = self.settings.drain_s
        self._notifier.extend(drain_s + _DRAIN_SPARE_S)
        self._worker.stop()
        waiting = Pulse(self._clock, liveness_s=drain_s + _DRAIN_SPARE_S)
        self.state.pulses = {"drain": waiting}
        await asyncio.wait({worker}, timeout=drain_s)
        if not worker.done():
            worker.cancel()
            await asyncio.wait({worker}, timeout=_DRAIN_SPARE_S)

    async def _release_all(self) -> None:
        """Release all resources; errors here must not prevent the exit."""
        await release(self._backend)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_DRAIN_SPARE_S):
                await self._backend.aclose()
        for evaluator in self._evaluators:
            await evaluator.aclose()
        self.state.phase = "stopped"
        with contextlib.suppress(Exception):
            await self._reporter.write()

    async def _reload_on_hup(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            self._notifier.reloading()
            try:
                new = await asyncio.to_thread(self._reload) if self._reload else self.settings
            except ConfigError as error:
                say("service.reload_refused", error=str(error))
            else:
                self._adopt(new)
            self._notifier.ready()

    def _adopt(self, new: Settings) -> None:
        old = self.settings
        changed = [key for key in type(new).model_fields if getattr(new, key) != getattr(old, key)]
        later = [key for key in changed if key in _NEEDS_RESTART]
        new = new.model_copy(update={key: getattr(old, key) for key in _NEEDS_RESTART})
        self.settings = new
        set_level(new.log.level)
        self._scanner.adopt(new)
        self._retention.keep = new.keep
        self._releaser.after_s = new.release_after_s
        if self._monitor is not None:
            self._monitor.watchdog.limits = new.vram.limits
            self._monitor.watchdog.host_limits = new.vram.host_limits
            self._monitor.watchdog.only = tuple(new.vram.cards)
        words = ", ".join(key for key in changed if key not in later) or "nothing changed"
        if later:
            words += f"; after a restart: {', '.join(later)}"
        say("service.reloaded", changed=words)


class _Finished(Exception):
    """Ends the task group normally: all its other tasks are cancelled."""


async def _guarded(
    name: str, work: Coroutine[Any, Any, None], *, may_end: Callable[[], bool] = lambda: False
) -> None:
    """Run a task that must not end; if it ends, log it and end the group."""
    try:
        await work
        if not may_end():
            raise RuntimeError("it ended by itself")
    except Exception as error:
        say("service.task_died", task=name, error=f"{type(error).__name__}: {error}", exc_info=True)
        raise


@contextlib.contextmanager
def _listening(on_stop: Callable[[str], None], on_reload: Callable[[], None]) -> Iterator[None]:
    """Call back in the running loop's thread on a signal; restores the old handlers at the end.

    asyncio runs these handlers between two steps of the loop, so a blocked loop delays them. Therefore the
    first stop signal restores the default handlers of TERM and INT: a second one ends the process at once,
    even if the loop is blocked. The files on disk survive that like a power failure.

    Args:
        on_stop: Called once, with the signal's name.
        on_reload: Called for each SIGHUP.
    """
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (*_STOP_SIGNALS, signal.SIGHUP)}

    def stop(number: signal.Signals) -> None:
        for each in _STOP_SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        on_stop(number.name)

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, on_reload)
    try:
        yield
    finally:
        for number in before:
            loop.remove_signal_handler(number)
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
