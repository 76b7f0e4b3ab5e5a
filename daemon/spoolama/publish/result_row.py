"""Defines a line of results.jsonl: the result of a row, its costs, and the rows in its prompt."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from spoolama.job.answer import label_of
from spoolama.job.row import NOTE_KEY
from spoolama.job.strict_json import BadJson, parse_json
from spoolama.publish.encoding import csv_cell
from spoolama.spool.ledger_reader import Outcome

NEVER_ASKED = "never asked: the job ended early"
"""Message of a skipped row."""
_OPTIONAL = ("gold", "origin", "model", "thinking", "answered_by", "fields", "asked_again", "gold_used")
_MOST_CHARACTERS = 200
"""Longer labels are shortened."""


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One line of results.jsonl."""

    row: int
    """1-based number of the row in the data file."""
    line: int
    """1-based line of the data file on which the row begins."""
    id: str | None
    status: str
    """`ok`, `failed` or `skipped`."""
    answer: Any = None
    """With `format` the parsed JSON value, otherwise the text."""
    error: Mapping[str, str] | None = None
    """`code` and `message` of a failed row."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    latency_s: float | None = None
    attempts: int = 0
    """Requests for this answer or error."""
    at: float | None = None
    """When the row ended, in seconds since the epoch."""
    segment: int | None = None
    """0-based number of the segment."""
    place: int | None = None
    """0-based position in the segment."""
    visible_rows: list[list[int]] | None = None
    """Closed ranges of the rows (1-based) in the prompt; empty: the row was isolated."""
    plan: int | None = None
    """Version of the plan that the prompt followed."""
    gold: Any = None
    """The known answer of the row."""
    origin: list[list[Any]] | None = None
    """A row that was uploaded again: [job, row] of its earlier jobs, the latest first."""
    model: str | None = None
    """The model that the row itself names (OpenAI lines)."""
    thinking: str | None = None
    answered_by: list[Any] | None = None
    """A merged row: [job, row] of the answer. Segment, place, visible rows and plan are those of that job."""
    fields: dict[str, Any] | None = None
    """A merged row: its fields in the retry, if they were corrected."""
    asked_again: bool | None = None
    """true: its answer in a conversation was withdrawn because of harm, and it was asked again."""
    gold_used: bool | None = None
    """true: its known answer helped to choose the form of the prompt: it does not count for the agreement."""

    def to_json(self) -> dict[str, Any]:
        """The keys of the line in order; the last eight only if they have a value."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if value is not None or name not in _OPTIONAL}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> ResultRow:
        """The row of a line; unknown keys are ignored."""
        return cls(**{name: line[name] for name in cls.__slots__ if name in line})


def result_of(
    outcome: Outcome, *, parse_answer: bool, gold: str | None, used: Container[int] = ()
) -> ResultRow:
    """The line of results.jsonl for a row of the ledger.

    Args:
        outcome: The row. A pending row counts as skipped.
        parse_answer: Whether answers are JSON by the sidecar's `format`.
        gold: The column of known answers.
        used: Ordinals of the rows whose known answers helped to choose the form of the prompt.
    """
    fields = outcome.fields or {}
    known = fields.get(gold) if gold is not None else None
    status = "skipped" if outcome.state == "pending" else outcome.state
    common = ResultRow(
        row=outcome.ordinal + 1,
        line=outcome.line,
        id=outcome.id,
        status=status,
        attempts=outcome.attempts,
        at=outcome.at,
        gold=known if known != "" else None,
        origin=origin_of(fields) or None,
        model=outcome.model,
        asked_again=outcome.redone or None,
        gold_used=(known not in (None, "") and outcome.ordinal in used) or None,
    )
    if status == "skipped":
        return common
    if status == "failed":
        return replace(common, error={"code": outcome.code or "unknown", "message": outcome.message or ""})
    text = outcome.answer or ""
    return replace(
        common,
        answer=_parsed(text, text) if parse_answer else outcome.answer,
        prompt_tokens=outcome.prompt_tokens,
        cached_tokens=outcome.cached_tokens,
        completion_tokens=outcome.completion_tokens,
        latency_s=None if outcome.latency_s is None else round(outcome.latency_s, 6),
        segment=outcome.segment,
        place=outcome.place,
        visible_rows=[[first + 1, last + 1] for first, last in outcome.visible_rows or []],
        plan=outcome.plan_version,
        thinking=outcome.thinking or None,
    )


def origin_of(fields: Mapping[str, Any]) -> list[list[Any]]:
    """[job, row] of the jobs that a row was uploaded to before, the latest first."""
    note = fields.get(NOTE_KEY)
    if not isinstance(note, Mapping):
        return []
    earlier = note.get("origin")
    found = [[note.get("job"), note.get("row")], *(earlier if isinstance(earlier, list) else [])]
    return [
        list(one)
        for one in found
        if isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) and type(one[1]) is int
    ]


# --- labels --------------------------------------------------------------------------------------------


def label_of_result(result: ResultRow, *, parsed: bool, key: str | None) -> str | None:
    """The part of an answer that is compared with `gold`.

    Args:
        result: An answered row.
        parsed: Whether its answer is a parsed JSON value. A text is parsed if it looks like a JSON object.
        key: The sidecar's `answer_key`.
    """
    answer = result.answer
    if parsed:
        return label_of(answer, "null", key)
    text = str(answer)
    return label_of(_parsed(text, None) if text.lstrip().startswith("{") else None, text, key)


def counted_label(value: Any) -> str:
    """A label as it is counted: a text without surrounding space, everything else as JSON.

    Of a long label only the beginning and a digest are kept, because up to a thousand are kept in memory.
    """
    word = csv_cell(value).strip()
    if len(word) <= _MOST_CHARACTERS:
        return word
    digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"{word[:_MOST_CHARACTERS]}… ({len(word):,} characters, {digest})"


def _parsed(answer: str, otherwise: Any) -> Any:
    try:
        return parse_json(answer)
    except BadJson:
        return otherwise
