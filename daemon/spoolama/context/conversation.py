"""Builds the prompt of a row from a conversation, and extends the conversation with its answer.

A `Conversation` is an immutable value: each answered row creates the next one. A resume rebuilds an equal one
from the ledger, so that the prompts are the same byte for byte.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from spoolama.backends.base import Message
from spoolama.context.budget import Budget, bound
from spoolama.context.trimming import Turn, trimmer_of
from spoolama.evaluation.asking import MessageBuilder, RowMessages, memory_of
from spoolama.job.plan import Plan
from spoolama.job.row import Ranges, StoredRow, ranges_of

TurnOf = Callable[[StoredRow, tuple[Message, ...], str, int], Awaitable[Turn]]
"""Creates a turn from a row, its own messages, its answer and the tokens of both."""


class AnsweredRows(Protocol):
    """Read access to a job's rows for rebuilding a conversation; implemented by `answer/store.RowStore`."""

    async def last_turn(self, segment: int) -> StoredRow | None:
        """Return the last answered row of a segment's conversation; None if there is none."""
        ...

    async def turns(self, ranges: Ranges) -> list[StoredRow]:
        """Return these rows, in order."""
        ...

    async def first_prompt_tokens(self, segment: int) -> int | None:
        """Return the prompt tokens of the segment's first row."""
        ...


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages before the next row, and the server's token counts for them."""

    anchors: tuple[Turn, ...] = ()
    """The anchors, in prompt order."""
    tail: tuple[Turn, ...] = ()
    """The earlier rows after the anchors."""
    used: int | None = None
    """Tokens of the last prompt and its answer, as the server counted them; None if unknown."""
    last_prompt: int | None = None
    """Tokens of the last prompt without its answer."""
    front_seen: int | None = None
    """Prompt tokens of the segment's first row: an upper bound of prefix and anchors."""

    @property
    def visible_rows(self) -> Ranges:
        """The rows in the prompt of the next row, without a trim."""
        return ranges_of(turn.ordinal for turn in (*self.anchors, *self.tail))

    @property
    def memory(self) -> int:
        """Bytes of its texts in memory."""
        return sum(memory_of(turn.messages) for turn in (*self.anchors, *self.tail))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready to be sent, with its computed size."""

    messages: tuple[Message, ...]
    front: int
    """Number of messages in the fixed part: prefix and anchors."""
    anchors: tuple[Turn, ...]
    tail: tuple[Turn, ...]
    """The earlier rows in the prompt."""
    appended: bool
    """Whether it continues the last prompt of the conversation unchanged."""
    trimmed: bool
    """Whether earlier rows were dropped to make it fit."""
    tokens: int
    """Upper bound of its length."""
    fits: bool
    """Whether it is certain to fit into the context window."""
    budget: Budget

    @property
    def visible_rows(self) -> Ranges:
        """The other rows in the prompt."""
        return ranges_of(turn.ordinal for turn in (*self.anchors, *self.tail))

    @property
    def prefix_only(self) -> bool:
        """Whether only the prefix is before the row."""
        return not self.anchors and not self.tail


def prepare(
    conversation: Conversation,
    ask: RowMessages,
    plan: Plan,
    num_ctx: int,
    *,
    prefix_only: bool = False,
    isolated_tokens: int | None = None,
) -> Prompt:
    """Build the prompt of a row in this conversation; trims it if a trim is due or it exceeds the high mark.

    Args:
        conversation: The messages before the row.
        ask: The row's request.
        plan: The plan in force.
        num_ctx: The context window, in tokens.
        prefix_only: Put only the shared prefix before the row.
        isolated_tokens: Upper bound of prefix and row in tokens, from a count of the server; None: unknown.
    """
    window = min(num_ctx, plan.window or num_ctx)
    plain = Budget(window, ask.num_predict, bound(plan, ask.prefix), bound(plan, ask.own))
    if plan.prefix_tokens is not None:
        plain = replace(plain, prefix=min(plain.prefix, plan.prefix_tokens))
    if isolated_tokens is not None:
        # Ignore the learned bound: it may be the reason why the server refused this row.
        sure = bound(replace(plan, tokens_per_byte=1.0), (*ask.prefix, *ask.own))
        plain = replace(plain, prefix=0, own=min(isolated_tokens, sure))
    tail = () if prefix_only else conversation.tail
    anchors = () if prefix_only else conversation.anchors
    front = plain.prefix + sum(turn.tokens for turn in anchors)
    if conversation.front_seen is not None and not prefix_only:
        front = min(front, conversation.front_seen)
    budget = replace(plain, prefix=front)
    appended = bool(tail)
    tokens = _size_of(conversation if appended else None, tail, budget)
    trimmer = trimmer_of(plan)
    while tail and (trimmer.due(tail) or not budget.fits(tokens, plan.high)):
        tail, appended = trimmer.trim(tail, budget), False
        tokens = _size_of(None, tail, budget)
    if anchors and not budget.fits(tokens) and not plain.fits(plain.prefix + plain.own):
        # If the row may not fit even without anchors, count it without them; otherwise count it with them.
        anchors, budget = (), plain
        tokens = _size_of(None, (), budget)
    before = (*ask.prefix, *(m for turn in anchors for m in turn.messages))
    return Prompt(
        messages=(*before, *(m for turn in tail for m in turn.messages), *ask.own),
        front=len(before),
        anchors=anchors,
        tail=tail,
        appended=appended,
        trimmed=len(tail) < len(conversation.tail) and not prefix_only,
        tokens=tokens,
        fits=budget.fits(tokens),
        budget=budget,
    )


def _size_of(conversation: Conversation | None, tail: tuple[Turn, ...], budget: Budget) -> int:
    if conversation is not None and conversation.used is not None:
        return conversation.used + budget.own
    return budget.prefix + sum(turn.tokens for turn in tail) + budget.own


def extended(
    conversation: Conversation,
    tail: tuple[Turn, ...],
    turn: Turn,
    plan: Plan,
    prompt: int | None,
    answer: int | None,
) -> Conversation:
    """Return the conversation after a row was answered in it.

    Args:
        conversation: The conversation before the row.
        tail: The earlier rows in its prompt.
        turn: The row and its answer.
        plan: The plan in force.
        prompt: Prompt tokens, counted by the server.
        answer: Tokens of the answer, counted by the server; None: unknown.
    """
    seen = conversation.front_seen if conversation.front_seen is not None else prompt
    if plan.every == 1 and plan.strategy in ("reset", "anchors"):
        return Conversation(conversation.anchors, front_seen=seen)  # no row sees earlier ones
    known = prompt is not None and answer is not None
    return Conversation(
        anchors=conversation.anchors,
        tail=(*tail, turn),
        used=(prompt or 0) + (answer or 0) if known else None,
        # After thinking a server may count a different prompt from the one sent (Ollama with a `format`).
        last_prompt=prompt if answer is not None else None,
        front_seen=seen,
    )


async def rebuild(
    rows: AnsweredRows,
    asker: MessageBuilder,
    segment: int,
    plan: Plan,
    anchors: tuple[Turn, ...],
    turn_of: TurnOf,
) -> Conversation:
    """Rebuild the conversation of a segment from its answered rows."""
    last = await rows.last_turn(segment)
    empty = Conversation(anchors)
    if last is None:
        return empty
    empty = replace(empty, front_seen=await rows.first_prompt_tokens(segment))
    fixed = {turn.ordinal for turn in anchors}
    *tail, turn = [
        await turn_of(
            row, (await asker.ask(row.fields, row.line, row.request)).own, row.answer or "", row.turn_tokens
        )
        for row in [*await rows.turns(last.visible_rows), last]
        if row.ordinal not in fixed
    ]
    return extended(empty, tuple(tail), turn, plan, last.prompt_tokens, last.answer_tokens)
