"""What is recorded of a row: between the engine, which makes it, and the ledger, which keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Answered", "Attempt", "Failed", "Ranges", "StoredRow", "ranges_of"]

Ranges = tuple[tuple[int, int], ...]
"""Ordinals as closed ranges over the rows that were answered: ((0, 4), (7, 7))."""


def ranges_of(ordinals: Iterable[int]) -> Ranges:
    """Ascending ordinals as closed ranges."""
    out: list[tuple[int, int]] = []
    for n in ordinals:
        if out and out[-1][1] == n - 1:
            out[-1] = (out[-1][0], n)
        else:
            out.append((n, n))
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A try of a row that did not answer it."""

    code: str
    """Class of failure; `open` if the service died while it was in flight."""
    counted: bool
    """Whether it uses up one of the row's tries."""
    bare_tokens: int | None = None
    """What the row would take behind the bare prefix, at most, where the server's refusal told."""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row as the ledger has it."""

    ordinal: int
    line: int
    id: str | None
    fields: Mapping[str, Any]
    model: str | None
    alone: bool
    """Stands alone: it is asked without a conversation and leaves no trace in one."""
    state: str
    """`pending` or `ok`."""
    attempts: tuple[Attempt, ...] = ()
    """Earlier tries that did not answer it; only of pending rows."""
    answer: str | None = None
    turn_tokens: int = 0
    """Tokens that the row and its answer take in a conversation, as reckoned when it was answered."""
    sight: Ranges = ()
    """Rows it was answered in sight of."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    logprob: float | None = None
    """Mean log probability of the answer's tokens, where it was asked for."""
    memory: int = 0
    """Bytes that its fields take in memory, as an estimate."""
    complete: bool = True
    """Whether `fields` was read; those of a large row are read when the row's turn comes."""
    thought: bool = False
    """Whether thinking came before the answer, which is counted with it and not sent again."""

    @property
    def answer_tokens(self) -> int | None:
        """Tokens that the answer takes in later prompts; None: unknown."""
        return None if self.thought else self.completion_tokens


@dataclass(frozen=True, slots=True)
class Answered:
    """A row's answer, with all that is known of how it came to be."""

    ordinal: int
    answer: str
    finish: str
    segment: int
    place: int
    """0-based place among the rows of its segment."""
    sight: Ranges
    aside: bool
    """Answered apart from the conversation: no later row of the segment sees it."""
    trimmed: bool
    """Earlier rows were dropped to make it fit."""
    plan_version: int
    turn_tokens: int
    own_bytes: int
    """UTF-8 bytes of the row's own messages."""
    own_tokens: int | None
    """Measured tokens of the row's own messages, where counts of two prompts allow it."""
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    load_s: float | None
    prompt_s: float | None
    eval_s: float | None
    latency_s: float
    attempts: int
    """Requests sent for this row, this one included."""
    thinking: str | None = None
    solo: bool = False
    """No other request of ours was in flight while it was answered, so that its times are its own."""
    cold: bool = False
    """The first request after the model was loaded: nothing of it can have come from a cache."""
    logprob: float | None = None
    num_ctx: int | None = None
    """The window it was answered in."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A row's end without an answer."""

    ordinal: int
    code: str
    message: str
    attempts: int
    details: Mapping[str, Any] = field(default_factory=dict)
