"""Merges the answers of a retry into the job that its rows came from."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spoolama.errors import InputError
from spoolama.job.row import NOTE_KEY, Row
from spoolama.jobtools.published import Published, json_lines, open_published, pairs
from spoolama.publish.build import write_summary
from spoolama.publish.columns import Columns, KeyUnion, answer_keys
from spoolama.publish.metrics import definitions
from spoolama.publish.outputs import OPENAI_COLUMNS, Outputs
from spoolama.publish.result_counts import ResultCounts
from spoolama.publish.result_row import ResultRow
from spoolama.publish.summary import Summary
from spoolama.spool.layout import UPLOADED

_KEPT = (
    "job",
    "data_name",
    "data_sha256",
    "sidecar_name",
    "sidecar_sha256",
    "sidecar",
    "input_format",
    "max_cell_bytes",
    "audit",
)
"""Metrics of the first job that also hold for the merged one."""


def merge_jobs(first: Path, retry: Path, out: Path) -> Summary:
    """Write `out`: the first job with the answers of the retry for its rows without an answer.

    Answers of the first job stay. `out` is a published job itself, whose errors can be uploaded again. It
    appears complete, by one rename.

    Raises:
        InputError: the jobs do not belong together, or `out` exists; nothing was written.
    """
    original, second = open_published(first), open_published(retry)
    if out.exists():
        raise InputError(f"{out} already exists.", fix="Use the name of a new directory.", code="exists")
    _check_alike(original, second)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        summary = _write(original, second, part, directory=str(out))
        part.rename(out)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(part)
        raise
    return summary


def _check_alike(original: Published, retry: Published) -> None:
    if original.metrics.openai != retry.metrics.openai:
        raise InputError(
            f"Only one of {original.job} and {retry.job} consists of OpenAI batch requests.",
            fix="Upload retry.jsonl (OpenAI), or errors.jsonl with errors.yaml, as they were published.",
            code="merge_mismatch",
        )
    if not original.metrics.openai and answer_keys(original.sidecar.format) != answer_keys(
        retry.sidecar.format
    ):
        raise InputError(
            f"The answers of {retry.job} have other keys than those of {original.job}.",
            fix="Ask again with the same `format`.",
            code="merge_mismatch",
        )


def _write(original: Published, retry: Published, out: Path, *, directory: str) -> Summary:
    first = original.metrics
    counts, merged_answers = ResultCounts(original.sidecar, original.parsed), 0
    with _RetryIndex(original, retry) as index:
        outputs = Outputs(
            out,
            job=original.job,
            sidecar=original.sidecar,
            columns=_columns(original, retry),
            openai=first.openai,
            model=original.sidecar.model,
            with_sidecar=first.sidecar_name is not None,
            directory=directory,
        )
        named = first.openai or original.sidecar.id is not None
        with outputs:
            for row, result in pairs(original):
                again = None if result.status == "ok" else index.answer(result.row)
                if again is None or again.result.status == "skipped":
                    merged, fields = result, result.fields or row.fields
                    details = index.details("first", result.row)
                else:
                    merged, fields = _merged(retry.job, named, result, row, again)
                    details = index.details("retry", again.result.row)
                    merged_answers += merged.status == "ok"
                counts.add(merged, row.fields)
                outputs.add(merged, fields, None if row.fields is not None else row.raw, details)
        answered_before = index.answered_before
    sources = [{k: v for k, v in job.metrics.to_json().items() if k != "how"} for job in (original, retry)]
    metrics = replace(
        counts.metrics(),
        **{name: getattr(first, name) for name in _KEPT},
        isolated=first.isolated and retry.metrics.isolated,
        merged_answers=merged_answers,
        merged_already_answered=answered_before,
        merged_from=tuple(sources),
    )
    notes = {
        one.name: first.notes.get(one.name, one.missing)
        if one.name in _KEPT
        else "a merged job has no such value; see `merged_from`"
        for one in definitions()
        if getattr(metrics, one.name) is None and one.name not in ("agreement", "agreement_along_job")
    }
    summary = write_summary(out, replace(metrics, notes=notes), counts, directory=directory)
    for name in (first.data_name, first.sidecar_name):
        if name is not None and (original.path / UPLOADED / name).exists():
            (out / UPLOADED).mkdir(exist_ok=True)
            shutil.copy2(original.path / UPLOADED / name, out / UPLOADED / name)
    return summary


def _merged(
    retry: str, named: bool, first: ResultRow, row: Row, again: _Retried
) -> tuple[ResultRow, Mapping[str, Any] | None]:
    """The result of the retry at the position of the first job, and the fields with which it was asked."""
    result = again.result
    corrected = {k: v for k, v in (again.fields or {}).items() if k != NOTE_KEY} or None
    asked = None if row.fields is None else {k: v for k, v in row.fields.items() if k != NOTE_KEY}
    merged = replace(
        result,
        row=first.row,
        line=first.line,
        # Where rows have ids of their own, the id can be what was corrected (a duplicate).
        id=result.id if first.id is None or (named and result.id is not None) else first.id,
        origin=first.origin,
        gold=result.gold if result.gold is not None else first.gold,
        gold_used=first.gold_used or result.gold_used,
        attempts=first.attempts + result.attempts,
        answered_by=[retry, result.row] if result.answered_by is None else result.answered_by,
        fields=corrected if corrected != asked else None,
    )
    return merged, corrected if corrected is not None else row.fields


def _columns(original: Published, retry: Published) -> Columns:
    if original.metrics.openai:
        return Columns(OPENAI_COLUMNS, [])
    keys = answer_keys(original.sidecar.format)
    asked_again = any(result.asked_again for job in (original, retry) for result in job.results())
    union = KeyUnion()
    for job in (original, retry):
        with job.rows() as rows:
            if job is original and rows.columns is not None:
                return Columns(rows.columns, keys, asked_again=asked_again)
            for row in rows:
                union.add(row.fields or {})
    return Columns(union.keys, keys, more=union.more, asked_again=asked_again)


# --- which row of the retry belongs to which row ---------------------------------------------------------

_TABLES = """
CREATE TABLE first (row INTEGER PRIMARY KEY, id TEXT, answered INTEGER NOT NULL);
CREATE INDEX first_id ON first (id);
CREATE TABLE details (side TEXT, row INTEGER, note TEXT NOT NULL, PRIMARY KEY (side, row));
CREATE TABLE retried (row INTEGER PRIMARY KEY, result TEXT NOT NULL, fields TEXT);
"""


@dataclass(frozen=True, slots=True)
class _Retried:
    """A row of the retry."""

    result: ResultRow
    fields: dict[str, Any] | None
    """The fields with which it was asked."""


class _RetryIndex:
    """An index on disk of the rows of a retry, so that merging needs constant memory; a context manager.

    A row of the retry belongs to the row that its key `_spoolama` names. Without that key it belongs to the
    only row with the same id that has no answer yet.

    Args:
        original: The first job.
        retry: The job that asked its rows again.

    Raises:
        InputError: a row of the retry belongs to no row of the first job, or two belong to the same row.
    """

    def __init__(self, original: Published, retry: Published) -> None:
        self.answered_before = 0
        """Rows of the retry whose row in the first job already has an answer, which stays."""
        self._original = original
        self._retry = retry
        self._stack = ExitStack()
        self._db = sqlite3.connect("", isolation_level=None)  # a temporary file, removed when closed
        self._stack.callback(self._db.close)

    def __enter__(self) -> Self:
        with self._stack:
            self._db.executescript(_TABLES)
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT INTO first VALUES (?, ?, ?)",
                ((r.row, r.id, r.status == "ok") for r in self._original.results()),
            )
            for side, job in (("first", self._original), ("retry", self._retry)):
                self._read_notes(side, job)
            self._read_retry()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def answer(self, row: int) -> _Retried | None:
        """The row of the retry that belongs to this row."""
        found = self._db.execute("SELECT result, fields FROM retried WHERE row=?", (row,)).fetchone()
        if found is None:
            return None
        fields = None if found[1] is None else json.loads(found[1])
        return _Retried(ResultRow.from_json(json.loads(found[0])), fields)

    def details(self, side: str, row: int) -> dict[str, Any]:
        """Sizes and the raw answer of a failed row (`first` or `retry`, and its number there)."""
        found = self._db.execute("SELECT note FROM details WHERE side=? AND row=?", (side, row)).fetchone()
        note = {} if found is None else json.loads(found[0])
        details = dict(note.get("details") or {})
        if "answer" in note:
            details["answer"] = note["answer"]
        return details

    def _read_notes(self, side: str, job: Published) -> None:
        for name in ("retry.jsonl",) if job.metrics.openai else ("errors.jsonl", "skipped.jsonl"):
            path = job.path / name
            if not path.exists():
                continue
            notes = (line[NOTE_KEY] for line in json_lines(path) if isinstance(line.get(NOTE_KEY), dict))
            self._db.executemany(
                "INSERT OR IGNORE INTO details VALUES (?, ?, ?)",
                ((side, note.get("row"), json.dumps(note)) for note in notes),
            )

    def _read_retry(self) -> None:
        for row, result in pairs(self._retry):
            original = self._original_row(result)
            if original is None:
                self.answered_before += 1
                continue
            fields = None if row.fields is None else json.dumps(dict(row.fields))
            try:
                self._db.execute(
                    "INSERT INTO retried VALUES (?, ?, ?)", (original, json.dumps(result.to_json()), fields)
                )
            except sqlite3.IntegrityError:
                raise self._mismatch(
                    result, f"row {original} of {self._original.job} has two answers"
                ) from None

    def _original_row(self, result: ResultRow) -> int | None:
        """The row of the first job; None if that has an answer."""
        name = self._original.job
        for job, row in result.origin or []:
            if job == name:
                found = self._db.execute("SELECT answered FROM first WHERE row=?", (row,)).fetchone()
                if found is None:
                    raise self._mismatch(result, f"{job} has no row {row}")
                return None if found[0] else row
        if result.origin:
            raise self._mismatch(result, f"it comes from {result.origin[0][0]}, not from {name}")
        if result.id is None:
            raise self._mismatch(result, "it has neither an id nor the key `_spoolama` of errors.jsonl")
        same = self._db.execute("SELECT row, answered FROM first WHERE id=?", (result.id,)).fetchall()
        if not same:
            raise self._mismatch(result, f"{name} has no row with the id {result.id!r}")
        waiting = [row for row, answered in same if not answered]
        if len(waiting) > 1:
            raise self._mismatch(
                result, f"{len(waiting)} rows of {name} without an answer have the id {result.id!r}"
            )
        return waiting[0] if waiting else None

    def _mismatch(self, result: ResultRow, why: str) -> InputError:
        return InputError(
            f"Row {result.row} of {self._retry.job} does not belong to {self._original.job}: {why}.",
            fix="Give the original job first and the retry second. Nothing was written.",
            code="merge_mismatch",
        )
