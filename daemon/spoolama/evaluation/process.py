"""Manages the evaluation process: starts it on demand, replaces it after a crash, stops it when idle.

It evaluates everything that users write (templates, schemas, sidecars), so that these cannot block the
service, exhaust its memory or crash it. Waiting requests are sent in one batch.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from spoolama.errors import EvaluationFailed
from spoolama.evaluation.connection import Connection, ProcessEnded, ProcessLimits
from spoolama.evaluation.protocol import Abandoned, LimitExceeded, TaskInterrupted

_BATCH_ITEMS = 64
_BATCH_BYTES = 256 * 1024
_MOST_DEFINITIONS = 64
_DEFINITIONS_CHARACTERS = 2 * 1024 * 1024
"""Limits of the cached definitions: their number and their total length."""
_MOST_DEATHS = 3
"""Maximum ends of the process during a task that is not known to be the cause: a kill or no CPU time."""
_AFTER_DEATH_S = (0.0, 1.0, 5.0)
"""Pauses after such an end in seconds, to let the kernel recover memory."""
_START_DELAYS_S = (0.2, 1.0, 3.0)
"""Pauses between attempts to start the process, in seconds."""


@dataclass(slots=True, eq=False)
class _Item:
    """A task that waits or is being processed."""

    kind: str
    definition: str
    arguments: bytes
    cpu_s: float
    result: asyncio.Future[list[Any]]
    unwanted: Callable[[], bool] | None
    single: bool = False
    """Send it in its own batch, because the process died during a batch with it."""
    fresh: bool = False
    """Send it to a new process, because in a used one earlier tasks may hold the memory."""
    deaths: int = 0


class EvaluationProcess:
    """Runs tasks in a separate process; belongs to one event loop.

    Args:
        limits: Limits of a task.
        idle_s: Seconds without a task after which the process is stopped.
        report: Called with an event name and a text for the administrator.
    """

    def __init__(
        self,
        limits: ProcessLimits | None = None,
        *,
        idle_s: float = 60.0,
        report: Callable[[str, str], None] = lambda event, text: None,  # noqa: ARG005
    ) -> None:
        self._limits = limits or ProcessLimits()
        self._idle_s = idle_s
        self._report = report
        self._unrestricted = False
        self._queue: deque[_Item] = deque()
        self._driver: asyncio.Task[None] | None = None
        self._child: Connection | None = None
        self.definitions: OrderedDict[str, int] = OrderedDict()
        """Numbers of the definitions that are kept; the process gets each one once."""
        self._numbered = 0
        self._characters = 0
        self._used_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._closed = False
        self.starts = 0
        """Number of processes started."""

    @property
    def idle(self) -> bool:
        """Whether no task waits or is being processed."""
        return self._driver is None or self._driver.done()

    @property
    def pid(self) -> int | None:
        """The process id; None while no process runs."""
        return None if self._child is None else self._child.process.pid

    async def run(
        self,
        kind: str,
        definition: str,
        arguments: Sequence[Any],
        cpu_s: float,
        unwanted: Callable[[], bool] | None = None,
    ) -> list[Any]:
        """Run a task; see `child/tasks.py` for kinds and results.

        Args:
            kind: Kind of the task.
            definition: A text that is compiled once and used many times, such as the source of a template.
            arguments: JSON values.
            cpu_s: CPU time limit of the task in seconds.
            unwanted: Returns whether the task is cancelled; called before it starts.

        Raises:
            Abandoned: it was cancelled before it started.
            LimitExceeded: it exceeded its time or memory limit, or crashed the process.
            TaskInterrupted: the process ended several times during the task for another reason.
            EvaluationFailed: the process cannot be started.
        """
        loop = asyncio.get_running_loop()
        if self._closed:
            raise EvaluationFailed("the evaluation process is closed")
        item = _Item(kind, definition, json.dumps(arguments).encode(), cpu_s, loop.create_future(), unwanted)
        self._queue.append(item)
        if self.idle:
            # The driver starts in the next loop iteration, so that tasks of this iteration form one batch.
            self._driver = loop.create_task(self._drive(), name="evaluation")
        return await item.result

    async def aclose(self) -> None:
        """End the process; waiting tasks fail."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)
        if self._stopping is not None:
            await self._stopping
        self._fail(EvaluationFailed("the evaluation process is closed"))
        await self._stop_child()

    # --- driving -----------------------------------------------------------------------------------------

    async def _drive(self) -> None:
        batch: list[_Item] = []
        try:
            while self._queue:
                child = await self._running()
                batch = self._take()
                if not batch:
                    continue
                if batch[0].fresh and child.used:
                    await self._stop_child()
                    child = await self._running()
                was_used, child.used = child.used, True
                try:
                    replies = await child.ask(self._request(child, batch), self._wall_s(batch))
                except ProcessEnded as ended:
                    self._child = None
                    if pause_s := self._after_end(batch, ended, was_used=was_used):
                        await asyncio.sleep(pause_s)
                    continue
                if self._deliver(batch, replies, was_used=was_used):
                    await self._stop_child()
                batch = []
        except EvaluationFailed as error:
            self._fail(error)
        except asyncio.CancelledError:
            self._queue.extendleft(reversed(batch))  # `aclose` reports the error to them
            raise
        except Exception as error:
            self._queue.extendleft(reversed(batch))
            self._fail(EvaluationFailed(f"the evaluation process is not usable: {error!r}"))
            raise
        finally:
            self._rest()

    def _take(self) -> list[_Item]:
        """Return the next batch: as many items as allowed, or a single one that must be sent alone."""
        batch: list[_Item] = []
        size = 0
        while self._queue and len(batch) < _BATCH_ITEMS and size < _BATCH_BYTES:
            if self._queue[0].single and batch:
                break
            item = self._queue.popleft()
            if item.unwanted is not None and item.unwanted():
                _set(item, Abandoned())
            if item.result.done():
                continue
            batch.append(item)
            size += len(item.arguments) + len(item.definition) * (item.definition not in self.definitions)
            if item.single:
                break
        return batch

    def _request(self, child: Connection, batch: Sequence[_Item]) -> bytes:
        parts: list[bytes] = []
        for item in batch:
            number = self._number(item.definition)
            if number not in child.defined:
                child.defined.add(number)
                parts.append(json.dumps(["define", number, item.definition]).encode())
            parts.append(b'["%s",%d,%s,%r]' % (item.kind.encode(), number, item.arguments, item.cpu_s))
        used = {item.definition for item in batch}
        for old in list(self.definitions):
            if old in used or not self._keeps_too_much():
                break  # ordered by last use, oldest first
            number = self.definitions.pop(old)
            self._characters -= len(old)
            if number in child.defined:
                child.defined.remove(number)
                parts.append(b'["forget",%d]' % number)
        return b"[" + b",".join(parts) + b"]"

    def _keeps_too_much(self) -> bool:
        return len(self.definitions) > _MOST_DEFINITIONS or self._characters > _DEFINITIONS_CHARACTERS

    def _number(self, definition: str) -> int:
        if not definition:
            return 0
        number = self.definitions.get(definition)
        if number is None:
            self._numbered += 1
            number = self.definitions[definition] = self._numbered
            self._characters += len(definition)
        self.definitions.move_to_end(definition)
        return number

    def _wall_s(self, batch: Sequence[_Item]) -> float:
        return self._limits.wall_spare_s + self._limits.wall_factor * max(item.cpu_s for item in batch)

    def _deliver(self, batch: list[_Item], replies: list[list[Any]], *, was_used: bool) -> bool:
        """Deliver results and requeue unfinished items in front. Returns whether memory ran out."""
        left = batch[len(replies) :]
        full: bool = replies[-1][0] == "memory"  # always the last reply: the process runs no task after it
        for item, reply in zip(batch, replies, strict=False):
            if reply[0] != "memory":
                if not item.result.done():
                    item.result.set_result(reply)
            elif was_used or len(replies) > 1:
                item.single = item.fresh = True
                left.insert(0, item)
            else:
                megabytes = self._limits.memory_bytes // 1_000_000
                _set(item, LimitExceeded(f"needed more than {megabytes} MB of memory"))
        self._queue.extendleft(reversed(left))
        return full

    def _after_end(self, batch: list[_Item], ended: ProcessEnded, *, was_used: bool) -> float:
        """Handle the end of the process during a batch: find the responsible task by sending each alone.

        Returns:
            Seconds to wait before the next batch.
        """
        pause_s = 0.0
        if ended.why is None:
            self._report("evaluation.ended", ended.outside)
        if len(batch) > 1:
            for item in batch:
                item.single = True
        elif ended.why is not None and was_used and not ended.by_time:
            batch[0].single = batch[0].fresh = True
        else:
            (item,) = batch
            item.deaths += 1
            if ended.why is not None:
                _set(item, LimitExceeded(ended.why.format(cpu_s=item.cpu_s)))
            elif item.deaths >= _MOST_DEATHS:
                _set(item, TaskInterrupted(f"{item.deaths} times; the last time it {ended.outside}"))
            else:
                pause_s = _AFTER_DEATH_S[item.deaths]
        self._queue.extendleft(reversed([item for item in batch if not item.result.done()]))
        return pause_s

    def _fail(self, error: EvaluationFailed) -> None:
        while self._queue:
            _set(self._queue.popleft(), error)

    # --- the process -------------------------------------------------------------------------------------

    async def _running(self) -> Connection:
        if self._child is not None and self._child.alive:
            return self._child
        await self._stop_child()
        for delay in (*_START_DELAYS_S, None):
            self.starts += 1
            try:
                self._child = await Connection.start(self._limits)
                if not self._child.restricted and not self._unrestricted:
                    self._unrestricted = True
                    self._report("evaluation.unrestricted", "")
                return self._child
            except (ProcessEnded, OSError) as error:
                if delay is None:
                    raise EvaluationFailed(f"the evaluation process does not start: {error}") from error
            await asyncio.sleep(delay)
        raise AssertionError("the last attempt returns or raises")

    async def _stop_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.stop()

    def _rest(self) -> None:
        """Schedule the stop of the idle process."""
        if self._child is None or self._closed:
            return
        loop = asyncio.get_running_loop()
        self._used_at = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._idle_s, self._retire)

    def _retire(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        left = self._used_at + self._idle_s - loop.time()
        if left > 0 or not self.idle:
            self._timer = loop.call_later(max(left, 1.0), self._retire)
        elif self._child is not None:
            child, self._child = self._child, None
            self._stopping = loop.create_task(child.stop(), name="stop of the evaluation process")


class ProcessPair:
    """Two processes: the second one is started and used only while the first one is busy."""

    def __init__(self, first: EvaluationProcess, second: EvaluationProcess) -> None:
        self._first = first
        self._second = second

    async def run(
        self,
        kind: str,
        definition: str,
        arguments: Sequence[Any],
        cpu_s: float,
        unwanted: Callable[[], bool] | None = None,
    ) -> list[Any]:
        """Run a task; `EvaluationProcess.run` has the details."""
        process = self._first if self._first.idle else self._second
        return await process.run(kind, definition, arguments, cpu_s, unwanted)

    async def aclose(self) -> None:
        """End the second process; the first has another owner."""
        await self._second.aclose()


def _set(item: _Item, error: Exception) -> None:
    if not item.result.done():
        item.result.set_exception(error)
