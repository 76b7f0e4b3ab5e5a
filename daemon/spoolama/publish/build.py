"""What a job gives back: everything in `done/JOB/` that is made from the ledger.

Two passes over the ledger at most, one row in memory at a time. Writing again gives the same files: a service
that died in the middle just starts over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spoolama.errors import LedgerError
from spoolama.job.sidecar import Sidecar
from spoolama.publish.agreed import Agreement, along_sentence
from spoolama.publish.columns import Columns, KeyUnion, answer_keys
from spoolama.publish.metrics import job_metrics
from spoolama.publish.outputs import OPENAI_COLUMNS, Outputs
from spoolama.publish.pilot import used_rows
from spoolama.publish.record import record_of
from spoolama.publish.result_counts import ResultCounts
from spoolama.publish.summary import Summary, summary_text
from spoolama.publish.text import json_document
from spoolama.spool.ledger_reader import LedgerReader

__all__ = ["build_outputs"]


def build_outputs(
    out: Path, ledger: LedgerReader, sidecar: Sidecar, *, ended_early: Mapping[str, Any] | None
) -> Summary:
    """Write the results, the errors, metrics.json and summary.txt. Slow for a large job: call it in a thread.

    Args:
        out: An existing directory; files of these names are replaced. Making them durable is the caller's.
        ledger: The job's ledger. Rows still pending are told as skipped if the job ended early.
        sidecar: What was asked.
        ended_early: Why the job ended before its last row (`code`, `message`, `fix`); None: it did not.

    Raises:
        LedgerError: the books do not balance; nothing may be published.
    """
    openai = ledger.meta("input_format") == "openai"
    parsed = sidecar.format is not None and not openai
    job = str(ledger.meta("job", ""))
    tally = ResultCounts(sidecar, parsed)
    outputs = Outputs(
        out,
        job=job,
        sidecar=sidecar,
        columns=_columns(ledger, sidecar, openai=openai),
        openai=openai,
        model=str((ledger.meta("model") or {}).get("name") or sidecar.model),
        with_sidecar=ledger.meta("sidecar_name") is not None,
    )
    used = used_rows(ledger) if sidecar.gold is not None and not openai else set()
    with outputs:
        for ordinal, outcome in enumerate(ledger.outcomes()):
            if outcome.ordinal != ordinal:
                raise _unbalanced(f"row {ordinal + 1} is missing in the ledger")
            if outcome.state == "pending" and ended_early is None:
                raise _unbalanced(f"row {ordinal + 1} has neither an answer nor an error")
            gold = None if openai else sidecar.gold
            record = record_of(outcome, parse_answer=parsed, gold=gold, used=used)
            tally.add(record)
            outputs.add(record, outcome.fields, outcome.raw, outcome.details)
    _check_books(ledger, tally)
    agreement = tally.answers.agreement()
    metrics = job_metrics(ledger, tally, agreement, sidecar=sidecar, ended_early=ended_early).to_json()
    text = summary_text(
        metrics,
        examples=tally.examples,
        answers=tally.answers.spread().sentence(),
        agreement=_agreement_words(agreement, tally),
        openai=openai,
    )
    (out / "metrics.json").write_bytes(json_document(metrics))
    (out / "summary.txt").write_text(text, encoding="utf-8")
    by = tally.by_status
    return Summary(tally.rows, by["ok"], by["failed"], by["skipped"], text, metrics)


def _agreement_words(agreement: Agreement | None, tally: ResultCounts) -> list[str]:
    if agreement is None:
        return []
    along = along_sentence(tally.answers.along_job())
    return [*agreement.sentences(), *([] if along is None else [along])]


def _columns(ledger: LedgerReader, sidecar: Sidecar, *, openai: bool) -> Columns:
    keys = answer_keys(sidecar.format)
    if openai:
        return Columns(OPENAI_COLUMNS, [])
    inputs, redone = ledger.meta("columns"), ledger.replaced() > 0
    if inputs is not None:
        return Columns(inputs, keys, redone=redone)
    union = KeyUnion()
    if "csv" in sidecar.output:
        for outcome in ledger.outcomes():
            union.add(outcome.fields or {})
    return Columns(union.keys, keys, more=union.more, redone=redone)


def _check_books(ledger: LedgerReader, tally: ResultCounts) -> None:
    counts, by = ledger.counts(), tally.by_status
    expected = (counts["ok"], counts["failed"], counts["skipped"] + counts["pending"])
    written = (by["ok"], by["failed"], by["skipped"])
    if expected != written or sum(written) != tally.rows:
        raise _unbalanced(f"the ledger has {expected} rows (ok, failed, skipped), the results {written}")


def _unbalanced(what: str) -> LedgerError:
    return LedgerError(
        f"The books do not balance: {what}.",
        fix="The job stays in processing/. Keep its directory and report this.",
        code="books_unbalanced",
    )
