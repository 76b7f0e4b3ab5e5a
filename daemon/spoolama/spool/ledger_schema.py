"""Defines the tables of the ledger and opens its file.

Each job has one SQLite file. `rows` has the input, which is read once; `results` and `failures` have the
finished rows; `attempts` has the attempts of unfinished rows and the failed attempts; `plan` has the
numbered plan versions; `meta` has everything else, as JSON by key.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from spoolama.errors import DiskFailed, DiskFull, LedgerError, LedgerVersion, SpoolamaError
from spoolama.spool.ledger_format import FORMAT, format_of, migrate, note_writer

__all__ = ["FORMAT", "ledger_error", "open_reader", "open_writer"]

_RESULT_COLUMNS = """answer TEXT NOT NULL, thinking TEXT, finish TEXT NOT NULL,
  segment INTEGER NOT NULL, place INTEGER NOT NULL, visible_rows TEXT NOT NULL, isolated INTEGER NOT NULL,
  trimmed INTEGER NOT NULL, plan_version INTEGER NOT NULL, turn_tokens INTEGER NOT NULL,
  own_bytes INTEGER NOT NULL, own_tokens INTEGER,
  prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER,
  load_s REAL, prompt_s REAL, eval_s REAL, latency_s REAL NOT NULL,
  attempts INTEGER NOT NULL, only_request INTEGER NOT NULL, cold INTEGER NOT NULL,
  logprob REAL, num_ctx INTEGER, at REAL NOT NULL"""

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE plan (version INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE rows (
  ordinal INTEGER PRIMARY KEY,
  line INTEGER NOT NULL,
  id TEXT,
  unique_id TEXT UNIQUE,          -- only where ids must be unique; null for the second of two alike
  digest BLOB NOT NULL,
  fields TEXT,                    -- JSON; null if the row could not be read
  raw BLOB,                       -- the bytes as they came, of rows that could not be read
  model TEXT,
  shape TEXT,
  isolated INTEGER NOT NULL DEFAULT 0,
  state TEXT NOT NULL,            -- pending, ok, failed, skipped
  deferred INTEGER                -- pending, too long for the window: tokens of prompt and answer
) STRICT;
CREATE INDEX rows_pending ON rows (ordinal) WHERE state = 'pending' AND deferred IS NULL;
CREATE INDEX rows_deferred ON rows (ordinal) WHERE state = 'pending' AND deferred IS NOT NULL;
CREATE TABLE results (
  ordinal INTEGER PRIMARY KEY, RESULT_COLUMNS
) STRICT;
CREATE INDEX results_segment ON results (segment, ordinal);  -- finds the last rows of a segment
CREATE TABLE samples (            -- rows answered alone beforehand, of which the anchors are chosen
  ordinal INTEGER PRIMARY KEY, RESULT_COLUMNS
) STRICT;
CREATE TABLE trials (             -- rows answered for comparison: by the pilot, the guard, the audit
  kind TEXT NOT NULL, ordinal INTEGER NOT NULL, RESULT_COLUMNS, PRIMARY KEY (kind, ordinal)
) STRICT, WITHOUT ROWID;
CREATE TABLE audited_segments (   -- with the verdict on a segment that looked odd
  segment INTEGER PRIMARY KEY, verdict TEXT NOT NULL
) STRICT;
CREATE TABLE replaced (           -- answers of conversations gone wrong, whose rows were asked again alone
  ordinal INTEGER PRIMARY KEY, RESULT_COLUMNS
) STRICT;
CREATE TABLE failures (
  ordinal INTEGER PRIMARY KEY, code TEXT NOT NULL, message TEXT NOT NULL, details TEXT NOT NULL,
  attempts INTEGER NOT NULL, at REAL NOT NULL
) STRICT;
CREATE TABLE attempts (
  ordinal INTEGER NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL,
  code TEXT NOT NULL DEFAULT 'open', message TEXT, counted INTEGER NOT NULL DEFAULT 1,
  isolated_tokens INTEGER,
  PRIMARY KEY (ordinal, number)
) STRICT, WITHOUT ROWID;
""".replace("RESULT_COLUMNS", _RESULT_COLUMNS)


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the ledger for writing; create its tables if it is new, migrate them if its format is older.

    Raises:
        LedgerError: it is damaged.
        LedgerVersion: this version cannot read its format; the file is unchanged.
    """
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise ledger_error(error, "the ledger cannot be opened") from error
    try:
        version = format_of(db, path)  # first, so that a ledger of another format stays unchanged
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        if version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
            db.executescript(
                f"BEGIN IMMEDIATE; {_TABLES} {note_writer()} PRAGMA user_version={FORMAT}; COMMIT;"
            )
        elif version == 0:
            raise LedgerError("the ledger cannot be opened: it has tables, but no format")
        elif version < FORMAT:
            migrate(db, path, version)
        else:
            db.execute(note_writer())
    except sqlite3.Error as error:
        db.close()
        raise ledger_error(error, "the ledger cannot be opened") from error
    except (LedgerError, LedgerVersion):
        db.close()
        raise
    return db


def open_reader(path: Path) -> sqlite3.Connection:
    """Open the ledger for reading only.

    Raises:
        LedgerError: it is damaged.
        LedgerVersion: its format differs from the one that this version writes; a reader does not migrate.
    """
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    except sqlite3.Error as error:
        raise LedgerError(f"the ledger cannot be read: {error}") from error
    try:
        if format_of(db, path, migrated=False) == 0:
            raise LedgerError("the ledger cannot be read: it has no format")
    except sqlite3.Error as error:
        db.close()
        raise LedgerError(f"the ledger cannot be read: {error}") from error
    except (LedgerError, LedgerVersion):
        db.close()
        raise
    return db


def ledger_error(error: BaseException, doing: str) -> SpoolamaError:
    """Convert an SQLite error: a disk error leaves the job for later, any other error ends it."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    kinds: dict[int, type[SpoolamaError]] = {sqlite3.SQLITE_FULL: DiskFull, sqlite3.SQLITE_IOERR: DiskFailed}
    wrapped = kinds.get(code, LedgerError)(f"{doing}: {error}")
    wrapped.__cause__ = error
    return wrapped
