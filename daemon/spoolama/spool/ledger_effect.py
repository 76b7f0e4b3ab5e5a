"""Ledger operations for pilot and audit, which compare answers."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from spoolama.clock import Clock
from spoolama.job.record import Answered, StoredRow
from spoolama.spool.ledger import LedgerThread
from spoolama.spool.ledger_rows import insert_answer, only_column, stored_row, stored_rows

__all__ = ["EffectLedger"]


_COMPARED = 40_000
"""Characters of an answer that are compared; all answers of a segment are in memory at once."""


class EffectLedger:
    """The part of `JobLedger` for answers that are compared, and for the results of comparisons."""

    _thread: LedgerThread
    _clock: Clock

    def tried(self, kind: str, answer: Answered) -> None:
        """Record an answer for a comparison; the state of the row does not change.

        Args:
            kind: What it is for: a form of the pilot, or a part of the audit (`compare/audit_phase.py`).
            answer: The answer. A second one of the same kind takes the place of the first.
        """
        at = self._clock.time()

        def run(db: sqlite3.Connection) -> None:
            insert_answer(db, "trials", answer, at, kind=kind)
            db.execute("DELETE FROM attempts WHERE ordinal=?", (answer.ordinal,))

        self._thread.post(run)

    def untried(self, ordinal: int) -> None:
        """A row could not be answered for a comparison; its state does not change."""
        self._thread.post(lambda db: db.execute("DELETE FROM attempts WHERE ordinal=?", (ordinal,)))

    async def trials(self, kind: str, column: str | None = None) -> list[StoredRow]:
        """The rows answered for this comparison, with those answers; only this column of their fields."""
        return await self._thread.do(
            lambda db: [
                only_column(stored_row(row), column)
                for row in db.execute(
                    stored_rows("trials", most_characters=_COMPARED) + " WHERE a.kind=? ORDER BY r.ordinal",
                    (kind,),
                )
            ]
        )

    async def strays(self, kind: str) -> list[int]:
        """Rows of this comparison that were not answered in their conversation at the first attempt."""
        return await self._thread.do(
            lambda db: [
                n
                for (n,) in db.execute(
                    "SELECT ordinal FROM trials WHERE kind=? AND (isolated OR attempts > 1) ORDER BY ordinal",
                    (kind,),
                )
            ]
        )

    async def any_in_company(self) -> bool:
        """Whether a result was answered with other rows in its prompt."""
        return await self._thread.do(
            lambda db: (
                db.execute("SELECT 1 FROM results WHERE visible_rows != '[]' LIMIT 1").fetchone() is not None
            )
        )

    async def given_in_company(self, kind: str, column: str | None = None) -> list[StoredRow]:
        """The rows of this comparison with the answers of their conversation, taken back or not.

        Of their fields they have only this column.
        """
        compared = " WHERE a.visible_rows != '[]' AND r.ordinal IN (SELECT ordinal FROM trials WHERE kind=?)"

        def run(db: sqlite3.Connection) -> list[StoredRow]:
            found = {}
            for answers in ("results", "replaced"):  # what was taken back is what the conversation gave
                sql = stored_rows(answers, most_characters=_COMPARED) + compared
                for row in db.execute(sql, (kind,)):
                    found[row[0]] = only_column(stored_row(row), column)
            return [found[n] for n in sorted(found)]

        return await self._thread.do(run)

    async def company_of(self, segment: int, column: str | None = None) -> list[StoredRow]:
        """The rows of a segment that were answered in its conversation with other rows in the prompt.

        They have only this column of their fields.
        """
        return await self._thread.do(
            lambda db: [
                only_column(stored_row(row), column)
                for row in db.execute(
                    stored_rows(most_characters=_COMPARED)
                    + " WHERE a.segment=? AND a.visible_rows != '[]' AND NOT a.isolated"
                    " ORDER BY r.ordinal",
                    (segment,),
                )
            ]
        )

    async def rows_of(self, ordinals: Sequence[int]) -> list[StoredRow]:
        """These rows with their results, in order."""

        def run(db: sqlite3.Connection) -> list[StoredRow]:
            found = (
                db.execute(stored_rows() + " WHERE r.ordinal=?", (n,)).fetchone() for n in sorted(ordinals)
            )
            return [stored_row(row) for row in found if row is not None]

        return await self._thread.do(run)

    async def unaudited(self) -> list[int]:
        """Segments with answers in conversation that were not audited yet."""
        return await self._thread.do(
            lambda db: [
                n
                for (n,) in db.execute(
                    "SELECT DISTINCT segment FROM results WHERE visible_rows != '[]' AND NOT isolated"
                    " AND segment NOT IN (SELECT segment FROM audited_segments) ORDER BY segment"
                )
            ]
        )

    async def audited(self, segment: int, verdict: Mapping[str, Any] | None) -> None:
        """A segment was audited; with a verdict, if it was judged by itself."""
        text = json.dumps(verdict)
        await self._thread.do(
            lambda db: db.execute("INSERT OR REPLACE INTO audited_segments VALUES (?, ?)", (segment, text)),
            sync=True,
        )

    async def redo(self, segment: int, verdict: Mapping[str, Any]) -> int:
        """Have the segment's rows that had others in sight asked again in isolation; how many they are.

        Their answers are kept in `replaced`. This is one transaction: a kill leaves it done or not begun.
        """
        text = json.dumps(verdict)

        def run(db: sqlite3.Connection) -> int:
            where = " WHERE segment=? AND visible_rows != '[]'"
            db.execute(f"INSERT INTO replaced SELECT * FROM results{where}", (segment,))  # noqa: S608 - a constant
            db.execute(
                "UPDATE rows SET state='pending', isolated=1 WHERE ordinal IN"
                " (SELECT ordinal FROM results WHERE segment=? AND visible_rows != '[]')",
                (segment,),
            )
            rows = db.execute(f"DELETE FROM results{where}", (segment,)).rowcount  # noqa: S608 - likewise
            db.execute("INSERT OR REPLACE INTO audited_segments VALUES (?, ?)", (segment, text))
            return rows

        rows = await self._thread.do(run, sync=True)
        self._thread.post(lambda _: None, ok=-rows)
        return rows

    async def verdicts(self) -> list[dict[str, Any]]:
        """Segments that were judged by themselves, in order."""
        return await self._thread.do(
            lambda db: [
                json.loads(text)
                for (text,) in db.execute(
                    "SELECT verdict FROM audited_segments WHERE verdict != 'null' ORDER BY segment"
                )
            ]
        )

    async def forget_audits(self) -> None:
        """Have the segments audited again that were found unharmed without a verdict."""
        await self._thread.do(
            lambda db: db.execute("DELETE FROM audited_segments WHERE verdict='null'"), sync=True
        )
