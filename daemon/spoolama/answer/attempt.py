"""Sends one request for a row, checks the reply, and creates the row's answer or error from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from spoolama.answer.failures import RetryState
from spoolama.answer.job_context import JobContext, OpenModel
from spoolama.backends.base import ChatRequest, Message, Reply
from spoolama.context.budget import bound, message_bytes
from spoolama.context.conversation import Conversation, Prompt
from spoolama.errors import BackendError, ContextOverflow, RowError
from spoolama.evaluation.asking import RowMessages
from spoolama.job.plan import Plan
from spoolama.job.row import Answered, Attempt, StoredRow
from spoolama.model.gate import Admission

_BYTES_PER_TOKEN = 32
"""Maximum average token length of ordinary text; runs of spaces exceed it, so short prompts are exempt."""
_JUDGED_FROM_BYTES = 4096
_HALF_SLACK = 8
"""A truncated prompt keeps a few tokens more than half of the window."""
_MORE_TEXT = "\nand so on, and so on" * 8
_MORE_TOKENS = 10
"""Far fewer tokens than the text above has."""
_GRACE_S = 180.0
"""Time in addition to the request timeouts, for other requests of a backend, which take up to 30 s each."""


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """One request for a row."""

    number: int
    """1 for the row's first attempt."""
    row: StoredRow
    ask: RowMessages
    prompt: Prompt
    state: RetryState
    conversation: Conversation
    isolated: bool
    """Whether the row is asked in isolation, so that no later row sees it."""
    comparison: str | None = None
    """The comparison for which it is asked."""
    seed: int = 0
    """Added to the sampler's seed, so that a compared answer uses other random numbers."""


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """A request without a valid answer."""

    attempt: Attempt
    """The attempt as stored in the ledger."""
    error: RowError
    """The row's error if this is the last attempt."""
    final: bool = False
    """Whether it is the last attempt regardless of `retries`."""


@dataclass(frozen=True, slots=True)
class AnsweredAttempt:
    """A request with a reply."""

    reply: Reply
    latency_s: float
    only_request: bool
    """Whether no other request was in flight at the same time."""
    cold: bool
    """Whether it was the first request since the model was loaded."""


class Sender:
    """Sends the requests of a lane.

    Args:
        number: Number of the lane, from 0, for backends that can pin conversations to slots.
        job: Objects that all parts of the job share.
        model: The loaded model.
    """

    def __init__(self, number: int, job: JobContext, model: OpenModel) -> None:
        self._number = number
        self._job = job
        self._model = model

    async def send(self, request: PreparedRequest, admission: Admission) -> AnsweredAttempt:
        """Prime the prefix, count the prompt if it may not fit, and ask.

        Raises:
            BackendError: the server gave no reply.
            RowError: the server truncated the prompt.
        """
        job, watch, timeout = self._job, self._model.watch, self._model.request_timeout
        prompt, ordinal = request.prompt, request.row.ordinal
        chat = self._chat_request(request)
        front = prompt.messages[: prompt.front] if not request.row.isolated else ()
        if request.conversation.anchors and not prompt.anchors:
            front = ()  # the slot would lose the anchors for one row
        branches = not prompt.appended
        with job.progress.pulse.wait(chat.timeout_s + _GRACE_S):
            began = job.clock.monotonic()
            if await watch.before(self._number, front, branches=branches, timeout_s=chat.timeout_s):
                timeout.saw(job.clock.monotonic() - began)
        with job.progress.pulse.wait(chat.timeout_s * 3 + _GRACE_S):
            cold = watch.take_cold()
            began = job.clock.monotonic()
            counted = None if prompt.fits else await self._count(request, chat, branches=branches)
            reply = await job.backend.chat(chat)
            latency_s = job.clock.monotonic() - began
            reloaded = await watch.after(self._number, reply, ordinal, branches=branches and counted is None)
            if counted is not None:
                reply, reloaded = _combined(counted[0], reply), reloaded or counted[1]
            if _looks_halved(reply, prompt) and not await self._counts_more(chat, reply):
                raise _truncated(reply, prompt)
        _check_room(reply, prompt)
        timeout.saw(latency_s)
        return AnsweredAttempt(reply, latency_s, admission.only_request, cold=cold or reloaded)

    def _chat_request(self, request: PreparedRequest) -> ChatRequest:
        sampling = dict(request.ask.sampling)
        if extra := request.seed + request.state.repairs:
            sampling["seed"] = int(sampling.get("seed") or 0) + extra
        if request.state.repairs:
            # At temperature 0 another seed would give the same answer again, so raise the temperature too.
            least = self._job.sidecar.repair.temperature
            sampling["temperature"] = max(float(sampling.get("temperature") or 0.0), least)
        return ChatRequest(
            load=self._model.residency.spec,
            messages=request.prompt.messages,
            num_predict=request.ask.num_predict,
            sampling=sampling,
            format=request.ask.format,
            think=request.ask.think,
            timeout_s=self._model.request_timeout.bound_s,
            slot=self._number,
            logprobs=self._job.turns.logprobs,
        )

    async def _count(
        self, request: PreparedRequest, chat: ChatRequest, *, branches: bool
    ) -> tuple[Reply, bool] | None:
        """Count the tokens of a prompt that may not fit, before an answer is requested.

        If the server cannot count without evaluating, the prompt is sent with an answer of one token; it is
        then in the server's cache, so that the real request costs little.

        Returns:
            The reply of that request and whether the model was reloaded for it; None if no request was sent.
        """
        found: tuple[Reply, bool] | None = None
        backend, ordinal = self._job.backend, request.row.ordinal
        tokens = await backend.count_tokens(chat.load, chat.messages)
        if tokens is None:
            reply = await backend.chat(replace(chat, num_predict=1, format=None))
            found = reply, await self._model.watch.after(self._number, reply, ordinal, branches=branches)
            tokens = reply.prompt_tokens
            # The server refuses a prompt that fills its window, and a word is at least one token.
            if tokens is None and await self._longer(chat, " the" * (chat.num_predict + 1)) is not None:
                return found
        if tokens is None or not request.prompt.budget.fits(tokens):
            raise _overflow(tokens, request.prompt)  # without a count a truncation would go unnoticed
        return found

    async def _counts_more(self, chat: ChatRequest, reply: Reply) -> bool:
        """Whether the server counts more tokens for the same prompt with more text; if not, it truncates."""
        longer = await self._longer(chat, _MORE_TEXT)
        if longer is None:
            return True  # it refuses prompts that are too long, so it does not truncate
        return (longer.prompt_tokens or 0) > (reply.prompt_tokens or 0) + _MORE_TOKENS

    async def _longer(self, chat: ChatRequest, more: str) -> Reply | None:
        """Return the reply to the prompt with more text; None if the server refuses it as too long."""
        *before, last = chat.messages
        messages = (*before, Message(last.role, last.content + more))
        try:
            return await self._job.backend.chat(replace(chat, messages=messages, num_predict=1, format=None))
        except ContextOverflow:
            return None


def check_reply(reply: Reply, prompt: Prompt, conversation: Conversation) -> None:
    """Check by the server's counts that the whole prompt was read and the whole answer was written.

    Raises:
        RowError: `prompt_truncated` or `answer_cut`.
    """
    if reply.prompt_tokens is not None and reply.prompt_tokens < _least_tokens(prompt, conversation):
        raise _truncated(reply, prompt)
    if reply.finish == "length":
        raise RowError(
            "answer_cut",
            f"the answer was cut off after {_tokens(reply.completion_tokens)} tokens (num_predict is "
            f"{prompt.budget.num_predict}). Raise `options.num_predict`.",
            details={
                "completion_tokens": reply.completion_tokens,
                "prompt_tokens": reply.prompt_tokens,
                "num_predict": prompt.budget.num_predict,
                "num_ctx": prompt.budget.num_ctx,
            },
            answer=reply.text,
        )


def _check_room(reply: Reply, prompt: Prompt) -> None:
    """Check that the answer had enough room if the prompt was longer than its computed bound.

    After such a prompt a server ends the answer early, or silently drops the beginning of the context. An
    answer that ended by itself within the window is not affected.

    Raises:
        ContextOverflow: the answer may have run out of room.
    """
    tokens, answered, budget = reply.prompt_tokens, reply.completion_tokens, prompt.budget
    if tokens is None or budget.fits(tokens):
        return
    if reply.finish == "stop" and answered is not None and tokens + answered < budget.num_ctx:
        return
    raise _overflow(tokens, prompt)


def _overflow(tokens: int | None, prompt: Prompt) -> ContextOverflow:
    """Return the error for a prompt that leaves too little room for the answer, or may do so."""
    budget = prompt.budget
    length = f"has {tokens}" if tokens is not None else f"may have {prompt.tokens} (upper bound)"
    return ContextOverflow(
        f"the prompt {length} tokens and the answer may have {budget.num_predict}, "
        f"together too many for num_ctx {budget.num_ctx}",
        prompt_tokens=tokens,
        num_ctx=budget.num_ctx,
    )


def _truncated(reply: Reply, prompt: Prompt) -> RowError:
    """Return the row's error if the server read only a part of the prompt."""
    return RowError(
        "prompt_truncated",
        f"the server counted only {reply.prompt_tokens} tokens: it silently truncated the prompt",
        details={"prompt_tokens": reply.prompt_tokens, "num_ctx": prompt.budget.num_ctx},
    )


def _looks_halved(reply: Reply, prompt: Prompt) -> bool:
    """Whether the count is that of a prompt truncated by Ollama: slightly more than half of the window.

    A complete prompt can have that length too, so the caller must check whether a longer one counts more.
    """
    if reply.prompt_tokens is None or prompt.fits:
        return False
    return 0 <= reply.prompt_tokens - prompt.budget.num_ctx // 2 <= _HALF_SLACK


def _least_tokens(prompt: Prompt, conversation: Conversation) -> int:
    """Return a lower bound of the prompt tokens: more than in the prompt that it extends, or by its bytes."""
    if prompt.appended and conversation.last_prompt is not None:
        return conversation.last_prompt + 1
    size = message_bytes(prompt.messages)
    return size // _BYTES_PER_TOKEN if size >= _JUDGED_FROM_BYTES else 0


def _tokens(tokens: int | None) -> str:
    return "an unknown number of" if tokens is None else str(tokens)


def record(
    request: PreparedRequest, answered: AnsweredAttempt, plan: Plan, segment: int, place: int
) -> Answered:
    """Return the answer as stored in the ledger."""
    ask, prompt, reply, conversation = request.ask, request.prompt, answered.reply, request.conversation
    answer = Message("assistant", reply.text)
    own_tokens: int | None = None
    if prompt.appended and conversation.used is not None and reply.prompt_tokens is not None:
        own_tokens = max(1, reply.prompt_tokens - conversation.used)
    tokens = bound(plan, ask.own) if own_tokens is None else own_tokens
    tokens += bound(plan, (answer,)) if reply.answer_tokens is None else reply.answer_tokens
    return Answered(
        ordinal=request.row.ordinal,
        answer=reply.text,
        thinking=reply.thinking,
        finish=reply.finish,
        segment=segment,
        place=place,
        visible_rows=prompt.visible_rows,
        isolated=request.isolated,
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
        latency_s=answered.latency_s,
        attempts=request.number,
        only_request=answered.only_request,
        cold=answered.cold,
        logprob=reply.logprob,
        num_ctx=prompt.budget.num_ctx,
    )


def _combined(counted: Reply, reply: Reply) -> Reply:
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
    over: str | None, failed: FailedAttempt | None, attempts: Sequence[Attempt], prompt: Prompt, plan: Plan
) -> RowError:
    """Return the row's error after its last attempt.

    Args:
        over: Code of the final error, from the attempts.
        failed: The last attempt, if it was made since the start of the service.
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
    if failed is not None:
        return failed.error
    if over == "context_overflow":  # the service ended between the refusal and this
        known = [a.isolated_tokens for a in attempts if a.isolated_tokens is not None]
        message, sizes = too_long(min(known, default=None), prompt, plan)
        return RowError(over, message, details=sizes)
    return RowError(
        over or "unexpected", f"no usable answer in {tried} attempts before the service was restarted"
    )


def isolated_tokens_of(error: BackendError, request: PreparedRequest, plan: Plan) -> int | None:
    """Return an upper bound of the tokens of prefix and row, from the count in the server's refusal."""
    if not isinstance(error, ContextOverflow) or error.prompt_tokens is None:
        return None
    before = request.conversation.used
    if request.prompt.appended and before is not None:
        seen = request.conversation.front_seen
        prefix = bound(replace(plan, tokens_per_byte=1.0), request.ask.prefix)
        own = error.prompt_tokens - before
        return own + (prefix if seen is None else min(prefix, seen))
    return error.prompt_tokens
