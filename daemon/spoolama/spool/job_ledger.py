"""The job's ledger as the intake and the engine use it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spoolama.clock import Clock
from spoolama.errors import shortened
from spoolama.job.record import Answered, Failed, Ranges, StoredRow
from spoolama.spool.ledger import Durable, LedgerThread
from spoolama.spool.ledger_effect import EffectLedger
from spoolama.spool.ledger_learning import LearningLedger
from spoolama.spool.ledger_rows import (
    NewRow,
    insert_answer,
    insert_failure,
    insert_row,
    rows_with_attempts,
    stored_row,
    stored_rows,
)

__all__ = ["JobLedger", "NewRow"]


class JobLedger(LearningLedger, EffectLedger):
    """A job's ledger, open for writing.

    Args:
        path: The SQLite file.
        clock: For the time stored with each result.
        on_durable: Called in the event loop with rows that now survive a power failure.
        group_s: Maximum time, in seconds, before an answer is on the disk.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        on_durable: Callable[[Durable], None] | None = None,
        *,
        group_s: float = 0.1,
    ) -> None:
        self._clock = clock
        self._thread = LedgerThread(path, group_s=group_s, on_durable=on_durable)

    async def close(self) -> None:
        """Make everything durable and close the file."""
        await self._thread.close()

    async def flush(self) -> None:
        """Return when everything written so far is on disk."""
        await self._thread.do(lambda _: None, sync=True)

    # --- notes -------------------------------------------------------------------------------------------

    async def meta(self, key: str, default: Any = None) -> Any:
        """The value stored under this key."""

        def run(db: sqlite3.Connection) -> Any:
            row = db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
            return default if row is None else json.loads(row[0])

        return await self._thread.do(run)

    async def note(self, **values: Any) -> None:
        """Store these values (JSON) durably."""
        pairs = [(key, json.dumps(value)) for key, value in values.items()]
        await self._thread.do(
            lambda db: db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", pairs), sync=True
        )

    async def add(self, key: str, amount: float) -> None:
        """Add to the number stored under this key (0 if absent)."""

        def run(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
            total = amount + (json.loads(row[0]) if row else 0)
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(total)))

        await self._thread.do(run)

    # --- intake ------------------------------------------------------------------------------------------

    async def begin_intake(self) -> None:
        """Delete an input that was read in part; no row of it has been sent yet."""
        await self._thread.do(
            lambda db: [
                db.execute(f"DELETE FROM {t}")  # noqa: S608 - constants
                for t in (
                    "rows",
                    "failures",
                    "attempts",
                    "results",
                    "samples",
                    "trials",
                    "audited_segments",
                    "replaced",
                )
            ]
        )

    async def take_in(self, rows: Sequence[NewRow]) -> None:
        """Store a batch of rows. Unreadable rows and rows with a duplicate id fail here."""
        now = self._clock.time()

        def run(db: sqlite3.Connection) -> None:
            for new in rows:
                insert_row(db, new, now)

        await self._thread.do(run)

    async def set_apart(self) -> None:
        """OpenAI lines: rows of the most common shape share conversations, all others are isolated."""

        def run(db: sqlite3.Connection) -> None:
            main = db.execute(
                "SELECT shape FROM rows WHERE shape IS NOT NULL"
                " GROUP BY shape ORDER BY count(*) DESC, min(ordinal) LIMIT 1"
            ).fetchone()
            db.execute("UPDATE rows SET isolated = shape IS NOT ?", (main[0] if main else "",))

        await self._thread.do(run)

    # --- what the engine reads ---------------------------------------------------------------------------

    async def counts(self) -> dict[str, int]:
        """Rows by state."""

        def run(db: sqlite3.Connection) -> dict[str, int]:
            counts = dict.fromkeys(("pending", "ok", "failed", "skipped"), 0)
            counts.update(db.execute("SELECT state, count(*) FROM rows GROUP BY state"))
            return counts

        return await self._thread.do(run)

    async def failures(self) -> dict[str, int]:
        """Number of failed rows by error code."""
        return await self._thread.do(
            lambda db: dict(db.execute("SELECT code, count(*) FROM failures GROUP BY code"))
        )

    async def first_failures(self, number: int) -> list[tuple[str, str]]:
        """Error code and message of the first rows of the file if all of them failed, else an empty list."""

        def run(db: sqlite3.Connection) -> list[tuple[str, str]]:
            rows = db.execute(
                "SELECT f.code, f.message FROM rows LEFT JOIN failures f USING (ordinal)"
                " ORDER BY ordinal LIMIT ?",
                (number,),
            ).fetchall()
            return [] if any(code is None for code, _ in rows) else rows

        return await self._thread.do(run)

    async def models(self) -> list[str | None]:
        """The models that pending rows name, in the order of their first row; None is the job's own."""
        return await self._thread.do(
            lambda db: [
                m
                for (m,) in db.execute(
                    "SELECT model FROM rows WHERE state='pending' AND deferred IS NULL"
                    " GROUP BY model ORDER BY min(ordinal)"
                )
            ]
        )

    async def pending_segments(
        self, after: int, segment_rows: int, model: str | None, limit: int
    ) -> list[int]:
        """Numbers of the next segments after `after` with pending rows, ascending."""

        def run(db: sqlite3.Connection) -> list[int]:
            found: list[int] = []
            start = (after + 1) * segment_rows
            while len(found) < limit:
                row = db.execute(
                    "SELECT ordinal FROM rows WHERE state='pending' AND deferred IS NULL AND ordinal >= ?"
                    " AND model IS ?"
                    " ORDER BY ordinal LIMIT 1",
                    (start, model),
                ).fetchone()
                if row is None:
                    break
                found.append(row[0] // segment_rows)
                start = (found[-1] + 1) * segment_rows
            return found

        return await self._thread.do(run)

    async def pending(self, first: int, last: int, model: str | None, limit: int) -> list[StoredRow]:
        """Pending rows with ordinals from `first` to `last`, with their earlier attempts.

        At most `limit`, fewer if they are large. A large row is returned alone and without its fields;
        `rows_of` reads those. An empty list means that no row is left.
        """

        def run(db: sqlite3.Connection) -> list[StoredRow]:
            cursor = db.execute(
                stored_rows() + " WHERE r.state='pending' AND r.deferred IS NULL"
                " AND r.ordinal BETWEEN ? AND ? AND r.model IS ? ORDER BY r.ordinal LIMIT ?",
                (first, last, model, limit),
            )
            return rows_with_attempts(db, cursor)

        return await self._thread.do(run)

    async def last_turn(self, segment: int) -> StoredRow | None:
        """The latest row of the segment that is part of its conversation, or None."""

        def run(db: sqlite3.Connection) -> StoredRow | None:
            row = db.execute(
                stored_rows() + " WHERE a.segment=? AND NOT a.isolated ORDER BY r.ordinal DESC LIMIT 1",
                (segment,),
            ).fetchone()
            return None if row is None else stored_row(row)

        return await self._thread.do(run)

    async def first_prompt_tokens(self, segment: int) -> int | None:
        """Prompt tokens of the segment's first row, which follows the prefix directly."""

        def run(db: sqlite3.Connection) -> int | None:
            row = db.execute(
                "SELECT prompt_tokens FROM results WHERE segment=? AND NOT isolated"
                " AND prompt_tokens IS NOT NULL ORDER BY ordinal LIMIT 1",
                (segment,),
            ).fetchone()
            return None if row is None else row[0]

        return await self._thread.do(run)

    async def turns(self, ranges: Ranges) -> list[StoredRow]:
        """The answered rows in these ranges, in order."""

        def run(db: sqlite3.Connection) -> list[StoredRow]:
            return [
                stored_row(row)
                for first, last in ranges
                for row in db.execute(
                    stored_rows() + " WHERE r.state='ok' AND NOT a.isolated AND r.ordinal BETWEEN ? AND ?"
                    " ORDER BY r.ordinal",
                    (first, last),
                )
            ]

        return await self._thread.do(run)

    # --- what the engine writes --------------------------------------------------------------------------

    async def begin(self, ordinal: int, number: int) -> None:
        """Record that attempt `number` of a row is about to be sent. Survives a kill, not a power failure."""
        at = self._clock.time()
        await self._thread.do(
            lambda db: db.execute(
                "INSERT OR REPLACE INTO attempts (ordinal, number, at) VALUES (?, ?, ?)",
                (ordinal, number, at),
            )
        )

    def end(
        self,
        ordinal: int,
        number: int,
        code: str,
        message: str,
        *,
        counted: bool,
        isolated_tokens: int | None = None,
    ) -> None:
        """Record how an attempt failed; the row stays pending."""
        self._thread.post(
            lambda db: db.execute(
                "UPDATE attempts SET code=?, message=?, counted=?, isolated_tokens=?"
                " WHERE ordinal=? AND number=?",
                (code, shortened(message), counted, isolated_tokens, ordinal, number),
            )
        )

    def answered(self, answer: Answered) -> None:
        """Record the row's answer; the row is finished."""
        at = self._clock.time()

        def run(db: sqlite3.Connection) -> None:
            insert_answer(db, "results", answer, at)
            db.execute("UPDATE rows SET state='ok' WHERE ordinal=?", (answer.ordinal,))
            db.execute("DELETE FROM attempts WHERE ordinal=?", (answer.ordinal,))

        self._thread.post(run, ok=1)

    def failed(self, failure: Failed) -> None:
        """Record the row's error; the row is finished."""
        at = self._clock.time()

        def run(db: sqlite3.Connection) -> None:
            insert_failure(db, failure, at)
            db.execute("UPDATE rows SET state='failed' WHERE ordinal=?", (failure.ordinal,))

        self._thread.post(run, failed=failure.code)

    async def skip_rest(self) -> int:
        """Mark all pending rows as skipped because the job ended early; returns their number."""

        def run(db: sqlite3.Connection) -> int:
            return db.execute("UPDATE rows SET state='skipped' WHERE state='pending'").rowcount

        return await self._thread.do(run, sync=True)

    async def plans(self) -> list[dict[str, Any]]:
        """The plan versions, oldest first."""
        return await self._thread.do(
            lambda db: [json.loads(b) for (b,) in db.execute("SELECT body FROM plan ORDER BY version")]
        )

    async def add_plan(self, version: int, body: Mapping[str, Any]) -> None:
        """Write a plan version durably. Call this before the plan is used."""
        text = json.dumps(body)
        await self._thread.do(
            lambda db: db.execute("INSERT INTO plan VALUES (?, ?)", (version, text)), sync=True
        )
