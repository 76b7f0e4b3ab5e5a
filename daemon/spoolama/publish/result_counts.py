"""Counts the results of a job as they are written, in constant memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spoolama.job.answer import enum_of
from spoolama.job.row import NOTE_KEY
from spoolama.job.sidecar import Sidecar
from spoolama.publish.agreement import AnswerCounts
from spoolama.publish.metrics import Metrics
from spoolama.publish.result_row import ResultRow, label_of_result

_MOST_OF_A_NAME, _MOST_OF_A_PATH = 255, 4096
"""Longer ones do not exist."""


@dataclass(frozen=True, slots=True)
class FirstJob:
    """The job whose rows were uploaded again."""

    job: str
    directory: str
    """Where it is, or the directory that `merge` created from it; for commands."""

    def possible(self) -> bool:
        """Whether it can exist; it is from uploaded data."""
        fits = len(self.job) <= _MOST_OF_A_NAME and len(self.directory) <= _MOST_OF_A_PATH
        return fits and self.job.isprintable() and self.directory.isprintable()


def _origin(job: str, fields: Mapping[str, Any]) -> FirstJob:
    note = fields.get(NOTE_KEY)
    directory = note.get("directory") if isinstance(note, Mapping) else None
    return FirstJob(job, directory if isinstance(directory, str) and directory else f"done/{job}")


@dataclass
class ResultCounts:
    """Counts of the written rows; call `add` once for each, in input order.

    Args:
        sidecar: The job's sidecar.
        parsed: Whether answers are parsed JSON values.
    """

    sidecar: Sidecar
    parsed: bool
    rows: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    """Rows with a result for which a request was sent."""
    errors: Counter[str] = field(default_factory=Counter)
    """Failed rows by error code."""
    examples: dict[str, ResultRow] = field(default_factory=dict)
    """The first failed row of each code."""
    both_rows: int = 0
    """Rows for which the server counted both prompt tokens and cached tokens."""
    both_prompt: int = 0
    """Prompt tokens of these rows."""
    both_cached: int = 0
    """Cached tokens of these rows."""
    peak_context: int | None = None
    """Most tokens of prompt and answer of one row."""
    last_context: int | None = None
    """Tokens of prompt and answer of the row that was answered last."""
    visible_rows_peak: int = 0
    """Most other rows in the prompt of one answered row."""
    origins: set[FirstJob] = field(default_factory=set)
    """The jobs that rows were uploaded to before; at most two are kept."""
    last_at: float = 0.0
    max_latency_s: float | None = None

    def __post_init__(self) -> None:
        self.answers = AnswerCounts(self.sidecar.gold, enum_of(self.sidecar))
        self._segments = bytearray()

    @property
    def segments(self) -> int:
        """Number of segments with an answered row."""
        return self._segments.count(1)

    @property
    def origin(self) -> FirstJob | None:
        """The job that the rows were uploaded to before; None: there is none, or more than one."""
        origin = next(iter(self.origins)) if len(self.origins) == 1 else None
        return origin if origin is not None and origin.possible() else None

    def metrics(self) -> Metrics:
        """The metrics that need no more than these rows."""
        return Metrics(
            total=self.rows,
            completed=self.by_status["ok"],
            failed=self.by_status["failed"],
            skipped=self.by_status["skipped"],
            errors=dict(sorted(self.errors.items(), key=lambda item: (-item[1], item[0]))),
            answers=self.answers.distribution(),
            agreement=self.answers.agreement(),
            agreement_along_job=self.answers.along_job() or None,
        )

    def add(self, result: ResultRow, fields: Mapping[str, Any] | None = None) -> None:
        """Add the next row.

        Args:
            result: Its result.
            fields: Its fields, which name the directory of its earlier job.
        """
        self.rows += 1
        self.by_status[result.status] += 1
        self.asked += result.status != "skipped" and result.attempts > 0
        if result.origin and len(self.origins) < 2:
            self.origins.add(_origin(str(result.origin[0][0]), fields or {}))
        if result.error is not None:
            self.errors[result.error["code"]] += 1
            self.examples.setdefault(result.error["code"], result)
        if result.status == "ok":
            self._add_answered(result)

    def _add_answered(self, result: ResultRow) -> None:
        label = label_of_result(result, parsed=self.parsed, key=self.sidecar.answer_key)
        self.answers.add(label, result.gold, row=result.row, used=bool(result.gold_used))
        if result.segment is not None:
            if result.segment >= len(self._segments):
                self._segments.extend(bytes(result.segment + 1 - len(self._segments)))
            self._segments[result.segment] = 1
        visible = sum(last - first + 1 for first, last in result.visible_rows or ())
        self.visible_rows_peak = max(self.visible_rows_peak, visible)
        if result.prompt_tokens is not None and result.cached_tokens is not None:
            self.both_rows += 1
            self.both_prompt += result.prompt_tokens
            self.both_cached += result.cached_tokens
        if result.prompt_tokens is not None and result.completion_tokens is not None:
            context = result.prompt_tokens + result.completion_tokens
            self.peak_context = max(context, self.peak_context or 0)
            if (result.at or 0.0) >= self.last_at:
                self.last_at, self.last_context = result.at or 0.0, context
        if result.latency_s is not None:
            self.max_latency_s = max(result.latency_s, self.max_latency_s or 0.0)
