"""Reads and writes the rows of a ledger over an open connection."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from spoolama.errors import shortened, shortened_details
from spoolama.job.row import Answered, Attempt, Failed, Row, RowRequest, StoredRow, memory_of


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row from the intake."""

    row: Row
    id: str | None
    """Its id; with `unique`, no other row of the job may have it."""
    unique: bool


MOST_BYTES_AT_ONCE = 64 * 1024
"""Maximum memory in bytes of the rows that one call reads from the ledger. There may be 256 lanes."""

_ANSWERED = [field.name for field in dataclasses.fields(Answered)]
"""Columns of an answer; the field names of `Answered`."""

_STORED = """
SELECT r.ordinal, r.line, r.id, coalesce(r.request, r.fields), r.request IS NOT NULL, r.model, r.isolated,
       r.state, {answer}, a.turn_tokens, a.visible_rows, a.prompt_tokens, a.completion_tokens, a.logprob,
       coalesce(a.thinking, '') != ''
FROM rows r LEFT JOIN {answers} a USING (ordinal)
"""
_CONTENT = 3
"""Place of the request or the fields in a result row of `stored_rows`."""


# --- notes and counts ------------------------------------------------------------------------------------


def read_meta(db: sqlite3.Connection, key: str, default: Any = None) -> Any:
    """The value stored under this key."""
    row = db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
    return default if row is None else json.loads(row[0])


def read_plans(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """The plan versions, oldest first."""
    return [json.loads(body) for (body,) in db.execute("SELECT body FROM plan ORDER BY version")]


def count_states(db: sqlite3.Connection) -> dict[str, int]:
    """Number of rows by state; every state is present."""
    counts = dict.fromkeys(("pending", "ok", "failed", "skipped"), 0)
    counts.update(db.execute("SELECT state, count(*) FROM rows GROUP BY state"))
    return counts


def count_failures(db: sqlite3.Connection) -> dict[str, int]:
    """Number of failed rows by error code, most frequent first."""
    return dict(db.execute("SELECT code, count(*) FROM failures GROUP BY code ORDER BY count(*) DESC, code"))


# --- writing ---------------------------------------------------------------------------------------------


def insert_row(db: sqlite3.Connection, new: NewRow, now: float) -> None:
    """Write a row of the input; a row that cannot be sent to the model fails at once."""
    row = new.row
    fault = row.fault
    readable = row.fields is not None
    values = {
        "ordinal": row.ordinal,
        "line": row.line,
        "id": new.id,
        "unique_id": new.id if new.unique and fault is None else None,
        "fields": json.dumps(row.fields, ensure_ascii=False) if readable else None,
        "raw": None if readable else row.raw,
        "model": row.model,
        "shape": row.shape,
        "state": "pending" if fault is None else "failed",
        "request": None if row.request is None else row.request.to_json(),
    }
    columns, parameters = ", ".join(values), ", :".join(values)
    sql = f"INSERT OR IGNORE INTO rows ({columns}) VALUES (:{parameters})"  # noqa: S608 - constants
    code, message = (fault.code, fault.message) if fault else ("", "")
    if db.execute(sql, values).rowcount == 0:
        first = db.execute("SELECT line FROM rows WHERE unique_id=?", (new.id,)).fetchone()[0]
        code, message = "duplicate_id", f"id {new.id!r} was already used on line {first}"
        db.execute(sql, {**values, "unique_id": None, "state": "failed"})
    if code:
        insert_failure(db, Failed(row.ordinal, code, message, 0), now)


def insert_answer(
    db: sqlite3.Connection, table: str, answer: Answered, at: float, *, kind: str | None = None
) -> None:
    """Write an answer. A second one replaces the first, except in `results`, where it raises an error."""
    values = {name: getattr(answer, name) for name in _ANSWERED}
    values |= {"visible_rows": json.dumps(answer.visible_rows), "at": at}
    if kind is not None:
        values["kind"] = kind
    replacing = "" if table == "results" else "OR REPLACE"
    columns, parameters = ", ".join(values), ", :".join(values)
    db.execute(f"INSERT {replacing} INTO {table} ({columns}) VALUES (:{parameters})", values)  # noqa: S608 - constants


def insert_failure(db: sqlite3.Connection, failure: Failed, at: float) -> None:
    """Write a row's error. Its texts are shortened, except the model's answer."""
    details = shortened_details(failure.details)
    if "answer" in failure.details:
        details["answer"] = failure.details["answer"]
    text = json.dumps(details, ensure_ascii=False)
    db.execute(
        "INSERT INTO failures VALUES (?,?,?,?,?,?)",
        (failure.ordinal, failure.code, shortened(failure.message), text, failure.attempts, at),
    )


# --- reading ---------------------------------------------------------------------------------------------


def stored_rows(answers: str = "results", *, most_characters: int | None = None) -> str:
    """The SELECT of rows with their answers from one of the tables; `stored_row` reads a result row.

    Args:
        answers: The table.
        most_characters: Longer answers are cut to this length; None: no limit.
    """
    answer = "a.answer" if most_characters is None else f"substr(a.answer, 1, {most_characters:d})"
    return _STORED.format(answers=answers, answer=answer)


def stored_row(row: Sequence[Any]) -> StoredRow:
    """Build a row from a result row of `stored_rows`."""
    ordinal, line, name, content, is_request, model, isolated, state, answer, turn_tokens, *others = row
    visible_rows, prompt_tokens, completion_tokens, logprob, thought = others
    return StoredRow(
        ordinal=ordinal,
        line=line,
        id=name,
        fields={} if is_request or content is None else json.loads(content),
        request=RowRequest.from_json(content) if is_request and content is not None else None,
        model=model,
        isolated=bool(isolated),
        state=state,
        answer=answer,
        turn_tokens=turn_tokens or 0,
        visible_rows=tuple((a, b) for a, b in json.loads(visible_rows)) if visible_rows else (),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        logprob=logprob,
        thought=bool(thought),
        memory=_memory_of(row),
    )


def rows_with_attempts(db: sqlite3.Connection, rows: Iterable[Sequence[Any]]) -> list[StoredRow]:
    """The first of the rows that `stored_rows` selects, up to `MOST_BYTES_AT_ONCE`, with their attempts.

    A first row that is larger than that is returned alone and without its content.
    """
    read: list[StoredRow] = []
    left = MOST_BYTES_AT_ONCE
    for row in rows:
        left -= _memory_of(row)
        if left < 0 and read:
            break
        read.append(stored_row(row) if left >= 0 else _without_content(row))
        if left <= 0:
            break
    attempts = _attempts_of(db, read[0].ordinal, read[-1].ordinal) if read else {}
    return [dataclasses.replace(row, attempts=tuple(attempts.get(row.ordinal, ()))) for row in read]


def only_column(row: StoredRow, column: str | None) -> StoredRow:
    """The row with only this field, because a segment of long rows may not fit into memory."""
    kept = {column: row.fields[column]} if column is not None and column in row.fields else {}
    return dataclasses.replace(row, fields=kept)


def _attempts_of(db: sqlite3.Connection, first: int, last: int) -> dict[int, list[Attempt]]:
    """Earlier attempts of the rows between two ordinals."""
    found: dict[int, list[Attempt]] = {}
    for ordinal, code, counted, isolated_tokens in db.execute(
        "SELECT ordinal, code, counted, isolated_tokens FROM attempts WHERE ordinal BETWEEN ? AND ?"
        " ORDER BY ordinal, number",
        (first, last),
    ):
        found.setdefault(ordinal, []).append(Attempt(code, bool(counted), isolated_tokens))
    return found


def _memory_of(row: Sequence[Any]) -> int:
    return memory_of((row[_CONTENT] or "").encode("utf-8", "surrogatepass"))


def _without_content(row: Sequence[Any]) -> StoredRow:
    small = stored_row([*row[:_CONTENT], None, *row[_CONTENT + 1 :]])
    return dataclasses.replace(small, memory=_memory_of(row), complete=False)
