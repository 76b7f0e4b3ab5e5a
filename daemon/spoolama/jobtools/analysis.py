"""Analyzes a published job: answers, agreement, failures, and its slowest and longest rows."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from spoolama.job.answer import enum_of
from spoolama.jobtools.published import open_published
from spoolama.publish.encoding import csv_line
from spoolama.publish.metrics import Metrics
from spoolama.publish.result_row import ResultRow
from spoolama.publish.summary import agreement_sentences, balance, context_sentences

_MEASURES: dict[str, Callable[[ResultRow], float | None]] = {
    "slowest": lambda result: result.latency_s,
    "longest prompt": lambda result: result.prompt_tokens,
    "longest answer": lambda result: result.completion_tokens,
    "most attempts": lambda result: result.attempts if result.attempts > 1 else None,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """The failed rows with one error code."""

    code: str
    rows: int
    example: ResultRow

    @property
    def message(self) -> str:
        """The message of the example."""
        return (self.example.error or {}).get("message", "")


@dataclass(frozen=True, slots=True)
class Analysis:
    """The analysis of a job."""

    metrics: Metrics
    failures: list[Failure]
    """Most frequent first."""
    extremes: dict[str, list[tuple[float, ResultRow]]]
    """Values and rows: `slowest` (seconds), `longest prompt`, `longest answer` (tokens; not for labels),
    `most attempts`."""

    @property
    def warning(self) -> str | None:
        """The harm that the audit found."""
        return None if self.metrics.audit is None else self.metrics.audit.warning()

    def csv(self) -> Iterator[bytes]:
        """The analysis as one table: section, item, value, note."""
        yield csv_line(("section", "item", "value", "note"))
        for line in self._table():
            yield csv_line(line)

    def _table(self) -> Iterator[tuple[str, str, str, str]]:
        yield "rows", self.metrics.job, "", balance(self.metrics)
        if self.warning:
            yield "warnings", "", "", self.warning
        if (answers := self.metrics.answers) is not None:
            for label, rows in (answers.counts or {}).items():
                yield "answers", label, str(rows), f"{rows / answers.rows:.4f}"
            for label in answers.never:
                yield "answers", label, "0", f"{0:.4f}"
            if answers.counts is None:
                yield "answers", "", "", answers.sentence()
        if (agreement := self.metrics.agreement) is not None:
            for name, value in asdict(agreement).items():
                if name.endswith("_interval") and value is not None:
                    yield "agreement", f"{name}_low", f"{value[0]:.6f}", "95 %"
                    yield "agreement", f"{name}_high", f"{value[1]:.6f}", "95 %"
                elif isinstance(value, int | float | str):
                    yield "agreement", name, str(value), agreement.how.get(name, "")
            for sentence in agreement_sentences(self.metrics):
                yield "agreement", "in words", "", sentence
        for label, sentence in context_sentences(self.metrics):
            yield "context", label, "", sentence
        for failure in self.failures:
            note = f"row {failure.example.row}: {failure.message}"
            yield "failures", failure.code, str(failure.rows), note
        for what, rows_of in self.extremes.items():
            for value, result in rows_of:
                yield what, f"row {result.row}", f"{value:g}", result.id or ""


def analyze_job(path: Path, *, most: int = 5) -> Analysis:
    """Analyze a published job.

    Args:
        path: Its directory.
        most: Number of slow and long rows.

    Raises:
        InputError: it is not a published job.
    """
    job = open_published(path)
    labels = enum_of(job.sidecar) is not None
    heaps: dict[str, list[tuple[float, int, ResultRow]]] = {what: [] for what in _MEASURES}
    examples: dict[str, ResultRow] = {}
    for result in job.results():
        if result.error is not None:
            examples.setdefault(result.error["code"], result)
        for what, measure in _MEASURES.items():
            value = measure(result)
            if value is None or (what == "longest answer" and labels):
                continue
            heapq.heappush(heaps[what], (float(value), -result.row, result))
            if len(heaps[what]) > most:
                heapq.heappop(heaps[what])
    return Analysis(
        metrics=job.metrics,
        failures=[
            Failure(code, rows, examples[code])
            for code, rows in job.metrics.errors.items()
            if code in examples
        ],
        extremes={
            what: [(value, result) for value, _, result in sorted(heap, key=lambda e: (-e[0], -e[1]))]
            for what, heap in heaps.items()
            if heap
        },
    )
