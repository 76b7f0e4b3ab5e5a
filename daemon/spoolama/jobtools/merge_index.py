"""Which second answer belongs to which row: an index on disk, so that merging is flat in memory."""

from __future__ import annotations

import json
import sqlite3
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from spoolama.errors import InputError
from spoolama.job.row import NOTE_KEY
from spoolama.jobtools.published import Published, json_lines, pairs
from spoolama.publish.record import Record

__all__ = ["MergeIndex", "Second"]

_TABLES = """
CREATE TABLE home (row INTEGER PRIMARY KEY, id TEXT, answered INTEGER NOT NULL);
CREATE INDEX home_id ON home (id);
CREATE TABLE details (side TEXT, row INTEGER, note TEXT NOT NULL, PRIMARY KEY (side, row));
CREATE TABLE second (row INTEGER PRIMARY KEY, record TEXT NOT NULL, fields TEXT);
"""


@dataclass(frozen=True, slots=True)
class Second:
    """How a row ended when it was asked again."""

    record: Record
    """In the words of the retry's own job."""
    fields: dict[str, Any] | None
    """The fields it was asked with."""


class MergeIndex:
    """Reads both jobs once and then knows what belongs together. Use it as a context manager.

    A row of the retry belongs to the row at home that its `_spoolama` note names. Without the note it belongs
    to the row of the same id that has no answer yet; it must be the only one.

    Args:
        home: The job whose rows were asked again.
        retry: The job that asked again.

    Raises:
        InputError: a row of the retry belongs to none at home, or two belong to the same.
    """

    def __init__(self, home: Published, retry: Published) -> None:
        self.answered_before = 0
        """Rows of the retry that had an answer at home already; the first answer stays."""
        self._home = home
        self._retry = retry
        self._stack = ExitStack()
        self._db = sqlite3.connect("", isolation_level=None)  # a temporary file, gone when closed
        self._stack.callback(self._db.close)

    def __enter__(self) -> Self:
        with self._stack:
            self._db.executescript(_TABLES)
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT INTO home VALUES (?, ?, ?)",
                ((r.row, r.id, r.status == "ok") for r in self._home.records()),
            )
            for side, job in (("home", self._home), ("retry", self._retry)):
                self._read_notes(side, job)
            self._read_retry()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def second(self, row: int) -> Second | None:
        """How this row of home ended when it was asked again."""
        found = self._db.execute("SELECT record, fields FROM second WHERE row=?", (row,)).fetchone()
        if found is None:
            return None
        fields = None if found[1] is None else json.loads(found[1])
        return Second(Record.from_json(json.loads(found[0])), fields)

    def details(self, side: str, row: int) -> dict[str, Any]:
        """Sizes and the raw answer of a row that failed (`home` or `retry`, and the row's number there)."""
        found = self._db.execute("SELECT note FROM details WHERE side=? AND row=?", (side, row)).fetchone()
        note = {} if found is None else json.loads(found[0])
        details = dict(note.get("details") or {})
        if "answer" in note:
            details["answer"] = note["answer"]
        return details

    def _read_notes(self, side: str, job: Published) -> None:
        for name in ("retry.jsonl",) if job.openai else ("errors.jsonl", "skipped.jsonl"):
            path = job.path / name
            if not path.exists():
                continue
            notes = (line[NOTE_KEY] for line in json_lines(path) if isinstance(line.get(NOTE_KEY), dict))
            self._db.executemany(
                "INSERT OR IGNORE INTO details VALUES (?, ?, ?)",
                ((side, note.get("row"), json.dumps(note)) for note in notes),
            )

    def _read_retry(self) -> None:
        for row, record in pairs(self._retry):
            at_home = self._row_at_home(record)
            if at_home is None:
                self.answered_before += 1
                continue
            fields = None if row.fields is None else json.dumps(dict(row.fields))
            try:
                self._db.execute(
                    "INSERT INTO second VALUES (?, ?, ?)",
                    (at_home, json.dumps(record.to_json()), fields),
                )
            except sqlite3.IntegrityError:
                raise self._mismatch(record, f"row {at_home} of {self._home.job} is answered twice") from None

    def _row_at_home(self, record: Record) -> int | None:
        """The row at home; None if it has its answer already."""
        for job, row in record.home or []:
            if job == self._home.job:
                found = self._db.execute("SELECT answered FROM home WHERE row=?", (row,)).fetchone()
                if found is None:
                    raise self._mismatch(record, f"{job} has no row {row}")
                return None if found[0] else row
        if record.home:
            raise self._mismatch(record, f"it comes from {record.home[0][0]}, not from {self._home.job}")
        if record.id is None:
            raise self._mismatch(
                record, "it has neither an id nor the note `_spoolama` that errors.jsonl gives"
            )
        same = self._db.execute("SELECT row, answered FROM home WHERE id=?", (record.id,)).fetchall()
        if not same:
            raise self._mismatch(record, f"{self._home.job} has no row with the id {record.id!r}")
        waiting = [row for row, answered in same if not answered]
        if len(waiting) > 1:
            raise self._mismatch(
                record, f"{len(waiting)} rows of {self._home.job} without an answer have the id {record.id!r}"
            )
        return waiting[0] if waiting else None

    def _mismatch(self, record: Record, why: str) -> InputError:
        return InputError(
            f"Row {record.row} of {self._retry.job} has no place in {self._home.job}: {why}.",
            fix="Name the job that the rows came from first, and the retry second. Nothing was written.",
            code="merge_mismatch",
        )
