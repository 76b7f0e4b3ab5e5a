"""How far a job is, counted in its ledger: what tells a job that moves from one that does not."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from spoolama.errors import SpoolamaError
from spoolama.spool.ledger_schema import open_reader

__all__ = ["JobProgress", "job_progress"]


@dataclass(frozen=True, slots=True)
class JobProgress:
    """What a job has done so far, in rows and answers."""

    rows: int = 0
    """Rows read. Reading begins anew after a kill, so this may go back."""
    ended: int = 0
    """Rows that have an answer or an error, or are skipped."""
    answers: int = 0
    """The same, and the answers beside them: samples, trials, and answers that were replaced."""
    all_read: bool = False
    """Whether `rows` is the number of rows of the whole job."""

    def beyond(self, best: JobProgress) -> bool:
        """Whether more rows are read, or more is answered, than in `best`."""
        return self.rows > best.rows or self.answers > best.answers

    def merged(self, other: JobProgress) -> JobProgress:
        """The better of both in each count."""
        return JobProgress(
            max(self.rows, other.rows),
            max(self.ended, other.ended),
            max(self.answers, other.answers),
            self.all_read or other.all_read,
        )

    def words(self) -> str:
        """For a sentence: `12 of 1,000 rows done`."""
        if self.all_read:
            return f"{self.ended:,} of {self.rows:,} rows done"
        return f"{self.rows:,} rows read" if self.rows else "no row read"


def job_progress(ledger: Path) -> JobProgress:
    """Count without changing the ledger. A ledger that is missing or cannot be read has no progress."""
    try:
        with contextlib.closing(open_reader(ledger)) as db:
            (rows,) = db.execute("SELECT count(*) FROM rows").fetchone()
            # In two parts, since each has an index of its own.
            (pending,) = db.execute(
                "SELECT (SELECT count(*) FROM rows WHERE state='pending' AND deferred IS NULL)"
                " + (SELECT count(*) FROM rows WHERE state='pending' AND deferred IS NOT NULL)"
            ).fetchone()
            (extra,) = db.execute(
                "SELECT (SELECT count(*) FROM samples) + (SELECT count(*) FROM trials)"
                " + (SELECT count(*) FROM replaced)"
            ).fetchone()
            all_read = db.execute("SELECT 1 FROM meta WHERE key='intake_done'").fetchone() is not None
    except (SpoolamaError, sqlite3.Error, OSError):
        return JobProgress()
    return JobProgress(rows, rows - pending, rows - pending + extra, all_read)
