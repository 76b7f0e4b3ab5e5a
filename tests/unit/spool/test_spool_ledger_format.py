"""Formats of the ledger: the writer's version, refusals and their messages, and migrations."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from spoolama import __version__
from spoolama.errors import JobError, LedgerError, LedgerVersion
from spoolama.spool import ledger_format
from spoolama.spool.ledger_format import FORMAT, MIGRATIONS, Migration, check_format, open_reader, open_writer
from spoolama.spool.ledger_reader import LedgerReader

LEDGERS = Path(__file__).parents[2] / "data" / "ledgers"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a job's ledger."""
    (tmp_path / "reviews-1").mkdir()
    return tmp_path / "reviews-1" / "ledger.sqlite"


def stored(case: str, path: Path) -> Path:
    """A copy of a stored ledger."""
    (found,) = (LEDGERS / case / "processing").glob("*/ledger.sqlite")
    shutil.copyfile(found, path)
    return path


def sql(path: Path, *statements: str) -> list[Any]:
    """Return the rows of the last statement."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        return [db.execute(statement).fetchall() for statement in statements][-1]


def writer(path: Path) -> Any:
    """Return the version that the ledger names as its writer."""
    rows = sql(path, "SELECT value FROM meta WHERE key='written_by'")
    return json.loads(rows[0][0]) if rows else None


def columns(path: Path) -> dict[str, list[Any]]:
    """Return tables and indexes with their definitions."""
    found: dict[str, list[Any]] = {}
    for (name,) in sql(path, "SELECT name FROM sqlite_master"):
        found[name] = sql(path, f"PRAGMA table_xinfo({name})") + sql(path, f"PRAGMA index_xinfo({name})")
    return found


def test_a_ledger_says_which_version_wrote_it_last(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new ledger names this version, and a resumed one the newer version."""
    open_writer(path).close()
    assert writer(path) == __version__
    monkeypatch.setattr(ledger_format, "__version__", "0.9.0'")
    open_writer(path).close()
    assert writer(path) == "0.9.0'"


def test_the_version_is_written_only_where_it_changed(path: Path) -> None:
    """Opening a ledger again writes nothing to its write-ahead log."""
    with contextlib.closing(open_writer(path)):
        before = path.with_name("ledger.sqlite-wal").stat().st_size
        open_writer(path).close()
        assert path.with_name("ledger.sqlite-wal").stat().st_size == before


NEWER = (
    "The ledger of reviews-1 has format 9, written by spoolama 2.3.0; this is spoolama 0.1.0, which reads "
    "formats 2 to 4. The job waits in processing/ with its results. "
    "Install spoolama 2.3.0 or newer to finish it."
)
UNNAMED = (
    "The ledger of reviews-1 has format 9; this is spoolama 0.1.0, which reads formats 2 to 4. "
    "The job waits in processing/ with its results. Install a newer spoolama to finish it."
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE meta SET value = '\"2.3.0\"' WHERE key = 'written_by'", NEWER),
        ("DELETE FROM meta", UNNAMED),
        ("DROP TABLE meta", UNNAMED),
        ("ALTER TABLE meta RENAME COLUMN value TO content", UNNAMED),
        ("UPDATE meta SET value = 'no JSON' WHERE key = 'written_by'", UNNAMED),
        ("UPDATE meta SET value = '[2, 3]' WHERE key = 'written_by'", UNNAMED),
        ("UPDATE meta SET value = '\"a\\nb\"' WHERE key = 'written_by'", UNNAMED),
    ],
    ids=["named", "no entry", "no table", "other table", "no JSON", "no text", "two lines"],
)
def test_a_newer_format_is_refused_with_the_version_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: str, words: str
) -> None:
    """Writer, reader and check give the same message, the job does not fail, and the file does not change."""
    monkeypatch.setattr(ledger_format, "__version__", "0.1.0")
    open_writer(path).close()
    sql(path, change, "PRAGMA user_version=9", "PRAGMA journal_mode=DELETE")
    before = path.read_bytes()
    for open_it in (open_writer, open_reader, check_format, LedgerReader):
        with pytest.raises(LedgerVersion) as refused:
            open_it(path)
        assert str(refused.value) == words
        assert not isinstance(refused.value, JobError)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_format_without_a_migration_is_refused_with_the_version_that_wrote_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message does not name a newer version, which would not help."""
    monkeypatch.setattr(ledger_format, "__version__", "0.1.0")
    stored("format-1/isolated", path)
    with pytest.raises(LedgerVersion, match=r"has format 1; .* Install the version of spoolama that wrote"):
        open_writer(path)
    sql(path, "INSERT INTO meta VALUES ('written_by', '\"0.0.3\"')")
    with pytest.raises(LedgerVersion, match=r"format 1, written by spoolama 0\.0\.3; .* spoolama 0\.0\.3 to"):
        open_writer(path)


@pytest.mark.parametrize("case", ["anchors-of-the-first-day", "default"])
def test_a_ledger_whose_prompts_may_change_is_refused(path: Path, case: str) -> None:
    """A ledger with a migration is refused if its plan does not fix the prompts."""
    before = stored(f"format-2/{case}", path).read_bytes()
    for open_it in (open_writer, open_reader, check_format):
        with pytest.raises(LedgerVersion, match=r"has format 2; .* might send different prompts"):
            open_it(path)
    assert path.read_bytes() == before


def test_a_migrated_ledger_has_the_tables_of_a_new_one(path: Path, tmp_path: Path) -> None:
    """Tables have the same columns in the same order, and format and writer are recorded."""
    open_writer(stored("format-2/window", path)).close()
    open_writer(tmp_path / "new").close()
    assert columns(path) == columns(tmp_path / "new")
    assert sql(path, "PRAGMA user_version") == [(FORMAT,)]
    assert writer(path) == __version__
    with LedgerReader(path) as reader:
        assert reader.counts()["ok"] == 13


def test_a_migration_that_fails_leaves_the_ledger_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration is one transaction, so a failed one changes nothing."""
    broken = [Migration(2, ("CREATE TABLE half (x)", "CREATE TABLE rows (x)"), "SELECT 1 WHERE 0")]
    monkeypatch.setattr(ledger_format, "MIGRATIONS", broken)
    tables = columns(stored("format-2/window", path))
    with pytest.raises(LedgerError, match="already exists"):
        open_writer(path)
    assert columns(path) == tables
    assert sql(path, "PRAGMA user_version") == [(2,)]


def test_a_later_step_can_refuse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a later step refuses, earlier steps are undone and the message names the ledger's format."""
    steps = [
        Migration(1, ("CREATE TABLE half (x)",), "SELECT 1 WHERE 0"),
        Migration(2, (), "SELECT 1 FROM half UNION SELECT 1"),
    ]
    monkeypatch.setattr(ledger_format, "MIGRATIONS", steps)
    tables = columns(stored("format-1/isolated", path))
    with pytest.raises(LedgerVersion, match=r"has format 1; .* might send different prompts"):
        open_writer(path)
    assert columns(path) == tables
    assert sql(path, "PRAGMA user_version") == [(1,)]


def test_a_reader_leaves_the_migration_to_the_service(path: Path) -> None:
    """A reader changes nothing and reports an older format."""
    before = stored("format-2/window", path).read_bytes()
    with pytest.raises(LedgerVersion, match=r"has format 2\. The service migrates it to format 4 when"):
        open_reader(path)
    assert path.read_bytes() == before


def test_a_damaged_ledger_is_not_called_one_of_another_version(path: Path) -> None:
    """A damaged ledger passes the check of formats, and opening it fails the job as damaged."""
    check_format(path)
    path.write_bytes(b"not a database" * 100)
    check_format(path)
    for open_it in (open_writer, open_reader):
        with pytest.raises(LedgerError, match="file is not a database"):
            open_it(path)
    path.unlink()
    sql(path, "CREATE TABLE t (x)")
    check_format(path)
    for open_it in (open_writer, open_reader):
        with pytest.raises(LedgerError, match="no format"):
            open_it(path)


def test_a_newer_format_is_read_behind_a_leftover_journal(path: Path, tmp_path: Path) -> None:
    """The format is read behind a rollback journal, which a newer version may use instead of WAL."""
    sql(path, "CREATE TABLE t (x)", "PRAGMA user_version=9")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in ("PRAGMA cache_size=1", "BEGIN", "PRAGMA user_version=3", "CREATE TABLE u (x)"):
            db.execute(statement)
        for _ in range(100):  # more than its memory holds, so that the file itself is partly changed
            db.execute("INSERT INTO t VALUES (zeroblob(4000))")
        (tmp_path / "killed").mkdir()
        for file in path.parent.iterdir():
            shutil.copyfile(file, tmp_path / "killed" / file.name)
    killed = tmp_path / "killed" / path.name
    assert killed.with_name("ledger.sqlite-journal").exists()
    with pytest.raises(LedgerVersion, match="The ledger of killed has format 9"):
        check_format(killed)


def test_the_steps_lead_to_the_format_of_today() -> None:
    """The steps cover every format without a gap."""
    assert [step.before + 1 for step in MIGRATIONS] == list(range(MIGRATIONS[0].before + 1, FORMAT + 1))
