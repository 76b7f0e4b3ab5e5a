"""Writes rows to a job's ledger and reads them back."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from spoolama.errors import shortened, shortened_details
from spoolama.job.record import Answered, Attempt, Failed, StoredRow
from spoolama.job.row import Row, digest_of, memory_of

__all__ = [
    "ANSWERED",
    "MOST_BYTES_AT_ONCE",
    "NewRow",
    "insert_answer",
    "insert_failure",
    "insert_row",
    "only_column",
    "rows_with_attempts",
    "stored_row",
    "stored_rows",
]


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row from the intake."""

    row: Row
    id: str | None
    """Its id; with `unique`, no other row of the job may have it."""
    unique: bool


MOST_BYTES_AT_ONCE = 64 * 1024
"""Maximum memory in bytes of the rows that one call reads from the ledger. There may be 256 lanes."""

ANSWERED = [field.name for field in dataclasses.fields(Answered)]
"""Columns of an answer; the field names of `Answered`."""

_STORED = """
SELECT r.ordinal, r.line, r.id, r.fields, r.model, r.isolated, r.state,
       {answer}, a.turn_tokens, a.visible_rows, a.prompt_tokens, a.completion_tokens, a.logprob,
       coalesce(a.thinking, '') != ''
FROM rows r LEFT JOIN {answers} a USING (ordinal)
"""


def stored_rows(answers: str = "results", *, most_characters: int | None = None) -> str:
    """The SELECT of rows with their answers from one of the tables; `stored_row` reads a result row.

    Args:
        answers: The table.
        most_characters: Longer answers are cut to this length; None: no limit.
    """
    answer = "a.answer" if most_characters is None else f"substr(a.answer, 1, {most_characters:d})"
    return _STORED.format(answers=answers, answer=answer)


def insert_answer(
    db: sqlite3.Connection, table: str, answer: Answered, at: float, *, kind: str | None = None
) -> None:
    """Write an answer. A second one replaces the first, except in `results`, where it raises an error."""
    values = {name: getattr(answer, name) for name in ANSWERED}
    again = "" if table == "results" else "OR REPLACE"
    names = [*ANSWERED, "at"] if kind is None else [*ANSWERED, "at", "kind"]
    columns, marks = ", ".join(names), ", :".join(names)
    db.execute(
        f"INSERT {again} INTO {table} ({columns}) VALUES (:{marks})",  # noqa: S608 - names of our own
        {**values, "visible_rows": json.dumps(answer.visible_rows), "at": at, "kind": kind},
    )


def _attempts_of(db: sqlite3.Connection, first: int, last: int) -> dict[int, list[Attempt]]:
    """Earlier attempts of the rows between two ordinals."""
    tries: dict[int, list[Attempt]] = {}
    for ordinal, code, counted, bare in db.execute(
        "SELECT ordinal, code, counted, isolated_tokens FROM attempts WHERE ordinal BETWEEN ? AND ?"
        " ORDER BY ordinal, number",
        (first, last),
    ):
        tries.setdefault(ordinal, []).append(Attempt(code, bool(counted), bare))
    return tries


def insert_row(db: sqlite3.Connection, new: NewRow, now: float) -> None:
    """Write a row of the input; a row that cannot be sent to the model fails at once."""
    row = new.row
    fault = row.fault
    readable = row.fields is not None
    values = [
        row.ordinal, row.line, new.id, new.id if new.unique and fault is None else None, digest_of(row.raw),
        json.dumps(row.fields, ensure_ascii=False) if readable else None, None if readable else row.raw,
        row.model, row.shape, 0, "pending" if fault is None else "failed", None,
    ]  # fmt: skip
    sql = "INSERT OR IGNORE INTO rows VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"
    code, message = (fault.code, fault.message) if fault else ("", "")
    if db.execute(sql, values).rowcount == 0:
        first = db.execute("SELECT line FROM rows WHERE unique_id=?", (new.id,)).fetchone()[0]
        code, message = "duplicate_id", f"id {new.id!r} was already used on line {first}"
        values[3], values[10] = None, "failed"
        db.execute(sql, values)
    if code:
        insert_failure(db, Failed(row.ordinal, code, message, 0), now)


def insert_failure(db: sqlite3.Connection, failure: Failed, at: float) -> None:
    """Write a row's error. Its texts are shortened, except the model's answer."""
    details = shortened_details(failure.details)
    if "answer" in failure.details:
        details["answer"] = failure.details["answer"]
    db.execute(
        "INSERT INTO failures VALUES (?,?,?,?,?,?)",
        (
            failure.ordinal, failure.code, shortened(failure.message),
            json.dumps(details, ensure_ascii=False), failure.attempts, at,
        ),
    )  # fmt: skip


def only_column(row: StoredRow, column: str | None) -> StoredRow:
    """The row with only this field, because a segment of long rows may not fit into memory."""
    kept = {column: row.fields[column]} if column is not None and column in row.fields else {}
    return dataclasses.replace(row, fields=kept)


def _memory_of(row: Sequence[Any]) -> int:
    return memory_of((row[3] or "").encode("utf-8", "surrogatepass"))


def rows_with_attempts(db: sqlite3.Connection, rows: Iterable[Sequence[Any]]) -> list[StoredRow]:
    """The first of the rows that `stored_rows` selects, up to `MOST_BYTES_AT_ONCE`, with their attempts.

    A first row that is larger than that is returned alone and without its fields.
    """
    read: list[StoredRow] = []
    left = MOST_BYTES_AT_ONCE
    for row in rows:
        left -= _memory_of(row)
        if left < 0 and read:
            break
        read.append(stored_row(row) if left >= 0 else _without_fields(row))
        if left <= 0:
            break
    attempts = _attempts_of(db, read[0].ordinal, read[-1].ordinal) if read else {}
    return [dataclasses.replace(row, attempts=tuple(attempts.get(row.ordinal, ()))) for row in read]


def _without_fields(row: Sequence[Any]) -> StoredRow:
    small = stored_row([*row[:3], None, *row[4:]])
    return dataclasses.replace(small, memory=_memory_of(row), complete=False)


def stored_row(row: Sequence[Any]) -> StoredRow:
    """Build a row from a result row of `stored_rows`."""
    ordinal, line, name, fields, model, isolated, state, answer, turn_tokens, visible_rows, *counts = row
    prompt, completion, logprob, thought = counts
    return StoredRow(
        ordinal=ordinal, line=line, id=name, fields={} if fields is None else json.loads(fields), model=model,
        isolated=bool(isolated), state=state, answer=answer, turn_tokens=turn_tokens or 0,
        visible_rows=tuple((a, b) for a, b in json.loads(visible_rows)) if visible_rows else (),
        prompt_tokens=prompt, completion_tokens=completion, logprob=logprob, thought=bool(thought),
        memory=_memory_of(row),
    )  # fmt: skip
