"""Defines the format of the ledger, opens ledgers, and migrates older formats to the current one.

Each job has one SQLite file. `rows` has the input, which is read once; `results` and `failures` have the
finished rows; `attempts` has the attempts of unfinished rows and the failed attempts; `samples` and `trials`
have answers that do not count as results; `replaced` has withdrawn answers; `plan` has the numbered plan
versions; `meta` has everything else, as JSON by key.

SQLite's `user_version` is the number of the format, `meta` has the version of spoolama that last wrote the
ledger. A change of the tables, or of the JSON in them, is a new format: store ledgers of the previous format
(`tests/data/ledgers/README.md`), raise `FORMAT`, and add a step to `MIGRATIONS`.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spoolama import __version__
from spoolama.errors import DiskFailed, DiskFull, LedgerError, LedgerVersion, SpoolamaError

FORMAT = 4
"""The format that this version writes."""

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
  unique_id TEXT UNIQUE,          -- only if ids must be unique; null for a duplicate
  fields TEXT,                    -- JSON; null if the row could not be read
  raw BLOB,                       -- the original bytes of a row that could not be read
  model TEXT,
  shape TEXT,
  isolated INTEGER NOT NULL DEFAULT 0,
  state TEXT NOT NULL,            -- pending, ok, failed, skipped
  deferred INTEGER,               -- pending, too long for the context window: tokens of prompt and answer
  request TEXT                    -- JSON, if the row has a request of its own; then `fields` is not rendered
) STRICT;
CREATE INDEX rows_pending ON rows (ordinal) WHERE state = 'pending' AND deferred IS NULL;
CREATE INDEX rows_deferred ON rows (ordinal) WHERE state = 'pending' AND deferred IS NOT NULL;
CREATE TABLE results (
  ordinal INTEGER PRIMARY KEY, RESULT_COLUMNS
) STRICT;
CREATE INDEX results_segment ON results (segment, ordinal);  -- finds the last rows of a segment
CREATE TABLE samples (            -- rows answered in isolation beforehand, to choose anchors
  ordinal INTEGER PRIMARY KEY, RESULT_COLUMNS
) STRICT;
CREATE TABLE trials (             -- rows answered for a comparison by pilot or audit
  kind TEXT NOT NULL, ordinal INTEGER NOT NULL, RESULT_COLUMNS, PRIMARY KEY (kind, ordinal)
) STRICT, WITHOUT ROWID;
CREATE TABLE audited_segments (   -- and the verdict, if the segment was judged by itself
  segment INTEGER PRIMARY KEY, verdict TEXT NOT NULL
) STRICT;
CREATE TABLE replaced (           -- withdrawn answers, whose rows were asked again in isolation
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

_RESULT_COLUMNS_3 = """answer TEXT NOT NULL, thinking TEXT, finish TEXT NOT NULL,
  segment INTEGER NOT NULL, place INTEGER NOT NULL, sight TEXT NOT NULL, aside INTEGER NOT NULL,
  trimmed INTEGER NOT NULL, plan_version INTEGER NOT NULL, turn_tokens INTEGER NOT NULL,
  own_bytes INTEGER NOT NULL, own_tokens INTEGER,
  prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER,
  load_s REAL, prompt_s REAL, eval_s REAL, latency_s REAL NOT NULL,
  attempts INTEGER NOT NULL, solo INTEGER NOT NULL, cold INTEGER NOT NULL, logprob REAL, num_ctx INTEGER,
  at REAL NOT NULL"""
"""The columns of format 3. A migration never changes, so it does not use the current table definitions."""


@dataclass(frozen=True, slots=True)
class Migration:
    """A step from one format to the next."""

    before: int
    """The format that it migrates from; the new format is one higher."""
    statements: tuple[str, ...]
    """SQL, run in one transaction with the change of `user_version`."""
    unless: str
    """SQL that returns a row if a ledger cannot be migrated because its remaining prompts might change."""


MIGRATIONS: Sequence[Migration] = (
    Migration(
        2,
        (
            "CREATE TABLE trials (kind TEXT NOT NULL, ordinal INTEGER NOT NULL,"
            f" {_RESULT_COLUMNS_3}, PRIMARY KEY (kind, ordinal)) STRICT, WITHOUT ROWID",
            "CREATE TABLE guarded (segment INTEGER PRIMARY KEY, verdict TEXT NOT NULL) STRICT",
            f"CREATE TABLE replaced (ordinal INTEGER PRIMARY KEY, {_RESULT_COLUMNS_3}) STRICT",
        ),
        # Early plans of format 2 do not record whether anchors have known answers. A sidecar without `trim`
        # meant `reset` with `every: 20`, now it means `auto`: the plan does not record which one it was.
        """
SELECT 1 FROM plan
WHERE json_type(body, '$.gold') IS NULL OR json_type(body, '$.prefix_tokens') IS NULL
   OR (json_extract(body, '$.strategy') = 'reset' AND json_extract(body, '$.every') = 20
       AND json_extract(body, '$.segment_rows') != 1)
""",
    ),
    Migration(
        3,
        (
            *(
                f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}"
                for table in ("results", "samples", "trials", "replaced")
                for old, new in (
                    ("sight", "visible_rows"),
                    ("aside", "isolated"),
                    ("solo", "only_request"),
                )
            ),
            "ALTER TABLE rows RENAME COLUMN alone TO isolated",
            "ALTER TABLE rows DROP COLUMN digest",  # nothing read it
            "ALTER TABLE attempts RENAME COLUMN bare_tokens TO isolated_tokens",
            "ALTER TABLE guarded RENAME TO audited_segments",
            "UPDATE trials SET kind = 'isolated' WHERE kind = 'alone'",
            "UPDATE trials SET kind = replace(kind, 'guard', 'odd') WHERE kind IN ('guard', 'guard-again')",
            "UPDATE meta SET value = replace(value, '\"alone\"', '\"isolated\"')"
            " WHERE key IN ('pilot', 'pilot_done')",
            "UPDATE meta SET value = replace(value, '\"surprises\"', '\"external_changes\"')"
            " WHERE key = 'watch'",
            "UPDATE meta SET value = replace(replace(value, '\"blind\"', '\"unreadable\"'),"
            " '\"hottest_c\"', '\"max_temperature_c\"') WHERE key = 'memory'",
            "UPDATE meta SET key = 'load_sizes' WHERE key = 'rungs'",
            "UPDATE plan SET body = json_remove(body, '$.marks')",  # of versions that learned `every`
            "ALTER TABLE rows ADD COLUMN request TEXT",  # `service/intake.py` stores the requests
        ),
        "SELECT 1 WHERE 0",  # every ledger can be migrated: no prompt changes
    ),
)
"""The steps, oldest first. Format 1 has none: its plans lack values that format 2 needs for trims."""

_WRITTEN_BY = "written_by"
"""Key in `meta`: the version of spoolama that last wrote the ledger."""


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the ledger for writing; create its tables if it is new, migrate them if its format is older.

    Raises:
        LedgerError: it is damaged.
        LedgerVersion: this version cannot read its format; the file is unchanged.
    """
    with _opening("opened", str(path)) as db:
        version = format_of(db, path)  # first, so that a ledger of another format stays unchanged
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        if version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
            db.executescript(
                f"BEGIN IMMEDIATE; {_TABLES} {_note_writer()} PRAGMA user_version={FORMAT}; COMMIT;"
            )
        elif version == 0:
            raise LedgerError("the ledger cannot be opened: it has tables, but no format")
        elif version < FORMAT:
            _migrate(db, path, version)
        else:
            db.execute(_note_writer())
        return db


def open_reader(path: Path) -> sqlite3.Connection:
    """Open the ledger for reading only.

    Raises:
        LedgerError: it is damaged.
        LedgerVersion: its format differs from the one that this version writes; a reader does not migrate.
    """
    with _opening("read", f"{path.absolute().as_uri()}?mode=ro") as db:
        if format_of(db, path, migrated=False) == 0:
            raise LedgerError("the ledger cannot be read: it has no format")
        return db


@contextlib.contextmanager
def _opening(doing: str, name: str) -> Iterator[sqlite3.Connection]:
    """Connect to a ledger; close it again if the block raises an error."""
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(
            name, uri=name.startswith("file:"), isolation_level=None, check_same_thread=False
        )
        yield db
    except BaseException as error:
        if db is not None:
            db.close()
        if isinstance(error, sqlite3.Error):
            raise ledger_error(error, f"the ledger cannot be {doing}") from error
        raise


def check_format(path: Path) -> None:
    """Refuse a ledger whose format this version does not read. Does not write to it.

    A ledger that is missing or damaged passes: opening it raises the right error.

    Raises:
        LedgerVersion: its format is unknown, or it cannot be migrated.
    """
    if not path.exists():
        return
    for mode in ("ro", "rw"):  # a journal that a kill left in a mode other than WAL can only be read with rw
        with contextlib.suppress(sqlite3.Error):
            uri = f"{path.absolute().as_uri()}?mode={mode}"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
                format_of(db, path)
                return


def format_of(db: sqlite3.Connection, path: Path, *, migrated: bool = True) -> int:
    """The format of an open ledger; 0 if it has none. Does not write.

    Args:
        db: The ledger.
        path: Its file, in the job's directory.
        migrated: Whether the caller migrates older formats.

    Raises:
        LedgerVersion: the caller cannot use this format.
    """
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version in (0, FORMAT):
        return version
    if not _oldest() <= version < FORMAT or _might_change_prompts(db, version):
        raise _refusal(db, path, version)
    if not migrated:
        raise LedgerVersion(
            f"The ledger of {path.parent.name} has format {version}. "
            f"The service migrates it to format {FORMAT} when it resumes the job."
        )
    return version


def _migrate(db: sqlite3.Connection, path: Path, version: int) -> None:
    """Migrate a ledger to the current format in one transaction, so a kill leaves it unchanged.

    Raises:
        LedgerVersion: a later step cannot migrate it. Close the connection to leave the ledger unchanged.
    """
    db.execute("BEGIN IMMEDIATE")
    for step in MIGRATIONS:
        if step.before >= version:
            if _might_change_prompts(db, step.before):
                raise _refusal(db, path, version)
            for statement in step.statements:
                db.execute(statement)
    db.execute(_note_writer())
    db.execute(f"PRAGMA user_version={FORMAT}")
    db.execute("COMMIT")


def _note_writer() -> str:
    """The SQL that records this version of spoolama as the ledger's last writer."""
    value = json.dumps(__version__).replace("'", "''")
    return (
        f"INSERT INTO meta VALUES ('{_WRITTEN_BY}', '{value}')"  # noqa: S608 - the program's own version
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE value != excluded.value;"
    )


def _oldest() -> int:
    return MIGRATIONS[0].before if MIGRATIONS else FORMAT


def _might_change_prompts(db: sqlite3.Connection, version: int) -> bool:
    """Whether the step from this format might change the prompts of the remaining rows."""
    return any(step.before == version and db.execute(step.unless).fetchone() for step in MIGRATIONS)


def _refusal(db: sqlite3.Connection, path: Path, version: int) -> LedgerVersion:
    writer = _writer(db)
    written = "" if writer is None else f", written by spoolama {writer}"
    oldest = _oldest()
    between = "and" if oldest == FORMAT - 1 else "to"
    reads = f"reads format {FORMAT}" if oldest == FORMAT else f"reads formats {oldest} {between} {FORMAT}"
    if oldest <= version < FORMAT:  # a step cannot migrate this ledger
        reads = "might send different prompts for the remaining rows"
    if version > FORMAT:
        wanted = "a newer spoolama" if writer is None else f"spoolama {writer} or newer"
    else:
        wanted = "the version of spoolama that wrote it" if writer is None else f"spoolama {writer}"
    return LedgerVersion(
        f"The ledger of {path.parent.name} has format {version}{written}; "
        f"this is spoolama {__version__}, which {reads}. "
        f"The job waits in processing/ with its results. Install {wanted} to finish it."
    )


def _writer(db: sqlite3.Connection) -> str | None:
    """The version that last wrote the ledger; None if it is missing or not in the format that we know."""
    try:
        row = db.execute("SELECT value FROM meta WHERE key=?", (_WRITTEN_BY,)).fetchone()
        value = None if row is None else json.loads(row[0])
    except (sqlite3.Error, ValueError, TypeError):
        return None
    return value if isinstance(value, str) and value.isprintable() and 0 < len(value) <= 40 else None


def ledger_error(error: BaseException, doing: str) -> SpoolamaError:
    """Convert an SQLite error: a disk error leaves the job for later, any other error ends it."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    kinds: dict[int, type[SpoolamaError]] = {sqlite3.SQLITE_FULL: DiskFull, sqlite3.SQLITE_IOERR: DiskFailed}
    wrapped = kinds.get(code, LedgerError)(f"{doing}: {error}")
    wrapped.__cause__ = error
    return wrapped
