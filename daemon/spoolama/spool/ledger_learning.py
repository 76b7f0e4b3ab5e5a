"""Ledger operations for anchor candidates, token sizes and long rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from spoolama.clock import Clock
from spoolama.job.record import Answered, StoredRow
from spoolama.spool.ledger import LedgerThread
from spoolama.spool.ledger_rows import insert_answer, rows_with_attempts, stored_row, stored_rows

__all__ = ["LearningLedger"]


class LearningLedger:
    """The part of `JobLedger` for anchor candidates, token sizes and long rows."""

    _thread: LedgerThread
    _clock: Clock

    # --- rows answered in isolation beforehand -----------------------------------------------------------

    async def samples(self) -> list[StoredRow]:
        """The rows that were answered in isolation beforehand, with those answers."""
        return await self._thread.do(
            lambda db: [
                stored_row(row)
                for row in db.execute(
                    stored_rows("samples") + " WHERE a.answer IS NOT NULL ORDER BY r.ordinal"
                )
            ]
        )

    async def ordinals_of(self, ids: Sequence[str]) -> dict[str, int]:
        """The ordinal of the first readable row of each id."""

        def run(db: sqlite3.Connection) -> dict[str, int]:
            found: dict[str, int] = {}
            for name in ids:
                row = db.execute(
                    "SELECT min(ordinal) FROM rows WHERE id=? AND fields IS NOT NULL", (name,)
                ).fetchone()
                if row[0] is not None:
                    found[name] = row[0]
            return found

        return await self._thread.do(run)

    def sampled(self, answer: Answered) -> None:
        """Record an answer given in isolation beforehand; the row stays pending."""
        at = self._clock.time()

        def run(db: sqlite3.Connection) -> None:
            insert_answer(db, "samples", answer, at)
            db.execute("DELETE FROM attempts WHERE ordinal=?", (answer.ordinal,))

        self._thread.post(run)

    def settle(self, ordinal: int) -> None:
        """Make the row's isolated answer its result: it is an anchor, so all other rows see it."""

        def run(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO results SELECT * FROM samples WHERE ordinal=?", (ordinal,))
            db.execute("UPDATE rows SET state='ok' WHERE ordinal=?", (ordinal,))

        self._thread.post(run, ok=1)

    # --- rows too long for the context window ------------------------------------------------------------

    def defer(self, ordinal: int, tokens: int) -> None:
        """Leave the row to the second pass: it does not fit the context window."""

        # Its attempts stay: they hold its exact length.
        self._thread.post(
            lambda db: db.execute("UPDATE rows SET deferred=? WHERE ordinal=?", (tokens, ordinal))
        )

    async def deferred(self, model: str | None, after: int, limit: int) -> list[StoredRow]:
        """The next deferred rows beyond ordinal `after`."""

        def run(db: sqlite3.Connection) -> list[StoredRow]:
            cursor = db.execute(
                stored_rows() + " WHERE r.state='pending' AND r.deferred IS NOT NULL"
                " AND r.ordinal > ? AND r.model IS ? ORDER BY r.ordinal LIMIT ?",
                (after, model, limit),
            )
            return rows_with_attempts(db, cursor)

        return await self._thread.do(run)

    async def deferred_sizes(self) -> dict[str | None, list[tuple[int, int]]]:
        """(Ordinal, tokens) of the deferred rows, by model."""

        def run(db: sqlite3.Connection) -> dict[str | None, list[tuple[int, int]]]:
            found: dict[str | None, list[tuple[int, int]]] = {}
            for model, ordinal, tokens in db.execute(
                "SELECT model, ordinal, deferred FROM rows WHERE state='pending' AND deferred IS NOT NULL"
                " ORDER BY ordinal"
            ):
                found.setdefault(model, []).append((ordinal, tokens))
            return found

        return await self._thread.do(run)

    # --- sizes -------------------------------------------------------------------------------------------

    async def last_segment(self) -> int:
        """The highest segment that has begun, or -1. Anchors do not count: they come from all segments."""
        row = await self._thread.do(
            lambda db: db.execute(
                "SELECT max(segment) FROM results r WHERE NOT EXISTS"
                " (SELECT 1 FROM samples s WHERE s.ordinal = r.ordinal AND s.at = r.at)"
            ).fetchone()
        )
        return -1 if row[0] is None else int(row[0])

    async def measured_density(self, last_segment: int, prefix_bytes: int) -> tuple[float, int] | None:
        """(Maximum tokens per UTF-8 byte beyond 16 tokens a message, rows measured), over the first segments.

        Uses the row's own text if two token counts allow it, else its whole prompt behind the prefix. Rows
        that were answered in isolation beforehand count as well.
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
