"""One request for a row, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spoolama.backends.base import Message, Reply
from spoolama.context.budget import bound, message_bytes
from spoolama.context.conversation import Conversation, Prompt
from spoolama.engine.failures import Standing
from spoolama.errors import BackendError, ContextOverflow, RowError
from spoolama.job.asking import Ask
from spoolama.job.plan import Plan
from spoolama.job.record import Answered, Attempt, StoredRow

__all__ = ["Lost", "Try", "Won", "bare_tokens_of", "end_of", "record", "together", "too_long"]


@dataclass(frozen=True, slots=True)
class Try:
    """One request for a row."""

    number: int
    row: StoredRow
    ask: Ask
    prompt: Prompt
    standing: Standing
    conversation: Conversation
    apart: bool
    """Whether it is asked apart from the conversation and leaves no trace in it."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A try that did not answer its row."""

    attempt: Attempt
    """It, as the ledger has it."""
    error: RowError
    """What the row's error would be if this was the last try."""
    final: bool = False
    """Whether it was, whatever the retries."""


@dataclass(frozen=True, slots=True)
class Won:
    """A try that did."""

    reply: Reply
    latency_s: float
    solo: bool
    """Whether no other request was in flight meanwhile."""
    cold: bool
    """Whether it was the first since the model was loaded."""


def record(this: Try, won: Won, plan: Plan, segment: int, place: int) -> Answered:
    """The answer as the ledger keeps it."""
    ask, prompt, reply, conversation = this.ask, this.prompt, won.reply, this.conversation
    answer = Message("assistant", reply.text)
    own_tokens: int | None = None
    if prompt.appended and conversation.used is not None and reply.prompt_tokens is not None:
        own_tokens = max(1, reply.prompt_tokens - conversation.used)
    tokens = bound(plan, ask.own) if own_tokens is None else own_tokens
    tokens += bound(plan, (answer,)) if reply.answer_tokens is None else reply.answer_tokens
    return Answered(
        ordinal=this.row.ordinal,
        answer=reply.text,
        thinking=reply.thinking,
        finish=reply.finish,
        segment=segment,
        place=place,
        sight=prompt.sight,
        aside=this.apart,
        trimmed=prompt.trimmed,
        plan_version=plan.version,
        turn_tokens=tokens,
        own_bytes=message_bytes(ask.own),
        own_tokens=own_tokens,
        prompt_tokens=reply.prompt_tokens,
        cached_tokens=reply.cached_tokens,
        completion_tokens=reply.completion_tokens,
        load_s=reply.load_s,
        prompt_s=reply.prompt_s,
        eval_s=reply.eval_s,
        latency_s=won.latency_s,
        attempts=this.number,
        solo=won.solo,
        cold=won.cold,
        logprob=reply.logprob,
        num_ctx=prompt.budget.num_ctx,
    )


def together(counted: Reply, reply: Reply) -> Reply:
    """One reply of the two that a prompt took which had to be counted first.

    The first one evaluated it: what it found in the cache, and how long it took, is what the row cost.
    """
    known = counted.prompt_s is not None and reply.prompt_s is not None
    return replace(
        reply,
        cached_tokens=counted.cached_tokens,
        load_s=counted.load_s,
        prompt_s=(counted.prompt_s or 0.0) + (reply.prompt_s or 0.0) if known else None,
        total_s=None,
    )


def too_long(error: BackendError, this: Try) -> tuple[str, dict[str, object]]:
    """What a person needs to know to make the row fit."""
    budget = this.prompt.budget
    tokens = error.prompt_tokens if isinstance(error, ContextOverflow) else None
    sizes: dict[str, object] = {
        "prompt_tokens": tokens,
        "num_predict": budget.num_predict,
        "num_ctx": budget.num_ctx,
    }
    length = "is too long" if tokens is None else f"has {tokens:,} tokens"
    message = (
        f"the prompt {length}: num_ctx {budget.num_ctx:,} less {budget.num_predict:,} for the answer leaves "
        f"room for {budget.room:,}. Shorten the row, or set a larger options.num_ctx."
    )
    return message, sizes


def end_of(over: str | None, lost: Lost | None, tried: int) -> RowError:
    """The row's error after its last try."""
    if over == "server_died":
        message = f"the model's process died each time this row was asked ({tried} tries); it is set aside"
        return RowError(over, message)
    if over == "service_died":
        message = f"the service ended each time this row was in flight ({tried} tries); it is set aside"
        return RowError(over, message)
    if lost is not None:
        return lost.error
    return RowError(
        over or "unexpected", f"no usable answer in {tried} tries before the service was restarted"
    )


def bare_tokens_of(error: BackendError, this: Try, plan: Plan) -> int | None:
    """What the row takes behind the bare prefix, at most, by the count in the server's refusal."""
    if not isinstance(error, ContextOverflow) or error.prompt_tokens is None:
        return None
    before = this.conversation.used
    if this.prompt.appended and before is not None:
        seen = this.conversation.front_seen
        prefix = bound(plan, this.ask.prefix)
        own = error.prompt_tokens - before
        return own + (prefix if seen is None else min(prefix, seen))
    return error.prompt_tokens
