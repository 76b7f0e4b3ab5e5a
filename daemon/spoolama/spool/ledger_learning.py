"""The part of a job's ledger that is about learning: rows answered beforehand, sizes, long rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from spoolama.clock import Clock
from spoolama.job.record import Answered, StoredRow
from spoolama.spool.ledger import LedgerThread
from spoolama.spool.ledger_rows import insert_answer, rows_with_attempts, stored_row, stored_rows

__all__ = ["LearningLedger"]


class LearningLedger:
    """What the engine learns from. `JobLedger` is the whole."""

    _thread: LedgerThread
    _clock: Clock

    # --- rows answered alone beforehand ------------------------------------------------------------------

    async def samples(self) -> list[StoredRow]:
        """The rows that were answered alone beforehand, with those answers."""
        return await self._thread.do(
            lambda db: [
                stored_row(row)
                for row in db.execute(
                    stored_rows("samples") + " WHERE a.answer IS NOT NULL ORDER BY r.ordinal"
                )
            ]
        )

    async def ordinals_of(self, ids: Sequence[str]) -> dict[str, int]:
        """The first row of each id that can be asked."""

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
        """An answer given alone beforehand; the row itself goes on."""
        at = self._clock.time()

        def run(db: sqlite3.Connection) -> None:
            insert_answer(db, "samples", answer, at)
            db.execute("DELETE FROM attempts WHERE ordinal=?", (answer.ordinal,))

        self._thread.post(run)

    def settle(self, ordinal: int) -> None:
        """The row's answer given alone is its end: it stands in sight of all the others."""

        def run(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO results SELECT * FROM samples WHERE ordinal=?", (ordinal,))
            db.execute("UPDATE rows SET state='ok' WHERE ordinal=?", (ordinal,))

        self._thread.post(run, ok=1)

    # --- rows too long for the window --------------------------------------------------------------------

    def defer(self, ordinal: int, tokens: int) -> None:
        """The row is too long for the window: it is for the second pass."""

        # Its tries stay: they tell its exact length.
        self._thread.post(
            lambda db: db.execute("UPDATE rows SET deferred=? WHERE ordinal=?", (tokens, ordinal))
        )

    async def deferred(self, model: str | None, after: int, limit: int) -> list[StoredRow]:
        """The next rows that were found too long for the window, beyond ordinal `after`."""

        def run(db: sqlite3.Connection) -> list[StoredRow]:
            cursor = db.execute(
                stored_rows() + " WHERE r.state='pending' AND r.deferred IS NOT NULL"
                " AND r.ordinal > ? AND r.model IS ? ORDER BY r.ordinal LIMIT ?",
                (after, model, limit),
            )
            return rows_with_attempts(db, cursor)

        return await self._thread.do(run)

    async def deferred_sizes(self) -> dict[str | None, list[tuple[int, int]]]:
        """By model: (ordinal, tokens) of the rows that were found too long for the window."""

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
        """The highest segment that was begun; -1 if there is none. Anchors are spread over all of them."""
        row = await self._thread.do(
            lambda db: db.execute(
                "SELECT max(segment) FROM results r WHERE NOT EXISTS"
                " (SELECT 1 FROM samples s WHERE s.ordinal = r.ordinal AND s.at = r.at)"
            ).fetchone()
        )
        return -1 if row[0] is None else int(row[0])

    async def measured_density(self, last_segment: int, prefix_bytes: int) -> tuple[float, int] | None:
        """(Most tokens beyond 16 a message per UTF-8 byte, rows measured), over the first segments.

        A row's own text where two counts allow it, else its whole prompt behind the bare prefix; rows that
        were answered alone beforehand count as well.
        """

        def run(db: sqlite3.Connection) -> tuple[float, int] | None:
            row = db.execute(
                "SELECT max(density), count(*) FROM ("
                " SELECT CASE WHEN own_tokens IS NOT NULL THEN (own_tokens - 16.0) / max(own_bytes, 1)"
                "  ELSE (prompt_tokens - 32.0) / max(own_bytes + :prefix, 1) END AS density FROM results"
                " WHERE segment <= :last AND prompt_tokens IS NOT NULL"
                " AND (own_tokens IS NOT NULL OR sight = '[]')"
                " UNION ALL SELECT (prompt_tokens - 32.0) / max(own_bytes + :prefix, 1) FROM samples"
                " WHERE prompt_tokens IS NOT NULL)",
                {"prefix": prefix_bytes, "last": last_segment},
            ).fetchone()
            return None if row[0] is None else (row[0], row[1])

        return await self._thread.do(run)
