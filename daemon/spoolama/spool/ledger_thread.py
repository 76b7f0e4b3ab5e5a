"""Writes the ledger of a job in one thread and groups commits for durability.

The ledger is one SQLite file. The thread commits every operation at once without waiting for the disk
(`synchronous=NORMAL` in WAL mode): the commit survives the end of the process by any signal. At most 100 ms
later one commit with `synchronous=FULL` makes all of them survive a power failure; only then are rows
counted. (https://www.sqlite.org/pragma.html#pragma_synchronous: in WAL mode NORMAL syncs the log only
at checkpoints, FULL after each transaction.) So a lane never waits for the disk, and the counters never
include rows that are not on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from spoolama.errors import SpoolamaError
from spoolama.spool.ledger_format import ledger_error, open_writer

T = TypeVar("T")
_MAX_BATCH = 256


@dataclass(frozen=True, slots=True)
class Durable:
    """Finished rows that now survive a power failure."""

    ok: int
    failed: dict[str, int]


@dataclass(slots=True)
class _Op:
    run: Callable[[sqlite3.Connection], Any]
    done: Callable[[Any, BaseException | None], None] | None
    ok: int = 0
    failed: str | None = None
    sync: bool = False
    """Reply only after the operation is on disk."""


class LedgerThread:
    """The only writer of a ledger file: runs operations in order and groups the durable commits.

    Args:
        path: The SQLite file; created if absent.
        group_s: Maximum time, in seconds, before a commit is on the disk.
        on_durable: Called in the event loop with the rows that became durable.
    """

    def __init__(
        self, path: Path, *, group_s: float = 0.1, on_durable: Callable[[Durable], None] | None = None
    ) -> None:
        self._db = open_writer(path)
        self._group_s = group_s
        self._on_durable = on_durable
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Op | None] = queue.SimpleQueue()
        self._broken: SpoolamaError | None = None
        self._syncs = 0
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._thread = threading.Thread(target=self._work, name=f"ledger {path.parent.name}", daemon=True)
        self._thread.start()

    async def do(self, run: Callable[[sqlite3.Connection], T], *, sync: bool = False) -> T:
        """Run this in the ledger thread, in a transaction; with `sync`, return only when it is on disk."""
        future: asyncio.Future[T] = self._loop.create_future()

        def deliver(value: T, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)

        self._put(_Op(run, lambda v, e: self._soon(deliver, v, e), sync=sync))
        return await future

    def post(
        self, run: Callable[[sqlite3.Connection], Any], *, ok: int = 0, failed: str | None = None
    ) -> None:
        """Queue this without waiting; `ok`/`failed` rows are reported once they are durable."""
        self._put(_Op(run, None, ok=ok, failed=failed))

    async def close(self) -> None:
        """Run the queued operations, make them durable and close the file."""
        if self._thread.is_alive():
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
        self._db.close()

    def _put(self, op: _Op) -> None:
        if self._broken is not None:
            raise self._broken
        self._queue.put(op)

    def _soon(self, call: Callable[..., None], *args: Any) -> None:
        # The loop may be closed at shutdown; then nothing waits for the reply.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)

    def _work(self) -> None:
        waiting: list[tuple[_Op, Any]] = []
        due: float | None = None
        ok, failed = 0, dict[str, int]()
        closing = False
        while not closing:
            timeout = None if due is None else max(0.0, due - time.monotonic())
            ops: list[_Op] = []
            with contextlib.suppress(queue.Empty):
                op: _Op | None = self._queue.get(timeout=timeout)
                while op is not None and len(ops) < _MAX_BATCH:
                    ops.append(op)
                    op = self._queue.get_nowait()
                if op is None:
                    closing = True
                elif op is not ops[-1]:
                    ops.append(op)
            try:
                values = self._transact(ops)
            except BaseException as error:
                self._fail(error, ops + [op for op, _ in waiting], closing=closing)
                return
            for op, value in zip(ops, values, strict=True):
                ok += op.ok
                if op.failed is not None:
                    failed[op.failed] = failed.get(op.failed, 0) + 1
                if op.sync:
                    waiting.append((op, value))
                elif op.done is not None:
                    op.done(value, None)
            now = time.monotonic()
            if ops and due is None:
                due = now + self._group_s
            if due is not None and (closing or now >= due or waiting):
                try:
                    self._sync()
                except BaseException as error:
                    self._fail(error, [op for op, _ in waiting], closing=closing)
                    return
                due = None
                if self._on_durable is not None and (ok or failed):
                    self._soon(self._on_durable, Durable(ok, failed))
                ok, failed = 0, {}
                for op, value in waiting:
                    assert op.done is not None
                    op.done(value, None)
                waiting.clear()

    def _transact(self, ops: Sequence[_Op]) -> list[Any]:
        if not ops:
            return []
        self._db.execute("BEGIN IMMEDIATE")
        try:
            values = [op.run(self._db) for op in ops]
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        return values

    def _sync(self) -> None:
        """Make one durable commit, which also makes all earlier ones durable."""
        self._syncs += 1
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('syncs', ?)", (json.dumps(self._syncs),))
        self._db.execute("PRAGMA synchronous=NORMAL")

    def _fail(self, error: BaseException, ops: Sequence[_Op], *, closing: bool) -> None:
        """Fail all operations for good: after EIO, Linux may report success for a second fsync."""
        wrapped = self._broken = ledger_error(error, "the ledger cannot be written")
        for op in ops:
            if op.done is not None:
                op.done(None, wrapped)
        while not closing:  # when closing, the queue gets no further operation
            try:
                late = self._queue.get(timeout=1.0)
            except queue.Empty:
                continue
            if late is None:
                return
            if late.done is not None:
                late.done(None, wrapped)
