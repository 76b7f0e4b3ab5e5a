"""Bringing second answers home: a job and the retry of its errors become one whole result, in order."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from spoolama.errors import InputError
from spoolama.job.row import NOTE_KEY, Row
from spoolama.jobtools.merge_index import MergeIndex, Second
from spoolama.jobtools.published import Published, open_published, pairs
from spoolama.publish.agreement import Agreement
from spoolama.publish.columns import Columns, KeyUnion, answer_keys
from spoolama.publish.metrics import Metrics
from spoolama.publish.outputs import OPENAI_COLUMNS, Outputs
from spoolama.publish.record import Record
from spoolama.publish.result_counts import ResultCounts
from spoolama.publish.summary import Summary, merged_text
from spoolama.publish.text import json_document
from spoolama.spool.layout import UPLOADED

__all__ = ["merge_jobs"]

_KEPT = (
    "data_name",
    "data_sha256",
    "sidecar_name",
    "sidecar_sha256",
    "sidecar",
    "input_format",
    "max_cell_bytes",
)


def merge_jobs(home: Path, retry: Path, out: Path) -> Summary:
    """Write `out`: the job at `home` with the answers of `retry` in the places of the rows they are of.

    Answers that home has stay as they are. `out` is a published job itself: errors that are left can be
    dropped again and merged into it. It appears complete, by one rename.

    Raises:
        InputError: the two do not belong together, or `out` exists; nothing was written.
    """
    first, second = open_published(home), open_published(retry)
    if out.exists():
        raise InputError(f"{out} exists already.", fix="Name a directory that does not exist.", code="exists")
    _check_alike(first, second)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        summary = _write(first, second, part)
        part.rename(out)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(part)
        raise
    return summary


def _check_alike(home: Published, retry: Published) -> None:
    if home.openai != retry.openai:
        raise InputError(
            f"One of {home.job} and {retry.job} is of OpenAI batch requests, the other is not.",
            fix="Drop retry.jsonl (OpenAI) or errors.jsonl with errors.yaml as they were given.",
            code="merge_mismatch",
        )
    if not home.openai and answer_keys(home.sidecar.format) != answer_keys(retry.sidecar.format):
        raise InputError(
            f"The answers of {retry.job} have another form than those of {home.job}.",
            fix="Ask again with the same `format`.",
            code="merge_mismatch",
        )


def _write(home: Published, retry: Published, out: Path) -> Summary:
    tally = ResultCounts(home.sidecar, home.parsed)
    with MergeIndex(home, retry) as index:
        outputs = Outputs(
            out,
            job=home.job,
            sidecar=home.sidecar,
            columns=_columns(home, retry),
            openai=home.openai,
            model=home.sidecar.model,
            with_sidecar=home.metrics["sidecar_name"] is not None,
        )
        brought = 0
        named = home.openai or home.sidecar.id is not None
        with outputs:
            for row, record in pairs(home):
                again = None if record.status == "ok" else index.second(record.row)
                if again is None or again.record.status == "skipped":
                    merged, fields = record, record.fields or row.fields
                    details = index.details("home", record.row)
                else:
                    merged, fields = _second_end(retry.job, named, record, row, again)
                    details = index.details("retry", again.record.row)
                    brought += merged.status == "ok"
                tally.add(merged)
                outputs.add(merged, fields, None if row.fields is not None else row.raw, details)
        before = index.answered_before
    agreement = tally.answers.agreement()
    metrics = _metrics(home, retry, tally, agreement, brought).to_json()
    text = merged_text(
        metrics,
        retry=retry.job,
        answered_before=before,
        examples=tally.examples,
        answers=tally.answers.spread().sentence(),
        agreement=[] if agreement is None else agreement.sentences(),
        openai=home.openai,
    )
    (out / "metrics.json").write_bytes(json_document(metrics))
    (out / "summary.txt").write_text(text, encoding="utf-8")
    for name in (home.metrics["data_name"], home.metrics["sidecar_name"]):
        if name is not None and (home.path / UPLOADED / name).exists():
            (out / UPLOADED).mkdir(exist_ok=True)
            shutil.copy2(home.path / UPLOADED / name, out / UPLOADED / name)
    by = tally.by_status
    return Summary(tally.rows, by["ok"], by["failed"], by["skipped"], text, metrics)


def _second_end(
    job: str, named: bool, first: Record, row: Row, again: Second
) -> tuple[Record, Mapping[str, Any] | None]:
    """The row's end as the retry found it, told of its place at home, and the fields it was asked with."""
    end = again.record
    corrected = {k: v for k, v in (again.fields or {}).items() if k != NOTE_KEY} or None
    asked = dict(row.fields) if row.fields is not None else None
    if asked is not None:
        asked.pop(NOTE_KEY, None)
    merged = replace(
        end,
        row=first.row,
        line=first.line,
        # Where rows have names of their own the name may be what was corrected (a duplicate id).
        id=end.id if first.id is None or (named and end.id is not None) else first.id,
        home=first.home,
        gold=end.gold if end.gold is not None else first.gold,
        gold_used=first.gold_used or end.gold_used,
        attempts=first.attempts + end.attempts,
        by=[job, end.row] if end.by is None else end.by,
        fields=corrected if corrected != asked else None,
    )
    return merged, corrected if corrected is not None else row.fields


def _columns(home: Published, retry: Published) -> Columns:
    if home.openai:
        return Columns(OPENAI_COLUMNS, [])
    keys = answer_keys(home.sidecar.format)
    redone = any(record.redone for job in (home, retry) for record in job.records())
    with home.rows() as rows:
        if rows.columns is not None:
            return Columns(rows.columns, keys, redone=redone)
        union = KeyUnion()
        for row in rows:
            union.add(row.fields or {})
    with retry.rows() as rows:
        for row in rows:
            union.add(row.fields or {})
    return Columns(union.keys, keys, more=union.more, redone=redone)


def _metrics(
    home: Published, retry: Published, tally: ResultCounts, agreement: Agreement | None, brought: int
) -> Metrics:
    metrics = Metrics()
    put, by, how = metrics.put, tally.by_status, "counted as written"
    put("job", home.job, "the job that the rows belong to")
    for name in _KEPT:
        put(name, home.metrics.get(name), "as in the first job", missing="the first job has none")
    put("total", tally.rows, f"rows of the first job, {how}")
    put("completed", by["ok"], f"rows with an answer, {how}")
    put("failed", by["failed"], f"rows that ended with an error, {how}")
    put("skipped", by["skipped"], f"rows never tried, {how}")
    put("errors", tally.failures, f"failed rows by class, {how}")
    put("brought_home", brought, f"answers taken from the second job, {how}")
    put("answers", tally.answers.spread().to_json(), f"answers of completed rows, {how}")
    put(
        "agreement",
        None if agreement is None else agreement.to_json(),
        "completed rows against the sidecar's gold column; each measure has its own `how`",
        missing="the sidecar names no gold column",
    )
    for name in ("audit", "guard"):  # guard: of jobs that an earlier version published
        put(
            name,
            home.metrics.get(name),
            "of the first job, from which the rows with an answer come",
            missing="the first job has none",
        )
    sources = [{k: v for k, v in job.metrics.items() if k != "how"} for job in (home, retry)]
    put("merged_from", sources, "metrics.json of both jobs; speed, tokens and times are told there")
    return metrics
