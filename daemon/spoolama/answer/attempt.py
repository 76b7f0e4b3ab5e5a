"""Defines one request for a row and its outcome, and creates the row's answer or error from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from spoolama.answer.failures import RetryState
from spoolama.backends.base import Message, Reply
from spoolama.context.budget import bound, message_bytes
from spoolama.context.conversation import Conversation, Prompt
from spoolama.errors import BackendError, ContextOverflow, RowError
from spoolama.evaluation.asking import Ask
from spoolama.job.plan import Plan
from spoolama.job.record import Answered, Attempt, StoredRow

__all__ = ["Lost", "Try", "Won", "end_of", "isolated_tokens_of", "record", "together", "too_long"]


@dataclass(frozen=True, slots=True)
class Try:
    """One request for a row."""

    number: int
    row: StoredRow
    ask: Ask
    prompt: Prompt
    standing: RetryState
    conversation: Conversation
    isolated: bool
    """Whether the row is asked in isolation, so that no later row sees it."""
    kind: str | None = None
    """The comparison for which it is asked."""
    seed: int = 0
    """Added to the sampler's seed, so that a compared answer uses other random numbers."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A failed attempt."""

    attempt: Attempt
    """The attempt as stored in the ledger."""
    error: RowError
    """The row's error if this is the last attempt."""
    final: bool = False
    """Whether it is the last attempt regardless of `retries`."""


@dataclass(frozen=True, slots=True)
class Won:
    """A successful attempt."""

    reply: Reply
    latency_s: float
    only_request: bool
    """Whether no other request was in flight at the same time."""
    cold: bool
    """Whether it was the first request since the model was loaded."""


def record(this: Try, won: Won, plan: Plan, segment: int, place: int) -> Answered:
    """Return the answer as stored in the ledger."""
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
        visible_rows=prompt.visible_rows,
        isolated=this.isolated,
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
        only_request=won.only_request,
        cold=won.cold,
        logprob=reply.logprob,
        num_ctx=prompt.budget.num_ctx,
    )


def together(counted: Reply, reply: Reply) -> Reply:
    """Combine the replies of the counting request and of the real request.

    The first one evaluated the prompt, so its cached tokens and its time are the cost of the row.
    """
    known = counted.prompt_s is not None and reply.prompt_s is not None
    return replace(
        reply,
        cached_tokens=counted.cached_tokens,
        load_s=counted.load_s,
        prompt_s=(counted.prompt_s or 0.0) + (reply.prompt_s or 0.0) if known else None,
    )


def too_long(tokens: int | None, prompt: Prompt, plan: Plan) -> tuple[str, dict[str, object]]:
    """Return message and sizes that explain how to make the row fit.

    Args:
        tokens: The counted length of the prompt; None: not counted.
        prompt: The prompt of prefix and row only.
        plan: The plan in force.
    """
    budget = prompt.budget
    sizes: dict[str, object] = {
        "prompt_tokens": tokens,
        "num_predict": budget.num_predict,
        "num_ctx": budget.num_ctx,
    }
    if tokens is None:
        most = prompt.tokens
        if prompt.fits:  # but refused: the learned bound is wrong; one byte is at most one token
            most = max(bound(replace(plan, tokens_per_byte=1.0), prompt.messages), budget.num_ctx)
        sizes["prompt_tokens_at_most"] = most
        length = f"is too long (the server gave no count; by its bytes it has up to {most:,} tokens)"
    else:
        length = f"has {tokens:,} tokens"
    message = (
        f"the prompt {length}: num_ctx {budget.num_ctx:,} less {budget.num_predict:,} for the answer leaves "
        f"room for {budget.room:,}. Shorten the row, or set a larger options.num_ctx."
    )
    return message, sizes


def end_of(
    over: str | None, lost: Lost | None, attempts: Sequence[Attempt], prompt: Prompt, plan: Plan
) -> RowError:
    """Return the row's error after its last attempt.

    Args:
        over: Code of the final error, from the attempts.
        lost: The last attempt, if it was made since the start of the service.
        attempts: All attempts.
        prompt: The prompt of the next attempt.
        plan: The plan in force.
    """
    tried = len(attempts)
    if over == "server_died":
        message = f"the model's process died at each attempt to answer this row ({tried} attempts)"
        return RowError(over, message)
    if over == "service_died":
        message = f"the service ended at each attempt to answer this row ({tried} attempts)"
        return RowError(over, message)
    if lost is not None:
        return lost.error
    if over == "context_overflow":  # the service ended between the refusal and this
        known = [a.isolated_tokens for a in attempts if a.isolated_tokens is not None]
        message, sizes = too_long(min(known, default=None), prompt, plan)
        return RowError(over, message, details=sizes)
    return RowError(
        over or "unexpected", f"no usable answer in {tried} attempts before the service was restarted"
    )


def isolated_tokens_of(error: BackendError, this: Try, plan: Plan) -> int | None:
    """Return an upper bound of the tokens of prefix and row, from the count in the server's refusal."""
    if not isinstance(error, ContextOverflow) or error.prompt_tokens is None:
        return None
    before = this.conversation.used
    if this.prompt.appended and before is not None:
        seen = this.conversation.front_seen
        prefix = bound(replace(plan, tokens_per_byte=1.0), this.ask.prefix)
        own = error.prompt_tokens - before
        return own + (prefix if seen is None else min(prefix, seen))
    return error.prompt_tokens
