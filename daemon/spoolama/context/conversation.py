"""A conversation: what a lane's next row is asked in sight of.

Values, not objects with a life: each answered row makes the next `Conversation`, and what a resume rebuilds
from the ledger is equal to it, so that the same prompts are asked byte for byte.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from spoolama.backends.base import Message
from spoolama.context.budget import Budget, bound
from spoolama.context.trimming import Turn, trimmer_of
from spoolama.evaluation.asking import Ask, Asker, memory_of
from spoolama.job.plan import Plan
from spoolama.job.record import Ranges, StoredRow, ranges_of

__all__ = ["AnsweredRows", "Conversation", "Prompt", "TurnOf", "extended", "prepare", "rebuild"]

TurnOf = Callable[[StoredRow, tuple[Message, ...], str, int], Awaitable[Turn]]
"""Makes a turn of a row, its own messages, its answer and the tokens of both."""


class AnsweredRows(Protocol):
    """What is read of a job's rows to rebuild a conversation; `engine/store.RowStore` has it."""

    async def last_turn(self, segment: int) -> StoredRow | None:
        """The answered row that a segment's conversation ended with; None if there is none."""
        ...

    async def turns(self, ranges: Ranges) -> list[StoredRow]:
        """These rows, in order."""
        ...

    async def first_prompt_tokens(self, segment: int) -> int | None:
        """Prompt tokens of the segment's first row."""
        ...


@dataclass(frozen=True, slots=True)
class Conversation:
    """What stands before the next row, and what the server counted of it."""

    anchors: tuple[Turn, ...] = ()
    """Rows that stand fixed behind the prefix, in their order there."""
    tail: tuple[Turn, ...] = ()
    """The rows behind them."""
    used: int | None = None
    """Tokens of the last prompt and its answer, as the server counted them; None if unknown."""
    last_prompt: int | None = None
    """Tokens of the last prompt alone."""
    front_seen: int | None = None
    """Prompt tokens of the segment's first row: an upper bound of prefix and anchors."""

    @property
    def sight(self) -> Ranges:
        """The rows the next one would be asked in sight of."""
        return ranges_of(turn.ordinal for turn in (*self.anchors, *self.tail))

    @property
    def memory(self) -> int:
        """Bytes that its texts take in memory."""
        return sum(memory_of(turn.messages) for turn in (*self.anchors, *self.tail))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready to be sent, and what is reckoned of it."""

    messages: tuple[Message, ...]
    front: int
    """How many of the messages stand fixed in front: prefix and anchors."""
    anchors: tuple[Turn, ...]
    tail: tuple[Turn, ...]
    """The earlier rows in it."""
    appended: bool
    """Whether it continues the last prompt of the conversation unchanged."""
    trimmed: bool
    """Whether earlier rows were dropped to make it fit."""
    tokens: int
    """Its length, at most."""
    fits: bool
    """Whether that is surely within the window."""
    budget: Budget

    @property
    def sight(self) -> Ranges:
        """The rows it is asked in sight of."""
        return ranges_of(turn.ordinal for turn in (*self.anchors, *self.tail))

    @property
    def alone(self) -> bool:
        """Whether nothing but the prefix stands before the row."""
        return not self.anchors and not self.tail


def prepare(
    conversation: Conversation,
    ask: Ask,
    plan: Plan,
    num_ctx: int,
    *,
    bare: bool = False,
    bare_tokens: int | None = None,
) -> Prompt:
    """The prompt of a row in this conversation, trimmed where a trim is due or it would pass the high mark.

    Args:
        conversation: What stands before the row.
        ask: The row's question.
        plan: The rules in force.
        num_ctx: The window, in tokens.
        bare: Ask it behind the shared prefix alone.
        bare_tokens: What the row takes behind the bare prefix, at most, where the server has told.
    """
    window = min(num_ctx, plan.window or num_ctx)
    alone = Budget(window, ask.num_predict, bound(plan, ask.prefix), bound(plan, ask.own))
    if plan.prefix_tokens is not None:
        alone = replace(alone, prefix=min(alone.prefix, plan.prefix_tokens))
    if bare_tokens is not None:
        # Whatever bound was learned, it may be what let this row be refused.
        sure = bound(replace(plan, tokens_per_byte=1.0), (*ask.prefix, *ask.own))
        alone = replace(alone, prefix=0, own=min(bare_tokens, sure))
    tail = () if bare else conversation.tail
    anchors = () if bare else conversation.anchors
    front = alone.prefix + sum(turn.tokens for turn in anchors)
    if conversation.front_seen is not None and not bare:
        front = min(front, conversation.front_seen)
    budget = replace(alone, prefix=front)
    appended = bool(tail)
    tokens = _reckon(conversation if appended else None, tail, budget)
    trimmer = trimmer_of(plan)
    while tail and (trimmer.due(tail) or not budget.fits(tokens, plan.high)):
        tail, appended = trimmer.trim(tail, budget), False
        tokens = _reckon(None, tail, budget)
    if anchors and not budget.fits(tokens) and not alone.fits(alone.prefix + alone.own):
        # A row that may not even fit alone is counted alone; one that surely does is counted behind them.
        anchors, budget = (), alone
        tokens = _reckon(None, (), budget)
    before = (*ask.prefix, *(m for turn in anchors for m in turn.messages))
    return Prompt(
        messages=(*before, *(m for turn in tail for m in turn.messages), *ask.own),
        front=len(before),
        anchors=anchors,
        tail=tail,
        appended=appended,
        trimmed=len(tail) < len(conversation.tail) and not bare,
        tokens=tokens,
        fits=budget.fits(tokens),
        budget=budget,
    )


def _reckon(conversation: Conversation | None, tail: tuple[Turn, ...], budget: Budget) -> int:
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
    """The conversation after a row was answered in it.

    Args:
        conversation: What stood before the row.
        tail: The earlier rows that its prompt had kept.
        turn: The row and its answer.
        plan: The rules in force.
        prompt: Prompt tokens by the server's count.
        answer: Tokens of the answer alone by the server's count; None: unknown.
    """
    seen = conversation.front_seen if conversation.front_seen is not None else prompt
    if plan.every == 1 and plan.strategy in ("reset", "anchors"):
        return Conversation(conversation.anchors, front_seen=seen)  # each row stands by itself
    known = prompt is not None and answer is not None
    return Conversation(
        anchors=conversation.anchors,
        tail=(*tail, turn),
        used=(prompt or 0) + (answer or 0) if known else None,
        # After thinking a server may count another prompt than was sent (Ollama with a `format`).
        last_prompt=prompt if answer is not None else None,
        front_seen=seen,
    )


async def rebuild(
    rows: AnsweredRows, asker: Asker, segment: int, plan: Plan, anchors: tuple[Turn, ...], turn_of: TurnOf
) -> Conversation:
    """The conversation of a segment as its answered rows left it."""
    last = await rows.last_turn(segment)
    empty = Conversation(anchors)
    if last is None:
        return empty
    empty = replace(empty, front_seen=await rows.first_prompt_tokens(segment))
    fixed = {turn.ordinal for turn in anchors}
    *tail, turn = [
        await turn_of(row, (await asker.ask(row.fields, row.line)).own, row.answer or "", row.turn_tokens)
        for row in [*await rows.turns(last.sight), last]
        if row.ordinal not in fixed
    ]
    return extended(empty, tuple(tail), turn, plan, last.prompt_tokens, last.answer_tokens)
