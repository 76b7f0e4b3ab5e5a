"""Writes the ledger of a job, and reads what the next rows need, for the intake and the engine."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spoolama.clock import Clock
from spoolama.errors import shortened
from spoolama.job.row import Answered, Failed, Ranges, RowRequest, StoredRow
from spoolama.spool.ledger_rows import (
    NewRow,
    count_failures,
    count_states,
    insert_answer,
    insert_failure,
    insert_row,
    only_column,
    read_meta,
    read_plans,
    rows_with_attempts,
    stored_row,
    stored_rows,
)
from spoolama.spool.ledger_thread import Durable, LedgerThread

_COMPARED = 40_000
"""Characters of an answer that are compared; all answers of a segment are in memory at once."""

_INPUT_TABLES = (
    "rows",
    "failures",
    "attempts",
    "results",
    "samples",
    "trials",
    "audited_segments",
    "replaced",
)


class JobLedger:
    """A job's ledger, open for writing. Use it as a context manager, or close it.

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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Make everything durable and close the file."""
        await self._thread.close()

    async def flush(self) -> None:
        """Return when everything written so far is on disk."""
        await self._thread.do(lambda _: None, sync=True)

    async def _all(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """All result rows of a query."""
        return await self._thread.do(lambda db: db.execute(sql, parameters).fetchall())

    async def _stored(self, sql: str, parameters: Sequence[Any] = ()) -> list[StoredRow]:
        """The rows that a query with `stored_rows` returns."""
        return await self._thread.do(lambda db: [stored_row(row) for row in db.execute(sql, parameters)])

    async def _with_attempts(self, sql: str, parameters: Sequence[Any]) -> list[StoredRow]:
        """The first of these rows, with their attempts; see `rows_with_attempts`."""
        return await self._thread.do(lambda db: rows_with_attempts(db, db.execute(sql, parameters)))

    async def _compared(self, sql: str, parameters: Sequence[Any], column: str | None) -> list[StoredRow]:
        """The rows of a query with `stored_rows`; of their fields they have only this column."""
        return await self._thread.do(
            lambda db: [only_column(stored_row(row), column) for row in db.execute(sql, parameters)]
        )

    # --- notes -------------------------------------------------------------------------------------------

    async def meta(self, key: str, default: Any = None) -> Any:
        """The value stored under this key."""
        return await self._thread.do(lambda db: read_meta(db, key, default))

    async def note(self, **values: Any) -> None:
        """Store these values (JSON) durably."""
        pairs = [(key, json.dumps(value)) for key, value in values.items()]
        await self._thread.do(
            lambda db: db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", pairs), sync=True
        )

    async def add(self, key: str, amount: float) -> None:
        """Add to the number stored under this key (0 if absent)."""

        def run(db: sqlite3.Connection) -> None:
            total = amount + read_meta(db, key, 0)
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(total)))

        await self._thread.do(run)

    # --- intake ------------------------------------------------------------------------------------------

    async def begin_intake(self) -> None:
        """Delete an input that was read in part; no row of it has been sent yet."""
        await self._thread.do(
            lambda db: [db.execute(f"DELETE FROM {table}") for table in _INPUT_TABLES]  # noqa: S608 - constants
        )

    async def take_in(self, rows: Sequence[NewRow]) -> None:
        """Store a batch of rows. Unreadable rows and rows with a duplicate id fail here."""
        now = self._clock.time()

        def run(db: sqlite3.Connection) -> None:
            for new in rows:
                insert_row(db, new, now)

        await self._thread.do(run)

    async def add_requests(self, requests: Mapping[int, RowRequest]) -> None:
        """Store the requests of rows, by ordinal, that an earlier version stored without them."""
        pairs = [(request.to_json(), ordinal) for ordinal, request in requests.items()]
        await self._thread.do(lambda db: db.executemany("UPDATE rows SET request=? WHERE ordinal=?", pairs))

    async def isolate_other_shapes(self) -> None:
        """Isolate the rows with their own requests, except those of the most common shape."""

        def run(db: sqlite3.Connection) -> None:
            main = db.execute(
                "SELECT shape FROM rows WHERE shape IS NOT NULL"
                " GROUP BY shape ORDER BY count(*) DESC, min(ordinal) LIMIT 1"
            ).fetchone()
            db.execute("UPDATE rows SET isolated = shape IS NOT ?", (main[0] if main else "",))

        await self._thread.do(run)

    # --- what the engine reads ---------------------------------------------------------------------------

    async def counts(self) -> dict[str, int]:
        """Number of rows by state."""
        return await self._thread.do(count_states)

    async def failures(self) -> dict[str, int]:
        """Number of failed rows by error code."""
        return await self._thread.do(count_failures)

    async def first_failures(self, number: int) -> list[tuple[str, str]]:
        """Error code and message of the first rows of the file if all of them failed, else an empty list."""
        rows: list[tuple[str, str]] = await self._all(
            "SELECT f.code, f.message FROM rows LEFT JOIN failures f USING (ordinal)"
            " ORDER BY ordinal LIMIT ?",
            (number,),
        )
        return [] if any(code is None for code, _ in rows) else rows

    async def models(self) -> list[str | None]:
        """The models that pending rows name, in the order of their first row; None is the job's own."""
        rows = await self._all(
            "SELECT model FROM rows WHERE state='pending' AND deferred IS NULL"
            " GROUP BY model ORDER BY min(ordinal)"
        )
        return [model for (model,) in rows]

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
                    " AND model IS ? ORDER BY ordinal LIMIT 1",
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

        At most `limit`, fewer if they are large. A large row is returned alone and without its content;
        `rows_of` reads that. An empty list means that no row is left.
        """
        return await self._with_attempts(
            stored_rows() + " WHERE r.state='pending' AND r.deferred IS NULL"
            " AND r.ordinal BETWEEN ? AND ? AND r.model IS ? ORDER BY r.ordinal LIMIT ?",
            (first, last, model, limit),
        )

    async def rows_of(self, ordinals: Sequence[int]) -> list[StoredRow]:
        """These rows with their results, in order."""

        def run(db: sqlite3.Connection) -> list[StoredRow]:
            sql = stored_rows() + " WHERE r.ordinal=?"
            found = (db.execute(sql, (ordinal,)).fetchone() for ordinal in sorted(ordinals))
            return [stored_row(row) for row in found if row is not None]

        return await self._thread.do(run)

    async def ordinals_of(self, ids: Sequence[str]) -> dict[str, int]:
        """The ordinal of the first readable row of each id."""

        def run(db: sqlite3.Connection) -> dict[str, int]:
            sql = "SELECT min(ordinal) FROM rows WHERE id=? AND fields IS NOT NULL"
            found = {name: db.execute(sql, (name,)).fetchone()[0] for name in ids}
            return {name: ordinal for name, ordinal in found.items() if ordinal is not None}

        return await self._thread.do(run)

    async def last_turn(self, segment: int) -> StoredRow | None:
        """The latest row of the segment that is part of its conversation, or None."""
        rows = await self._stored(
            stored_rows() + " WHERE a.segment=? AND NOT a.isolated ORDER BY r.ordinal DESC LIMIT 1",
            (segment,),
        )
        return rows[0] if rows else None

    async def first_prompt_tokens(self, segment: int) -> int | None:
        """Prompt tokens of the segment's first row, which follows the prefix directly."""
        rows = await self._all(
            "SELECT prompt_tokens FROM results WHERE segment=? AND NOT isolated"
            " AND prompt_tokens IS NOT NULL ORDER BY ordinal LIMIT 1",
            (segment,),
        )
        return rows[0][0] if rows else None

    async def turns(self, ranges: Ranges) -> list[StoredRow]:
        """The answered rows in these ranges, in order."""
        sql = stored_rows() + (
            " WHERE r.state='ok' AND NOT a.isolated AND r.ordinal BETWEEN ? AND ? ORDER BY r.ordinal"
        )
        return await self._thread.do(
            lambda db: [stored_row(row) for ends in ranges for row in db.execute(sql, ends)]
        )

    async def last_segment(self) -> int:
        """The highest segment that has begun, or -1. Anchors do not count: they come from all segments."""
        ((last,),) = await self._all(
            "SELECT max(segment) FROM results r WHERE NOT EXISTS"
            " (SELECT 1 FROM samples s WHERE s.ordinal = r.ordinal AND s.at = r.at)"
        )
        return -1 if last is None else int(last)

    async def measured_density(self, last_segment: int, prefix_bytes: int) -> tuple[float, int] | None:
        """(Maximum tokens per UTF-8 byte beyond 16 tokens a message, rows measured), over the first segments.

        Uses the row's own text if two token counts allow it, else its whole prompt behind the prefix. Samples
        count as well.
        """

        def run(db: sqlite3.Connection) -> tuple[float, int] | None:
            row = db.execute(
                "SELECT max(density), count(*) FROM ("
                " SELECT CASE WHEN own_tokens IS NOT NULL THEN (own_tokens - 16.0) / max(own_bytes, 1)"
                "  ELSE (prompt_tokens - 32.0) / max(own_bytes + :prefix, 1) END AS density FROM results"
                " WHERE segment <= :last AND prompt_tokens IS NOT NULL"
                " AND (own_tokens IS NOT NULL OR visible_rows = '[]')"
                " UNION ALL SELECT (prompt_tokens - 32.0) / max(own_bytes + :prefix, 1) FROM samples"
                " WHERE prompt_tokens IS NOT NULL)",
                {"prefix": prefix_bytes, "last": last_segment},
            ).fetchone()
            return None if row[0] is None else (row[0], row[1])

        return await self._thread.do(run)

    # --- what the engine writes --------------------------------------------------------------------------

    async def begin(self, ordinal: int, number: int) -> None:
        """Record that attempt `number` of a row is about to be sent. Survives a kill, not a power failure."""
        values = (ordinal, number, self._clock.time())
        await self._thread.do(
            lambda db: db.execute(
                "INSERT OR REPLACE INTO attempts (ordinal, number, at) VALUES (?,?,?)", values
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
        values = (code, shortened(message), counted, isolated_tokens, ordinal, number)
        self._thread.post(
            lambda db: db.execute(
                "UPDATE attempts SET code=?, message=?, counted=?, isolated_tokens=?"
                " WHERE ordinal=? AND number=?",
                values,
            )
        )

    def answered(self, answer: Answered) -> None:
        """Record the row's answer; the row is finished."""
        at = self._clock.time()

        def run(db: sqlite3.Connection) -> None:
            insert_answer(db, "results", answer, at)
            db.execute("UPDATE rows SET state='ok' WHERE ordinal=?", (answer.ordinal,))
            _delete_attempts(db, answer.ordinal)

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
        sql = "UPDATE rows SET state='skipped' WHERE state='pending'"
        return await self._thread.do(lambda db: db.execute(sql).rowcount, sync=True)

    async def plans(self) -> list[dict[str, Any]]:
        """The plan versions, oldest first."""
        return await self._thread.do(read_plans)

    async def add_plan(self, version: int, body: Mapping[str, Any]) -> None:
        """Write a plan version durably. Call this before the plan is used."""
        values = (version, json.dumps(body))
        await self._thread.do(lambda db: db.execute("INSERT INTO plan VALUES (?, ?)", values), sync=True)

    # --- rows too long for the context window ------------------------------------------------------------

    def defer(self, ordinal: int, tokens: int) -> None:
        """Leave the row to the second pass: it does not fit the context window."""
        # Its attempts stay: they hold its exact length.
        self._thread.post(
            lambda db: db.execute("UPDATE rows SET deferred=? WHERE ordinal=?", (tokens, ordinal))
        )

    async def deferred(self, model: str | None, after: int, limit: int) -> list[StoredRow]:
        """The next deferred rows beyond ordinal `after`."""
        return await self._with_attempts(
            stored_rows() + " WHERE r.state='pending' AND r.deferred IS NOT NULL"
            " AND r.ordinal > ? AND r.model IS ? ORDER BY r.ordinal LIMIT ?",
            (after, model, limit),
        )

    async def deferred_sizes(self) -> dict[str | None, list[tuple[int, int]]]:
        """(Ordinal, tokens) of the deferred rows, by model."""
        found: dict[str | None, list[tuple[int, int]]] = {}
        for model, ordinal, tokens in await self._all(
            "SELECT model, ordinal, deferred FROM rows WHERE state='pending' AND deferred IS NOT NULL"
            " ORDER BY ordinal"
        ):
            found.setdefault(model, []).append((ordinal, tokens))
        return found

    # --- samples: rows answered in isolation before the first segment ------------------------------------

    async def samples(self) -> list[StoredRow]:
        """The sampled rows, with the answers of the sample."""
        return await self._stored(stored_rows("samples") + " WHERE a.answer IS NOT NULL ORDER BY r.ordinal")

    def sampled(self, answer: Answered) -> None:
        """Record the answer of a sampled row; the row stays pending."""
        at = self._clock.time()

        def run(db: sqlite3.Connection) -> None:
            insert_answer(db, "samples", answer, at)
            _delete_attempts(db, answer.ordinal)

        self._thread.post(run)

    def use_sample(self, ordinal: int) -> None:
        """Make the row's answer of the sample its result: it is an anchor, so all other rows see it."""

        def run(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO results SELECT * FROM samples WHERE ordinal=?", (ordinal,))
            db.execute("UPDATE rows SET state='ok' WHERE ordinal=?", (ordinal,))

        self._thread.post(run, ok=1)

    # --- trials: answers that pilot and audit compare ----------------------------------------------------

    def add_trial(self, kind: str, answer: Answered) -> None:
        """Record an answer for a comparison; the state of the row does not change.

        Args:
            kind: What it is for: a form of the pilot, or a part of the audit (`compare/audit_phase.py`).
            answer: The answer. A second one of the same kind takes the place of the first.
        """
        at = self._clock.time()

        def run(db: sqlite3.Connection) -> None:
            insert_answer(db, "trials", answer, at, kind=kind)
            _delete_attempts(db, answer.ordinal)

        self._thread.post(run)

    def skip_trial(self, ordinal: int) -> None:
        """Record that a row could not be answered for a comparison; its state does not change."""
        self._thread.post(lambda db: _delete_attempts(db, ordinal))

    async def trials(self, kind: str, column: str | None = None) -> list[StoredRow]:
        """The rows answered for this comparison, with those answers; only this column of their fields."""
        sql = stored_rows("trials", most_characters=_COMPARED) + " WHERE a.kind=? ORDER BY r.ordinal"
        return await self._compared(sql, (kind,), column)

    async def isolated_or_retried(self, kind: str) -> list[int]:
        """Rows of this comparison that were not answered in their conversation at the first attempt."""
        rows = await self._all(
            "SELECT ordinal FROM trials WHERE kind=? AND (isolated OR attempts > 1) ORDER BY ordinal", (kind,)
        )
        return [ordinal for (ordinal,) in rows]

    async def conversation_answers(self, kind: str, column: str | None = None) -> list[StoredRow]:
        """The rows of this comparison with the answers of their conversation, withdrawn or not.

        Of their fields they have only this column.
        """
        where = " WHERE a.visible_rows != '[]' AND r.ordinal IN (SELECT ordinal FROM trials WHERE kind=?)"
        found: dict[int, StoredRow] = {}
        for table in ("results", "replaced"):  # a withdrawn answer is the answer of the conversation
            sql = stored_rows(table, most_characters=_COMPARED) + where
            found |= {row.ordinal: row for row in await self._compared(sql, (kind,), column)}
        return [found[ordinal] for ordinal in sorted(found)]

    async def has_conversation_answers(self) -> bool:
        """Whether a result was answered with other rows in its prompt."""
        return bool(await self._all("SELECT 1 FROM results WHERE visible_rows != '[]' LIMIT 1"))

    async def segment_answers(self, segment: int, column: str | None = None) -> list[StoredRow]:
        """The rows of a segment that were answered in its conversation with other rows in the prompt.

        Of their fields they have only this column.
        """
        sql = stored_rows(most_characters=_COMPARED) + (
            " WHERE a.segment=? AND a.visible_rows != '[]' AND NOT a.isolated ORDER BY r.ordinal"
        )
        return await self._compared(sql, (segment,), column)

    # --- audited segments --------------------------------------------------------------------------------

    async def unaudited(self) -> list[int]:
        """Segments with answers in conversation that were not audited yet."""
        rows = await self._all(
            "SELECT DISTINCT segment FROM results WHERE visible_rows != '[]' AND NOT isolated"
            " AND segment NOT IN (SELECT segment FROM audited_segments) ORDER BY segment"
        )
        return [segment for (segment,) in rows]

    async def audited(self, segment: int, verdict: Mapping[str, Any] | None) -> None:
        """Record that a segment was audited, with a verdict if it looked odd."""
        await self._thread.do(lambda db: _add_verdict(db, segment, verdict), sync=True)

    async def withdraw_answers(self, segment: int, verdict: Mapping[str, Any]) -> int:
        """Withdraw the segment's answers in conversation; returns their number.

        The answers are kept in `replaced`, and their rows are asked again in isolation. This is one
        transaction: a kill leaves it done or not begun.
        """

        def run(db: sqlite3.Connection) -> int:
            where = "WHERE segment=? AND visible_rows != '[]'"
            db.execute(f"INSERT INTO replaced SELECT * FROM results {where}", (segment,))  # noqa: S608 - a constant
            ordinals = f"(SELECT ordinal FROM results {where})"  # noqa: S608 - likewise
            sql = f"UPDATE rows SET state='pending', isolated=1 WHERE ordinal IN {ordinals}"  # noqa: S608 - likewise
            db.execute(sql, (segment,))
            rows = db.execute(f"DELETE FROM results {where}", (segment,)).rowcount  # noqa: S608 - likewise
            _add_verdict(db, segment, verdict)
            return rows

        rows = await self._thread.do(run, sync=True)
        self._thread.post(lambda _: None, ok=-rows)
        return rows

    async def verdicts(self) -> list[dict[str, Any]]:
        """The verdicts on segments that looked odd, in order."""
        rows = await self._all(
            "SELECT verdict FROM audited_segments WHERE verdict != 'null' ORDER BY segment"
        )
        return [json.loads(verdict) for (verdict,) in rows]

    async def forget_audits(self) -> None:
        """Have the segments audited again that were found unharmed without a verdict."""
        sql = "DELETE FROM audited_segments WHERE verdict='null'"
        await self._thread.do(lambda db: db.execute(sql), sync=True)


def _add_verdict(db: sqlite3.Connection, segment: int, verdict: Mapping[str, Any] | None) -> None:
    db.execute("INSERT OR REPLACE INTO audited_segments VALUES (?, ?)", (segment, json.dumps(verdict)))


def _delete_attempts(db: sqlite3.Connection, ordinal: int) -> None:
    db.execute("DELETE FROM attempts WHERE ordinal=?", (ordinal,))
