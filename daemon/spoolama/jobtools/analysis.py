"""What a published job looks like: spread, agreement, failures, and its slowest and longest rows."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spoolama.job.answer import enum_of
from spoolama.jobtools.published import open_published
from spoolama.publish.agreed import along_sentence
from spoolama.publish.agreement import Agreement, Spread
from spoolama.publish.effects import effect_sentences, warnings_of
from spoolama.publish.record import Record
from spoolama.publish.result_counts import ResultCounts
from spoolama.publish.summary import balance
from spoolama.publish.text import csv_line

__all__ = ["Analysis", "Failure", "analyze_job"]

_MEASURES: dict[str, Callable[[Record], float | None]] = {
    "slowest": lambda record: record.latency_s,
    "longest prompt": lambda record: record.prompt_tokens,
    "longest answer": lambda record: record.completion_tokens,
    "most tries": lambda record: record.attempts if record.attempts > 1 else None,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A class of failures."""

    code: str
    rows: int
    example: Record


@dataclass(frozen=True, slots=True)
class Analysis:
    """What there is to see."""

    job: str
    balance: str
    """The sentence in which the books balance."""
    warnings: list[str]
    """What the audit found wrong with the answers."""
    spread: Spread
    agreement: Agreement | None
    effects: list[tuple[str, str]]
    """What stood before the rows and what it did to the answers: label and sentence."""
    along: str | None
    """The agreement in thirds of the rows."""
    failures: list[Failure]
    """Most first."""
    extremes: dict[str, list[tuple[float, Record]]]
    """`slowest` (seconds), `longest prompt`, `longest answer` (tokens, of texts only: labels have one length
    each), `most tries`: rows of each."""

    def csv(self) -> Iterator[bytes]:
        """The whole analysis as one table: section, item, value, note."""
        yield csv_line(("section", "item", "value", "note"))
        for section, item, value, note in self._table():
            yield csv_line((section, item, value, note))

    def _table(self) -> Iterator[tuple[str, str, str, str]]:
        yield "rows", self.job, "", self.balance
        for text in self.warnings:
            yield "warnings", "", "", text
        for label, rows in (self.spread.counts or {}).items():
            yield "answers", label, str(rows), f"{rows / self.spread.rows:.4f}"
        for label in self.spread.never:
            yield "answers", label, "0", f"{0:.4f}"
        if self.spread.counts is None:
            yield "answers", "", "", self.spread.sentence()
        if self.agreement is not None:
            for name, value in self.agreement.to_json().items():
                if isinstance(value, tuple):
                    yield "agreement", f"{name}_low", f"{value[0]:.6f}", "95 %"
                    yield "agreement", f"{name}_high", f"{value[1]:.6f}", "95 %"
                elif isinstance(value, int | float | str):
                    yield "agreement", name, str(value), self.agreement.how.get(name, "")
            for note in self.agreement.notes:
                yield "agreement", "note", "", note
        if self.along is not None:
            yield "agreement", "along the job", "", self.along
        for label, sentence in self.effects:
            yield "effects", label, "", sentence
        for failure in self.failures:
            message = (failure.example.error or {}).get("message", "")
            yield "failures", failure.code, str(failure.rows), f"row {failure.example.row}: {message}"
        for what, rows_of in self.extremes.items():
            for value, record in rows_of:
                yield what, f"row {record.row}", f"{value:g}", record.id or ""


def analyze_job(path: Path, *, most: int = 5) -> Analysis:
    """Look through a published job once.

    Args:
        path: Its directory.
        most: Rows to name of each kind.

    Raises:
        InputError: it is no published job.
    """
    job = open_published(path)
    tally = ResultCounts(job.sidecar, job.parsed)
    labels = enum_of(job.sidecar) is not None
    heaps: dict[str, list[tuple[float, int, Record]]] = {what: [] for what in _MEASURES}
    for record in job.records():
        tally.add(record)
        for what, measure in _MEASURES.items():
            value = measure(record)
            if value is None or (what == "longest answer" and labels):
                continue
            entry = (float(value), -record.row, record)
            if len(heaps[what]) < most:
                heapq.heappush(heaps[what], entry)
            else:
                heapq.heappushpop(heaps[what], entry)
    by = tally.by_status
    return Analysis(
        job=job.job,
        balance=balance(tally.rows, by["ok"], by["failed"], by["skipped"]),
        warnings=warnings_of(job.metrics),
        spread=tally.answers.spread(),
        agreement=tally.answers.agreement(),
        effects=effect_sentences({**job.metrics, "sight_peak": tally.sight_peak}),
        along=along_sentence(tally.answers.along_job()),
        failures=[Failure(code, rows, tally.examples[code]) for code, rows in tally.failures.items()],
        extremes={
            what: [(value, record) for value, _, record in sorted(heap, key=lambda e: (-e[0], -e[1]))]
            for what, heap in heaps.items()
            if heap
        },
    )
