"""The evaluation process, seen from the service: started when needed, replaced when dead, stopped when idle.

Everything that a user wrote (templates, schemas, sidecars) is evaluated there, so that nothing of it can stop
the service, fill its memory or crash it. Requests that wait are sent together.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from spoolama.errors import EvaluationFailed
from spoolama.evaluation.base import Abandoned, LimitMet, TaskLost
from spoolama.evaluation.connection import Connection, Ended, ProcessLimits

__all__ = ["EvaluationProcess", "FirstIdle"]

_BATCH_ITEMS = 64
_BATCH_BYTES = 256 * 1024
_MOST_DEFINITIONS = 64
_DEFINITIONS_CHARACTERS = 2 * 1024 * 1024
"""Definitions that are kept for later tasks: this many, and this long together."""
_MOST_DEATHS = 3
"""Ends of the process that say nothing about the task: killed from outside, or starved of processor time."""
_AFTER_DEATH_S = (0.0, 1.0, 5.0)
"""Pauses after such an end: the kernel needs time until it has memory again."""
_START_DELAYS_S = (0.2, 1.0, 3.0)
"""Pauses between attempts to start it."""


@dataclass(slots=True, eq=False)
class _Item:
    """A task that waits or is in the process."""

    kind: str
    definition: str
    arguments: bytes
    cpu_s: float
    result: asyncio.Future[list[Any]]
    unwanted: Callable[[], bool] | None
    alone: bool = False
    """Sent by itself: it was in a batch with which the process died."""
    fresh: bool = False
    """Sent to a new process: in one that had other tasks before, it is not known whose the memory is."""
    deaths: int = 0


class EvaluationProcess:
    """Runs tasks in a process of its own; belongs to one event loop.

    Args:
        limits: What a task may take.
        idle_s: Seconds without a task after which the process is stopped.
        report: Called with the name of an event and a text where an administrator should know of it.
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
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._numbered = 0
        self._characters = 0
        self._used_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._closed = False
        self.starts = 0
        """How often a process was started."""

    @property
    def idle(self) -> bool:
        """Whether no task waits or is in the process."""
        return self._driver is None or self._driver.done()

    @property
    def pid(self) -> int | None:
        """The process's id; None while there is none."""
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
            kind: Of the task.
            definition: What is prepared once and used many times, such as a template's source.
            arguments: JSON.
            cpu_s: Processor time that the task may take, in seconds.
            unwanted: Whether the task, while it waits, is not wanted any more.

        Raises:
            Abandoned: it was unwanted before it began.
            LimitMet: it took more time or memory than it may, or crashed the process.
            EvaluationFailed: the process cannot be started.
        """
        loop = asyncio.get_running_loop()
        if self._closed:
            raise EvaluationFailed("the evaluation process is closed")
        item = _Item(kind, definition, json.dumps(arguments).encode(), cpu_s, loop.create_future(), unwanted)
        self._queue.append(item)
        if self.idle:
            # It begins in the next turn of the loop, so that tasks of the same turn go in one batch.
            self._driver = loop.create_task(self._drive(), name="evaluation")
        return await item.result

    async def aclose(self) -> None:
        """End the process; tasks that wait fail."""
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
                except Ended as ended:
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
            self._queue.extendleft(reversed(batch))  # `aclose` tells them
            raise
        except Exception as error:
            self._queue.extendleft(reversed(batch))
            self._fail(EvaluationFailed(f"the evaluation process is not usable: {error!r}"))
            raise
        finally:
            self._rest()

    def _take(self) -> list[_Item]:
        """The next items: together as many as may go, or one that goes alone."""
        batch: list[_Item] = []
        size = 0
        while self._queue and len(batch) < _BATCH_ITEMS and size < _BATCH_BYTES:
            if self._queue[0].alone and batch:
                break
            item = self._queue.popleft()
            if item.unwanted is not None and item.unwanted():
                _set(item, Abandoned())
            if item.result.done():
                continue
            batch.append(item)
            size += len(item.arguments) + len(item.definition) * (item.definition not in self._numbers)
            if item.alone:
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
        for old in list(self._numbers):
            if old in used or not self._keeps_too_much():
                break  # the least recently used come first
            number = self._numbers.pop(old)
            self._characters -= len(old)
            if number in child.defined:
                child.defined.remove(number)
                parts.append(b'["forget",%d]' % number)
        return b"[" + b",".join(parts) + b"]"

    def _keeps_too_much(self) -> bool:
        return len(self._numbers) > _MOST_DEFINITIONS or self._characters > _DEFINITIONS_CHARACTERS

    def _number(self, definition: str) -> int:
        if not definition:
            return 0
        number = self._numbers.get(definition)
        if number is None:
            self._numbered += 1
            number = self._numbers[definition] = self._numbered
            self._characters += len(definition)
        self._numbers.move_to_end(definition)
        return number

    def _wall_s(self, batch: Sequence[_Item]) -> float:
        return self._limits.wall_spare_s + self._limits.wall_factor * max(item.cpu_s for item in batch)

    def _deliver(self, batch: list[_Item], replies: list[list[Any]], *, was_used: bool) -> bool:
        """Hand results over; what was not done waits in front. Whether the process is out of memory."""
        left = batch[len(replies) :]
        full: bool = replies[-1][0] == "memory"  # it is the last one: the process does nothing behind it
        for item, reply in zip(batch, replies, strict=False):
            if reply[0] != "memory":
                if not item.result.done():
                    item.result.set_result(reply)
            elif was_used or len(replies) > 1:
                item.alone = item.fresh = True
                left.insert(0, item)
            else:
                megabytes = self._limits.memory_bytes // 1_000_000
                _set(item, LimitMet(f"needed more than {megabytes} MB of memory"))
        self._queue.extendleft(reversed(left))
        return full

    def _after_end(self, batch: list[_Item], ended: Ended, *, was_used: bool) -> float:
        """The process ended in this batch: find the task by sending each one alone.

        Returns:
            Seconds to wait before the next one.
        """
        pause_s = 0.0
        if ended.why is None:
            self._report("evaluation.ended", ended.outside)
        if len(batch) > 1:
            for item in batch:
                item.alone = True
        elif ended.why is not None and was_used and not ended.by_time:
            batch[0].alone = batch[0].fresh = True
        else:
            (item,) = batch
            item.deaths += 1
            if ended.why is not None:
                _set(item, LimitMet(ended.why.format(cpu_s=item.cpu_s)))
            elif item.deaths >= _MOST_DEATHS:
                _set(item, TaskLost(f"{item.deaths} times; the last time it {ended.outside}"))
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
            except (Ended, OSError) as error:
                if delay is None:
                    raise EvaluationFailed(f"the evaluation process does not start: {error}") from error
            await asyncio.sleep(delay)
        raise AssertionError("the last attempt returns or raises")

    async def _stop_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.stop()

    def _rest(self) -> None:
        """Nothing waits: stop the process when that lasts."""
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


class FirstIdle:
    """Two processes: the second one is used, and started, only while the first has tasks."""

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
