"""Defines a row as it is read from the data file, stored in the ledger, and answered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

NOTE_KEY = "_spoolama"
"""The only reserved key of a JSONL row. In errors.jsonl it names the row and the job of the line.

It must stay in the line when the line is uploaded again, so that `merge` can merge the answer into the job.
Its value can exceed the limit of a cell, because it contains the bytes of a row that could not be read.
"""


def memory_of(record: bytes) -> int:
    """Estimate the maximum bytes of a parsed record in memory.

    A character takes up to 4 bytes, and each value about 100 bytes in addition to its text.

    Args:
        record: A line of CSV or JSON.
    """
    values = record.count(b",") + record.count(b"[") + record.count(b"{")
    return len(record) * (1 if record.isascii() else 4) + 100 * values


@dataclass(frozen=True, slots=True)
class RowRequest:
    """The request that a row brings itself, such as an OpenAI batch line, in the terms of a sidecar.

    Where it sets nothing, the sidecar applies.
    """

    messages: tuple[tuple[str, str], ...]
    """Role and text of each message. A single message follows the sidecar's prefix."""
    num_predict: int | None = None
    """Maximum tokens of the answer."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """With Ollama's names; only the options that the row sets."""
    format: Mapping[str, Any] | Literal["json", "text"] | None = None
    """JSON Schema of the answer, "json" for any JSON, or "text"."""
    think: bool | str | None = None
    """Whether a thinking model thinks."""

    def to_json(self) -> str:
        """The request as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> RowRequest:
        """The request that `to_json` returned."""
        body = json.loads(text)
        messages = tuple((role, content) for role, content in body.pop("messages"))
        return cls(messages=messages, **body)


@dataclass(frozen=True, slots=True)
class LineRequest:
    """What an OpenAI batch line requests."""

    request: RowRequest
    model: str | None
    """The model that it names."""
    shape: str | None
    """Digest of what rows must have in common to share a conversation: everything except the last message.

    None if the messages are not one user message after at most one system message.
    """


@dataclass(frozen=True, slots=True)
class RowFault:
    """Why a row cannot be asked."""

    code: str
    """Stable name: `bad_encoding`, `bad_json`, `wrong_type`, `ragged`, `cell_too_large`, ..."""
    message: str
    """Text for people, with sizes."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of the data file."""

    ordinal: int
    """0-based place among the records of the file."""
    line: int
    """1-based line of the file (after decompression) on which the record begins."""
    fields: Mapping[str, Any] | None
    """Column or key to value; None if unreadable."""
    raw: bytes
    """The record's bytes in the file, without the newline (cut off if oversized)."""
    fault: RowFault | None = None
    """Set if the record is unreadable or refused."""
    id: str | None = None
    """The record's id if the format has one (`custom_id`)."""
    shape: str | None = None
    """Of a row with its own request: rows of one shape may share a conversation; None: it shares none."""
    model: str | None = None
    """The model that the row requests; None: the job's."""
    request: RowRequest | None = None
    """Set if the row brings its own request, which `evaluation/evaluator.py` reads."""


Ranges = tuple[tuple[int, int], ...]
"""Ordinals of answered rows as closed ranges: ((0, 4), (7, 7))."""


def ranges_of(ordinals: Iterable[int]) -> Ranges:
    """Convert ascending ordinals into closed ranges."""
    out: list[tuple[int, int]] = []
    for n in ordinals:
        if out and out[-1][1] == n - 1:
            out[-1] = (out[-1][0], n)
        else:
            out.append((n, n))
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A failed attempt to answer a row."""

    code: str
    """Class of failure; `open` if the service died during the request."""
    counted: bool
    """Whether it uses up one of the row's attempts."""
    isolated_tokens: int | None = None
    """Upper bound of prefix and row in tokens, from the server's refusal; None: not reported."""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row as stored in the ledger."""

    ordinal: int
    line: int
    id: str | None
    fields: Mapping[str, Any]
    model: str | None
    isolated: bool
    """The row is asked outside of conversations: it sees no other row, and no other row sees it."""
    state: str
    """`pending`, `ok` or `failed`."""
    attempts: tuple[Attempt, ...] = ()
    """Earlier failed attempts; only for pending rows."""
    answer: str | None = None
    turn_tokens: int = 0
    """Tokens of the row and its answer in a conversation, computed when it was answered."""
    visible_rows: Ranges = ()
    """The other rows in its prompt."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    logprob: float | None = None
    """Mean log probability of the answer's tokens, if it was requested."""
    memory: int = 0
    """Estimated bytes of its fields or request in memory."""
    complete: bool = True
    """Whether `fields` or `request` is loaded; that of a large row is loaded right before it is asked."""
    request: RowRequest | None = None
    """Its own request, if it has one; then `fields` is not loaded."""
    thought: bool = False
    """Whether the answer includes thinking, which is part of its token count but is not sent again."""

    @property
    def answer_tokens(self) -> int | None:
        """Tokens of the answer in later prompts; None: unknown."""
        return None if self.thought else self.completion_tokens


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer of a row, with the data of its request."""

    ordinal: int
    answer: str
    finish: str
    segment: int
    place: int
    """0-based place among the rows of its segment."""
    visible_rows: Ranges
    isolated: bool
    """Answered in isolation: no later row of the segment sees it."""
    trimmed: bool
    """Earlier rows were removed from the prompt to make it fit."""
    plan_version: int
    turn_tokens: int
    own_bytes: int
    """UTF-8 bytes of the row's own messages."""
    own_tokens: int | None
    """Tokens of the row's own messages, from the counts of two prompts; None: unknown."""
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    load_s: float | None
    prompt_s: float | None
    eval_s: float | None
    latency_s: float
    attempts: int
    """Requests sent for this row, including this one."""
    thinking: str | None = None
    only_request: bool = False
    """No other request of ours was in flight, so no other request affected its times."""
    cold: bool = False
    """The first request after the model was loaded: no token can come from a cache."""
    logprob: float | None = None
    num_ctx: int | None = None
    """The context window in which it was answered."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The final error of a row."""

    ordinal: int
    code: str
    message: str
    attempts: int
    details: Mapping[str, Any] = field(default_factory=dict)
