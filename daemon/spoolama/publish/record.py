"""A row of results.jsonl: how it ended, what it cost, and which other rows were in its prompt."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

from spoolama.job.row import NOTE_KEY
from spoolama.job.strict_json import BadJson, parse_json
from spoolama.spool.ledger_read import Outcome

__all__ = ["Record", "home_of", "record_of"]

_OPTIONAL = ("gold", "home", "model", "thinking", "by", "fields", "redone", "gold_used")


@dataclass(frozen=True, slots=True)
class Record:
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
    """Requests sent for the row; of one that was redone, for the answer it has now."""
    at: float | None = None
    """When the row ended, seconds since the epoch."""
    segment: int | None = None
    """0-based number of the segment."""
    place: int | None = None
    """0-based place in the segment."""
    seen: list[list[int]] | None = None
    """Closed ranges of rows (1-based) that it was answered in sight of; an empty list: of none."""
    plan: int | None = None
    """Version of the plan that its prompt was made by."""
    gold: Any = None
    """The known answer, where the sidecar names a `gold` column and the row has one."""
    home: list[list[Any]] | None = None
    """A row that was dropped again: [job, row] of where it comes from, the nearest first."""
    model: str | None = None
    """The model, where the row itself asked for one (OpenAI lines)."""
    thinking: str | None = None

    by: list[Any] | None = None
    """A merged row: [job, row] that gave the answer; segment, place, seen and plan are told of that job."""
    fields: dict[str, Any] | None = None
    """A merged row: the fields it was asked with, where somebody corrected them."""
    redone: bool | None = None
    """true: its conversation was seen to change answers, so its answer was taken back and it was asked
    again, alone."""
    gold_used: bool | None = None
    """true: by its answer, and its known one, was chosen what stands before the rows; it does not count for
    the agreement with gold."""

    def to_json(self) -> dict[str, Any]:
        """The line's keys in order; the last ones only where there is something to say."""
        out = {name: getattr(self, name) for name in self.__slots__}
        for name in _OPTIONAL:
            if out[name] is None:
                del out[name]
        return out

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Record:
        """The record of a line that `to_json` gave; keys of a later version are passed over."""
        return cls(**{name: line[name] for name in cls.__slots__ if name in line})


def record_of(outcome: Outcome, *, parse_answer: bool, gold: str | None, used: Container[int] = ()) -> Record:
    """What the ledger has of a row, as results.jsonl tells it.

    Args:
        outcome: The row. One that is still `pending` is told as skipped.
        parse_answer: Whether answers are JSON by the sidecar's `format`.
        gold: The column of known answers.
        used: Ordinals of the rows by which was chosen what stands before the others.
    """
    fields = outcome.fields or {}
    known = fields.get(gold) if gold is not None else None
    status = "skipped" if outcome.state == "pending" else outcome.state
    common = Record(
        row=outcome.ordinal + 1,
        line=outcome.line,
        id=outcome.id,
        status=status,
        attempts=outcome.attempts,
        at=outcome.at,
        gold=known if known != "" else None,
        home=home_of(fields) or None,
        model=outcome.model,
        redone=outcome.redone or None,
        gold_used=(known not in (None, "") and outcome.ordinal in used) or None,
    )
    if status == "skipped":
        return common
    if status == "failed":
        return replace(common, error={"code": outcome.code or "unknown", "message": outcome.message or ""})
    return replace(
        common,
        answer=_value(outcome.answer or "") if parse_answer else outcome.answer,
        prompt_tokens=outcome.prompt_tokens,
        cached_tokens=outcome.cached_tokens,
        completion_tokens=outcome.completion_tokens,
        latency_s=None if outcome.latency_s is None else round(outcome.latency_s, 6),
        segment=outcome.segment,
        place=outcome.place,
        seen=[[first + 1, last + 1] for first, last in outcome.visible_rows or []],
        plan=outcome.plan_version,
        thinking=outcome.thinking or None,
    )


def home_of(fields: Mapping[str, Any]) -> list[list[Any]]:
    """[job, row] of where a row that was dropped again comes from, the nearest first."""
    note = fields.get(NOTE_KEY)
    if not isinstance(note, Mapping):
        return []
    homes = [[note.get("job"), note.get("row")]]
    earlier = note.get("home")
    if isinstance(earlier, list):
        homes += [list(one) for one in earlier if isinstance(one, list) and len(one) == 2]
    return [[job, row] for job, row in homes if isinstance(job, str) and type(row) is int]


def _value(answer: str) -> Any:
    try:
        return parse_json(answer)
    except BadJson:
        return answer
