"""Counts the progress of a job in its ledger, to detect a job that makes none."""

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
    """The progress of a job in rows and answers."""

    rows: int = 0
    """Rows read. Reading restarts after a kill, so this number may decrease."""
    ended: int = 0
    """Rows with an answer or an error, and skipped rows."""
    answers: int = 0
    """The same plus further answers: samples, trials and replaced answers."""
    all_read: bool = False
    """Whether `rows` is the number of rows of the whole job."""

    def beyond(self, best: JobProgress) -> bool:
        """Whether more rows are read or more answers exist than in `best`."""
        return self.rows > best.rows or self.answers > best.answers

    def merged(self, other: JobProgress) -> JobProgress:
        """The larger value of each count."""
        return JobProgress(
            max(self.rows, other.rows),
            max(self.ended, other.ended),
            max(self.answers, other.answers),
            self.all_read or other.all_read,
        )

    def words(self) -> str:
        """Text for a sentence: `12 of 1,000 rows done`."""
        if self.all_read:
            return f"{self.ended:,} of {self.rows:,} rows done"
        return f"{self.rows:,} rows read" if self.rows else "no row read"


def job_progress(ledger: Path) -> JobProgress:
    """Count without changing the ledger. A missing or unreadable ledger has no progress."""
    try:
        with contextlib.closing(open_reader(ledger)) as db:
            (rows,) = db.execute("SELECT count(*) FROM rows").fetchone()
            # Two queries, because each has its own index.
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
