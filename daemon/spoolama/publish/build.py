"""Builds the published files of a job from its ledger.

It reads the ledger once or twice, with one row in memory at a time. Building again gives the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spoolama.errors import LedgerError
from spoolama.job.sidecar import Sidecar
from spoolama.publish.columns import Columns, KeyUnion, answer_keys
from spoolama.publish.encoding import json_document
from spoolama.publish.job_metrics import job_metrics
from spoolama.publish.metrics import Metrics
from spoolama.publish.outputs import OPENAI_COLUMNS, Outputs
from spoolama.publish.pilot_report import used_rows
from spoolama.publish.result_counts import ResultCounts
from spoolama.publish.result_row import result_of
from spoolama.publish.summary import Summary, summary_text
from spoolama.spool.ledger_reader import LedgerReader


def build_outputs(
    out: Path, ledger: LedgerReader, sidecar: Sidecar, *, ended_early: Mapping[str, Any] | None
) -> Summary:
    """Write the results, the errors, metrics.json and summary.txt. Slow for a large job: call it in a thread.

    Args:
        out: An existing directory; existing files are replaced. The caller syncs them to disk.
        ledger: The job's ledger. Pending rows count as skipped if the job ended early.
        sidecar: The job's sidecar.
        ended_early: Why the job ended before its last row (`code`, `message`, `fix`); None: it did not.

    Raises:
        LedgerError: the counts do not add up; nothing may be published.
    """
    openai = ledger.meta("input_format") == "openai"
    parsed = sidecar.format is not None and not openai
    gold = None if openai else sidecar.gold
    counts = ResultCounts(sidecar, parsed)
    name = str(ledger.meta("job", ""))
    directory = f"{'failed' if ended_early else 'done'}/{name}"
    outputs = Outputs(
        out,
        job=name,
        sidecar=sidecar,
        columns=_columns(ledger, sidecar, openai=openai),
        openai=openai,
        model=str((ledger.meta("model") or {}).get("name") or sidecar.model),
        with_sidecar=ledger.meta("sidecar_name") is not None,
        directory=directory,
    )
    used = used_rows(ledger) if gold is not None else set()
    with outputs:
        for ordinal, outcome in enumerate(ledger.outcomes()):
            if outcome.ordinal != ordinal:
                raise _unbalanced(f"row {ordinal + 1} is missing in the ledger")
            if outcome.state == "pending" and ended_early is None:
                raise _unbalanced(f"row {ordinal + 1} has neither an answer nor an error")
            result = result_of(outcome, parse_answer=parsed, gold=gold, used=used)
            counts.add(result, outcome.fields)
            outputs.add(result, outcome.fields, outcome.raw, outcome.details)
    _check_counts(ledger, counts)
    metrics = job_metrics(ledger, counts, sidecar, ended_early=ended_early)
    return write_summary(out, metrics, counts, directory=directory)


def write_summary(out: Path, metrics: Metrics, counts: ResultCounts, *, directory: str) -> Summary:
    """Write metrics.json and summary.txt.

    Args:
        out: An existing directory.
        metrics: The metrics of the job.
        counts: The counts of its results.
        directory: The job's directory, for commands.
    """
    text = summary_text(metrics, counts.examples, directory=directory, origin=counts.origin)
    (out / "metrics.json").write_bytes(json_document(metrics.to_json()))
    (out / "summary.txt").write_text(text, encoding="utf-8")
    return Summary(metrics, text)


def _columns(ledger: LedgerReader, sidecar: Sidecar, *, openai: bool) -> Columns:
    if openai:
        return Columns(OPENAI_COLUMNS, [])
    keys = answer_keys(sidecar.format)
    inputs, asked_again = ledger.meta("columns"), ledger.replaced() > 0
    if inputs is not None:
        return Columns(inputs, keys, asked_again=asked_again)
    union = KeyUnion()
    if "csv" in sidecar.output:
        for outcome in ledger.outcomes():
            union.add(outcome.fields or {})
    return Columns(union.keys, keys, more=union.more, asked_again=asked_again)


def _check_counts(ledger: LedgerReader, counts: ResultCounts) -> None:
    states, by = ledger.counts(), counts.by_status
    expected = (states["ok"], states["failed"], states["skipped"] + states["pending"])
    written = (by["ok"], by["failed"], by["skipped"])
    if expected != written or sum(written) != counts.rows:
        raise _unbalanced(f"the ledger has {expected} rows (ok, failed, skipped), the results {written}")


def _unbalanced(what: str) -> LedgerError:
    return LedgerError(
        f"The counts of the rows do not add up: {what}.",
        fix="The job stays in processing/. Keep its directory and report this.",
        code="books_unbalanced",
    )
