"""Defines the records of rows and attempts that the engine creates and the ledger stores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Answered", "Attempt", "Failed", "Ranges", "StoredRow", "ranges_of"]

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
    """`pending` or `ok`."""
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
    """Estimated bytes of its fields in memory."""
    complete: bool = True
    """Whether `fields` is loaded; the fields of a large row are loaded right before it is asked."""
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
