"""A conversation: what a lane's next row is asked in sight of.

Values, not objects with a life: each answered row makes the next `Conversation`, and what a resume rebuilds
from the ledger is equal to it, so that the same prompts are asked byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass

from spoolama.backends.base import Message
from spoolama.engine.budget import Budget, bound
from spoolama.engine.store import RowStore
from spoolama.engine.trimming import Turn, trimmer_of
from spoolama.job.asking import Ask, Asker
from spoolama.job.plan import Plan
from spoolama.job.record import Ranges, ranges_of

__all__ = ["Conversation", "Prompt", "prepare", "rebuild"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns so far, and what the server counted of them."""

    turns: tuple[Turn, ...] = ()
    used: int | None = None
    """Tokens of the last prompt and its answer, as the server counted them; None if unknown."""
    last_prompt: int | None = None
    """Tokens of the last prompt alone."""
    prefix_seen: int | None = None
    """Prompt tokens of the segment's first row: an upper bound of the prefix."""

    @property
    def sight(self) -> Ranges:
        """The rows the next one would be asked in sight of."""
        return ranges_of(turn.ordinal for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt ready to be sent, and what is reckoned of it."""

    messages: tuple[Message, ...]
    turns: tuple[Turn, ...]
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
        return ranges_of(turn.ordinal for turn in self.turns)


def prepare(conversation: Conversation, ask: Ask, plan: Plan, num_ctx: int, *, bare: bool = False) -> Prompt:
    """The prompt of a row in this conversation, trimmed where it would pass the high mark.

    Args:
        conversation: What stands before the row.
        ask: The row's question.
        plan: The rules in force.
        num_ctx: The window, in tokens.
        bare: Ask it behind the shared prefix alone.
    """
    prefix = bound(plan, ask.prefix)
    if conversation.prefix_seen is not None:
        prefix = min(prefix, conversation.prefix_seen)
    budget = Budget(num_ctx, ask.num_predict, prefix, bound(plan, ask.own))
    turns = () if bare else conversation.turns
    appended = bool(turns)
    tokens = _reckon(conversation if appended else None, turns, budget)
    trimmer = trimmer_of(plan)
    while turns and not budget.fits(tokens, plan.high):
        turns, appended = trimmer.trim(turns, budget), False
        tokens = _reckon(None, turns, budget)
    messages = (*ask.prefix, *(m for turn in turns for m in turn.messages), *ask.own)
    return Prompt(
        messages=messages,
        turns=turns,
        appended=appended,
        trimmed=len(turns) < len(conversation.turns) and not bare,
        tokens=tokens,
        fits=budget.fits(tokens),
        budget=budget,
    )


def _reckon(conversation: Conversation | None, turns: tuple[Turn, ...], budget: Budget) -> int:
    if conversation is not None and conversation.used is not None:
        return conversation.used + budget.own
    return budget.prefix + sum(turn.tokens for turn in turns) + budget.own


async def rebuild(store: RowStore, asker: Asker, segment: int) -> Conversation:
    """The conversation of a segment as its answered rows left it."""
    last = await store.last_turn(segment)
    if last is None:
        return Conversation()
    rows = [*await store.turns(last.sight), last]
    turns = tuple(
        Turn(
            row.ordinal,
            (*asker.ask(row.fields).own, Message("assistant", row.answer or "")),
            row.turn_tokens,
        )
        for row in rows
    )
    known = last.prompt_tokens is not None and last.completion_tokens is not None
    return Conversation(
        turns=turns,
        used=(last.prompt_tokens or 0) + (last.completion_tokens or 0) if known else None,
        last_prompt=last.prompt_tokens,
        prefix_seen=await store.first_prompt_tokens(segment),
    )
