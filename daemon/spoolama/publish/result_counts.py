"""What is counted while the rows of a job pass by: for metrics.json and summary.txt, in flat memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from spoolama.job.answer import enum_of
from spoolama.job.sidecar import Sidecar
from spoolama.publish.agreement import AnswerTally
from spoolama.publish.labels import label_of_record
from spoolama.publish.record import Record

__all__ = ["ResultCounts"]

_STATUSES = ("ok", "failed", "skipped")


@dataclass
class ResultCounts:
    """Counts of the rows that were written; hand each to `add` once, in input order.

    Args:
        sidecar: What was asked.
        parsed: Whether answers are parsed JSON values.
    """

    sidecar: Sidecar
    parsed: bool
    rows: int = 0
    by_status: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_STATUSES, 0))
    asked: int = 0
    """Rows with an end of which a request was sent."""
    errors: dict[str, int] = field(default_factory=dict)
    """Failed rows by class."""
    examples: dict[str, Record] = field(default_factory=dict)
    """The first failed row of each class."""
    both_rows: int = 0
    """Rows of which the server counted both prompt and cached tokens."""
    both_prompt: int = 0
    """Prompt tokens of those rows."""
    both_cached: int = 0
    """Cached tokens of those rows."""
    peak_context: int | None = None
    """Most prompt and answer tokens of one row."""
    last_context: int | None = None
    """Prompt and answer tokens of the row that was answered last."""
    sight_peak: int = 0
    """Most rows in sight of which one was answered."""
    last_at: float = 0.0
    max_latency_s: float | None = None

    def __post_init__(self) -> None:
        self.answers = AnswerTally(self.sidecar.gold, enum_of(self.sidecar))
        self._segments = bytearray()

    @property
    def segments(self) -> int:
        """Different segments that have an answered row."""
        return self._segments.count(1)

    @property
    def failures(self) -> dict[str, int]:
        """Failed rows by class, most first."""
        return dict(sorted(self.errors.items(), key=lambda item: (-item[1], item[0])))

    def add(self, record: Record, *, gold_used: bool = False) -> None:
        """The next row.

        Args:
            record: How it ended.
            gold_used: Leave it out of the agreement with gold, whatever it says of that itself.
        """
        self.rows += 1
        self.by_status[record.status] += 1
        self.asked += record.status != "skipped" and record.attempts > 0
        if record.error is not None:
            code = record.error["code"]
            self.errors[code] = self.errors.get(code, 0) + 1
            self.examples.setdefault(code, record)
        if record.status == "ok":
            self._add_answered(record, used=bool(record.gold_used) or gold_used)

    def _add_answered(self, record: Record, *, used: bool) -> None:
        label = label_of_record(record, parsed=self.parsed, key=self.sidecar.answer_key)
        self.answers.add(label, record.gold, row=record.row, used=used)
        if record.segment is not None:
            if record.segment >= len(self._segments):
                self._segments.extend(bytes(record.segment + 1 - len(self._segments)))
            self._segments[record.segment] = 1
        self.sight_peak = max(self.sight_peak, sum(last - first + 1 for first, last in record.seen or ()))
        if record.prompt_tokens is not None and record.cached_tokens is not None:
            self.both_rows += 1
            self.both_prompt += record.prompt_tokens
            self.both_cached += record.cached_tokens
        if record.prompt_tokens is not None and record.completion_tokens is not None:
            context = record.prompt_tokens + record.completion_tokens
            self.peak_context = max(context, self.peak_context or 0)
            if (record.at or 0.0) >= self.last_at:
                self.last_at, self.last_context = record.at or 0.0, context
        if record.latency_s is not None:
            self.max_latency_s = max(record.latency_s, self.max_latency_s or 0.0)
