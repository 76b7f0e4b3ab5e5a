"""Scans incoming/: claims ready uploads, settles claimed jobs and executes command files.

Events only wake the task. It also scans when a quiet time ends, and every `rescan_s` seconds.

A command file is `NAME.cancel`, `NAME.pause` or `NAME.resume`; NAME is an uploaded file's name, its stem, or
a job's name. It is removed after its execution. A paused job stays in processing/ with all its results.
`.resume` also releases a job that is held because the service died while it ran. A cancelled job is
published in failed/ with its results.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

from spoolama.clock import Clock
from spoolama.errors import ConfigError, DropGone, InputError, SpoolError
from spoolama.evaluation.evaluator import Evaluator
from spoolama.job.rows.data_file import detect
from spoolama.service.deaths import Deaths
from spoolama.service.logs import say
from spoolama.service.queue import QueuedJob, is_paused, note_pause, remove_pause
from spoolama.service.settings import Settings
from spoolama.service.state import ServiceState
from spoolama.service.worker import Executor, cancelled, reject
from spoolama.spool.claim import JobDir, RefusedFiles, Settling, claim, settle
from spoolama.spool.layout import Spool
from spoolama.spool.scanner import (
    MOST_HELD,
    CommandFile,
    Held,
    ReadyRules,
    Scanner,
    ScanResult,
    remove_command,
)
from spoolama.spool.watch import DirectoryEvents
from spoolama.stopping import first_of

_DEBOUNCE_S = 0.1
_CHECK_SETTLED_S = 1.0
_PRIORITY_S = 10.0
"""Maximum time in seconds to read the priorities of new jobs."""
_PRIORITY_CPU_S = 2.0
"""Processor time to read a sidecar here, where other jobs wait for it; the executor allows more."""
_READ_AT_ONCE = 2
"""Sidecars that are read at the same time: each may have 1 MB, and needs several times that in memory."""


def rules_for(settings: Settings, *, once: bool) -> ReadyRules:
    """The rules for claiming a drop. With `once` no more files are expected, so only `quiet_s` applies."""
    rules = ReadyRules(
        quiet_s=settings.quiet_s,
        openai_wait_s=settings.openai_wait_s,
        unpaired_after_s=settings.unpaired_after_s,
        max_bytes=settings.max_bytes,
        min_free_bytes=settings.min_free_bytes,
        default_sidecar=settings.default_sidecar,
    )
    return replace(rules, openai_wait_s=rules.quiet_s, unpaired_after_s=rules.quiet_s) if once else rules


class IncomingScanner:
    """Updates the queue from incoming/, and executes command files.

    Args:
        spool: The spool.
        state: Receives the results.
        executor: Rejects drops that cannot become a job.
        clock: Time.
        priority_of: A settled job's priority, from its sidecar.
        settings: The rules; `adopt` changes them.
        deaths: Releases held jobs.
        once: Process the present files, then exit.
    """

    def __init__(
        self,
        spool: Spool,
        state: ServiceState,
        executor: Executor,
        clock: Clock,
        priority_of: Callable[[JobDir], Awaitable[int]],
        settings: Settings,
        deaths: Deaths,
        *,
        once: bool,
    ) -> None:
        self._spool = spool
        self._state = state
        self._executor = executor
        self._clock = clock
        self._priority_of = priority_of
        self._once = once
        self._wake = asyncio.Event()
        self._reading = asyncio.Semaphore(_READ_AT_ONCE)
        self._warned: set[tuple[str, str]] = set()
        self._warned_of_more = False
        self._deaths = deaths
        self.all_done = asyncio.Event()
        """With `once`: set when all files are processed."""
        self.adopt(settings)

    def adopt(self, settings: Settings) -> None:
        """Use these settings from the next scan on."""
        self._rescan_s = settings.rescan_s
        self._scanner = Scanner(self._spool, rules_for(settings, once=self._once), self._clock)
        self._wake.set()

    def wake(self) -> None:
        """Request a scan soon."""
        self._wake.set()

    async def run(self) -> None:
        """Scan repeatedly until cancelled."""
        loop = asyncio.get_running_loop()

        def wake_from_thread() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        wakeups = DirectoryEvents(self._spool.incoming, wake_from_thread)
        pulse = self._state.pulses["scanner"]
        try:
            await asyncio.to_thread(wakeups.start)  # watch before the first scan, so that no file is missed
            while True:
                self._wake.clear()
                await self._watched(wakeups)
                result = await self.scan()
                pulse.beat()
                await self._pause(self._next_scan_s(result))
        finally:
            wakeups.stop()

    async def scan(self) -> ScanResult:
        """Scan once, and process the result."""
        result = await asyncio.to_thread(self._scanner.scan)
        not_claimed = await self._claim_all(result)
        await self._settle_all()
        self._state.queue.release_due(self._clock.monotonic())
        for control in result.commands:
            await self._execute(control)
        self._report_held(result, not_claimed)
        claimed = len(result.ready) > len(not_claimed)
        arriving = result.more_waiting or any(held.waiting for held in result.held)
        if self._once and not claimed and not arriving and not self._state.queue.busy():
            self.all_done.set()
        return result

    async def _execute(self, control: CommandFile) -> None:
        """Apply the command to every matching job, and remove the file."""
        items = self._state.queue.find(control.target)
        done = [await self._command(control.command, item) for item in items]
        what = "; ".join(done) if done else "no claimed job has this name"
        if not done and any(
            h.name != control.file and h.name.startswith(control.target) for h in self._state.held
        ):
            what = "the file is still in incoming/; remove it there instead"
        await asyncio.to_thread(remove_command, self._spool, control)
        say("drop.commanded", name=control.file, what=what)
        self._state.changed.set()

    async def _command(self, command: str, item: QueuedJob) -> str:
        running = self._state.running
        name = item.job.name
        if command == "pause":
            await asyncio.to_thread(note_pause, item.job)
            if running is not None and running.item is item:
                running.stop.set("pause")
            elif item.state in ("ready", "held"):
                self._state.queue.pause(item)
            return f"{name} is paused"
        if command == "resume":
            was_paused, was_held = is_paused(item.job), item.record.held
            await asyncio.to_thread(remove_pause, item.job)
            if was_held:
                await self._deaths.release(item)
            if item.state == "paused":
                self._state.queue.settled(item, item.priority)
            if was_held:
                return f"{name} is released and runs again"
            return f"{name} continues" if was_paused else f"{name} was not paused"
        if running is not None and running.item is item:
            running.stop.set("cancel")
            return f"{name} ends when its rows in flight have finished"
        if item.state == "settling":
            return f"{name} is still being written to; not cancelled"
        if await reject(self._state, self._executor, item, cancelled()):
            return f"{name} is cancelled"
        return f"{name} is not cancelled: {item.reason.rstrip('.')}"

    async def _settle_all(self) -> None:
        """Release settled jobs together, so that the one with the highest priority runs first."""
        settled = [item for item in self._state.queue.settling() if await self._is_settled(item)]
        priorities = await asyncio.gather(*(self._priority(item) for item in settled))
        for item, priority in zip(settled, priorities, strict=True):
            if item.state == "settling":  # a command may have changed it meanwhile
                self._state.queue.settled(item, priority)
                if is_paused(item.job):
                    self._state.queue.pause(item)
                self._state.changed.set()

    async def _priority(self, item: QueuedJob) -> int:
        """The job's priority; 0 if its sidecar takes too long to read, because other drops wait."""
        try:
            async with asyncio.timeout(_PRIORITY_S), self._reading:
                return await self._priority_of(item.job)
        except TimeoutError:
            return 0

    async def _is_settled(self, item: QueuedJob) -> bool:
        """Whether a claimed job is settled, so that it may run."""
        try:
            verdict = await asyncio.to_thread(settle, item.job)
        except (SpoolError, OSError) as error:
            say("job.held", job=item.job.name, error=str(error))
            self._state.queue.hold(item, str(error))
            return False
        match verdict:
            case Settling(reason=reason):
                if not item.reason:
                    say("job.settling", job=item.job.name)
                item.reason = reason
            case RefusedFiles(code=code, message=message):
                say("drop.rejected", name=item.job.dropped_as, job=item.job.name, reason=message)
                await reject(self._state, self._executor, item, InputError(message, code=code))
            case _:
                return True
        self._state.changed.set()
        return False

    async def _claim_all(self, result: ScanResult) -> list[Held]:
        """Claim the ready drops; returns those that cannot be claimed. A failure does not affect others."""
        not_claimed = []
        for drop in result.ready:
            try:
                job = await asyncio.to_thread(claim, self._spool, drop, clock=self._clock)
            except DropGone:
                continue
            except (SpoolError, ConfigError, OSError) as error:
                not_claimed.append(Held(drop.data, "not_claimed", str(error), drop.arrived))
                continue
            say("job.claimed", name=drop.data, job=job.name)
            self._state.queue.add(job)
            self._state.changed.set()
        return not_claimed

    async def _watched(self, wakeups: DirectoryEvents) -> None:
        if not wakeups.healthy():
            await asyncio.to_thread(wakeups.start)
        trouble = wakeups.trouble
        if trouble and trouble != self._state.unwatched:
            say("service.unwatched", why=trouble)
        self._state.unwatched = trouble

    def _next_scan_s(self, result: ScanResult) -> float:
        wait = self._rescan_s
        if result.rescan_s is not None:
            wait = min(wait, result.rescan_s)
        if self._state.queue.settling():
            wait = min(wait, _CHECK_SETTLED_S)
        return wait

    async def _pause(self, seconds: float) -> None:
        """Wait for this time or for an event; then a little longer, because events come in bursts."""
        await first_of(self._wake.wait(), self._clock.sleep(seconds))
        if self._wake.is_set():
            await self._clock.sleep(_DEBOUNCE_S)

    def _report_held(self, result: ScanResult, not_claimed: list[Held]) -> None:
        """Warn once about each name and reason, and show them; beyond `MOST_HELD` only their number."""
        state = self._state
        everything = [*result.held, *not_claimed]
        listed, unlisted = everything[:MOST_HELD], everything[MOST_HELD:]
        waiting = sum(held.waiting for held in unlisted)
        more_held = result.more_held + len(unlisted) - waiting
        more_arriving = result.more_waiting + waiting
        warnings = {(held.name, held.message) for held in listed if not held.waiting}
        for name, message in sorted(warnings - self._warned):
            say("drop.held", name=name, reason=message)
        self._warned = warnings
        if more_held and not self._warned_of_more:
            say("drop.many_held", listed=f"{MOST_HELD:,}", more=f"{more_held:,}")
        self._warned_of_more = more_held > 0
        if (listed, more_held, more_arriving) != (state.held, state.more_held, state.more_arriving):
            state.held, state.more_held, state.more_arriving = listed, more_held, more_arriving
            state.changed.set()


async def priority_of(job: JobDir, evaluator: Evaluator) -> int:
    """A settled job's priority from its sidecar; 0 if it cannot be read: the executor reports why."""
    if job.sidecar is None:
        return 0
    # No sidecar may end the scanner, and with it the service, at each start again.
    with contextlib.suppress(Exception):
        kind = await asyncio.to_thread(detect, job.data, job.data.name)
        sidecar = await evaluator.load_sidecar(
            job.sidecar, openai=kind.format == "openai", cpu_s=_PRIORITY_CPU_S, begun=True
        )
        return sidecar.priority
    return 0
