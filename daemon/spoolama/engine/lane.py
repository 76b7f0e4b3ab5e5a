"""A lane: takes one segment at a time and answers its rows one after another."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spoolama.backends.base import Backend, ChatRequest, LoadSpec, Message, Reply
from spoolama.clock import Clock
from spoolama.engine.budget import bound, message_bytes
from spoolama.engine.checks import AnswerChecks, check_reply, cut_error, looks_halved
from spoolama.engine.conversation import Conversation, Prompt, prepare, rebuild
from spoolama.engine.failures import POLICIES, Standing, Then, standing_of
from spoolama.engine.gate import Gate
from spoolama.engine.patience import Patience
from spoolama.engine.progress import Progress
from spoolama.engine.store import RowStore
from spoolama.engine.tally import Tally
from spoolama.engine.trimming import Turn
from spoolama.errors import (
    BackendError,
    ConfigError,
    ContextOverflow,
    JobError,
    RequestRefused,
    RowError,
    WrongServer,
)
from spoolama.job.asking import Ask, Asker
from spoolama.job.plan import Plan
from spoolama.job.record import Answered, Attempt, Failed, StoredRow

__all__ = ["Lane", "Shared"]

_CHUNK = 64
_MORE_TEXT = "\nand so on, and so on" * 8
_MORE_TOKENS = 10
"""Far fewer than the text above has."""
_GRACE_S = 30.0
"""A request may outlast its bound by this much before the watchdog wonders."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What the lanes of a job have in common."""

    store: RowStore
    backend: Backend
    asker: Asker
    checks: AnswerChecks
    gate: Gate
    patience: Patience
    progress: Progress
    tally: Tally
    clock: Clock
    retries: int
    refusal_ends_job: bool
    """Whether a refused request is the job's fault (all rows ask alike) or that row's (OpenAI lines)."""


@dataclass(frozen=True, slots=True)
class _Try:
    """One request for a row."""

    number: int
    row: StoredRow
    ask: Ask
    prompt: Prompt
    standing: Standing

    @property
    def apart(self) -> bool:
        """Whether it is asked apart from the conversation and leaves no trace in it."""
        return self.row.alone or self.standing.apart


@dataclass(frozen=True, slots=True)
class _Lost:
    """A try that did not answer its row."""

    attempt: Attempt
    error: RowError
    """What the row's error would be if this was the last try."""
    final: bool = False
    """Whether it was, whatever the retries."""


@dataclass(frozen=True, slots=True)
class _Won:
    """A try that did."""

    reply: Reply
    latency_s: float


class Lane:
    """Answers segments.

    Args:
        number: 0-based; a backend that can pin conversations to slots uses it.
        shared: What the lanes of the job have in common.
        load: The loaded model's terms.
    """

    def __init__(self, number: int, shared: Shared, load: LoadSpec) -> None:
        self._number = number
        self._s = shared
        self._load = load

    async def run_segment(self, segment: int, first: int, last: int, model: str | None, plan: Plan) -> None:
        """Answer the rows of a segment that have no end yet.

        Raises:
            Stopping: the service stops; the rest is for the next start.
            JobError: the job cannot go on.
        """
        conversation = Conversation()
        if first < last:  # a row alone has nothing before it
            conversation = await rebuild(self._s.store, self._s.asker, segment)
        after = first
        while after <= last and (rows := await self._s.store.pending(after, last, model, _CHUNK)):
            for row in rows:
                conversation = await self._row(row, conversation, segment, row.ordinal - first, plan)
                after = row.ordinal + 1

    async def _row(
        self, row: StoredRow, conversation: Conversation, segment: int, place: int, plan: Plan
    ) -> Conversation:
        """Ask until the row has its end; what stands in the conversation afterwards."""
        s = self._s
        attempts = list(row.attempts)
        lost: _Lost | None = None
        try:
            ask = s.asker.ask(row.fields)
            while True:
                standing = standing_of(attempts, s.retries)
                if standing.over is not None or (lost is not None and lost.final):
                    raise _end(standing.over, lost, len(attempts))
                bare = row.alone or standing.apart or standing.bare
                prompt = prepare(conversation, ask, plan, self._load.num_ctx, bare=bare)
                this = _Try(len(attempts) + 1, row, ask, prompt, standing)
                outcome = await self._ask(this, conversation)
                if isinstance(outcome, _Won):
                    answer, turn = _record(this, outcome, conversation, plan, segment, place)
                    s.store.answered(answer)
                    s.tally.ok()
                    return (
                        conversation if this.apart else _extended(conversation, prompt, turn, outcome.reply)
                    )
                lost = outcome
                attempts.append(lost.attempt)
        except RowError as error:
            details = dict(error.details)
            if error.answer is not None:
                details["answer"] = error.answer
            s.store.failed(Failed(row.ordinal, error.code, error.message, len(attempts), details))
            s.tally.failed(error.code, error.message)
            return conversation

    async def _ask(self, this: _Try, conversation: Conversation) -> _Won | _Lost:
        """Send one request and judge what comes back."""
        s = self._s
        ordinal, number = this.row.ordinal, this.number
        async with s.gate.through(exclusive=this.standing.exclusive):
            await s.store.begin(ordinal, number)
            try:
                won = await self._send(this)
                check_reply(won.reply, this.prompt, conversation)
                s.checks.of(this.ask.format).check(won.reply.text)
            except RowError as error:
                # The server did its work, but what it gave is no answer.
                s.gate.went_well()
                s.tally.reset_streak()
                s.store.end(ordinal, number, error.code, error.message, counted=True)
                return _Lost(Attempt(error.code, counted=True), error)
            except BackendError as error:
                failure = error
            except BaseException:
                # Cancelled while stopping: no fault of the row's.
                s.store.end(ordinal, number, "stopped", "the service stopped", counted=False)
                raise
            else:
                s.gate.went_well()
                s.tally.reset_streak()
                return won
        return await self._server_failed(this, failure)

    async def _send(self, this: _Try) -> _Won:
        s = self._s
        sampling = dict(this.ask.sampling)
        if this.standing.repairs:
            sampling["seed"] = int(sampling.get("seed") or 0) + this.standing.repairs
        request = ChatRequest(
            load=self._load,
            messages=this.prompt.messages,
            num_predict=this.ask.num_predict,
            sampling=sampling,
            format=this.ask.format,
            think=this.ask.think,
            timeout_s=s.patience.bound_s,
            slot=self._number,
        )
        with s.progress.pulse.wait(request.timeout_s * 2 + _GRACE_S):
            if not this.prompt.fits:
                await self._measure(this, request)
            began = s.clock.monotonic()
            reply = await s.backend.chat(request)
            latency_s = s.clock.monotonic() - began
            if looks_halved(reply, this.prompt) and not await self._counts_more(request, reply):
                raise cut_error(reply, this.prompt)
        s.patience.saw(latency_s)
        return _Won(reply, latency_s)

    async def _measure(self, this: _Try, request: ChatRequest) -> None:
        """The bound says that the prompt may not fit: have it counted before an answer is asked for.

        Where the server cannot count without evaluating, the prompt is sent with an answer of one token; it
        then stands in the server's cache, so that the real request costs little.
        """
        budget = this.prompt.budget
        tokens = await self._s.backend.count_tokens(self._load, request.messages)
        if tokens is None:
            reply = await self._s.backend.chat(replace(request, num_predict=1, format=None))
            tokens = reply.prompt_tokens
        if tokens is not None and not budget.fits(tokens):
            raise ContextOverflow(
                f"the prompt has {tokens} tokens and the answer may have {budget.num_predict}, "
                f"together too many for num_ctx {budget.num_ctx}",
                prompt_tokens=tokens,
                num_ctx=budget.num_ctx,
            )

    async def _counts_more(self, request: ChatRequest, reply: Reply) -> bool:
        """Whether the same prompt with more text is longer to the server; one that cuts counts the same."""
        last = request.messages[-1]
        longer = (*request.messages[:-1], Message(last.role, last.content + _MORE_TEXT))
        try:
            again = await self._s.backend.chat(replace(request, messages=longer, num_predict=1, format=None))
        except ContextOverflow:
            return True  # it refuses what is too long, so it cuts nothing
        return (again.prompt_tokens or 0) > (reply.prompt_tokens or 0) + _MORE_TOKENS

    async def _server_failed(self, this: _Try, error: BackendError) -> _Lost:
        """The request gave no answer: do what the table of failures says."""
        s, gate = self._s, self._s.gate
        code = error.code
        policy = POLICIES[code]
        s.store.end(this.row.ordinal, this.number, code, error.message, counted=policy.counts)
        final, message = False, error.message
        details: dict[str, object] = {}
        try:
            match policy.then:
                case Then.WAIT:
                    await gate.recover(error.message, self._reload)
                case Then.YIELD:
                    gate.slow_down()
                    await gate.recover(error.message, self._reload)
                case Then.REVIVE:
                    await gate.recover(f"the model's process died: {error.message}", self._reload)
                case Then.PROBE:
                    await gate.recover(error.message, self._generate)
                case Then.END_JOB:
                    raise error
                case Then.SHRINK:
                    final = not this.prompt.turns
                    message, details = _too_long(error, this)
                case Then.REPAIR:
                    s.tally.reset_streak()
                case Then.RETRY:
                    if s.tally.streak(error.code):
                        await gate.recover(f"ten times in a row: {error.message}", self._generate)
                    elif not this.standing.last:
                        await gate.pause(min(8.0, 0.5 * 2**this.number))
        except WrongServer as wrong:
            raise ConfigError(f"{wrong.message}. {wrong.mend}") from wrong
        except RequestRefused as refused:
            # The request itself, or what was to bring the server back: a model may be gone by then.
            if s.refusal_ends_job:
                raise JobError(refused.message, mend=refused.mend, code=refused.code) from refused
            return _Lost(
                Attempt(code, counted=policy.counts),
                RowError(refused.code, refused.message, details={"mend": refused.mend}),
                final=True,
            )
        return _Lost(
            Attempt(code, counted=policy.counts), RowError(code, message, details=details), final=final
        )

    async def _reload(self) -> None:
        await self._s.backend.load(self._load)

    async def _generate(self) -> None:
        """A real generation: a server can look well and yet answer nothing."""
        await self._s.backend.load(self._load)
        request = ChatRequest(self._load, (Message("user", "Say OK."),), num_predict=2, timeout_s=120.0)
        await self._s.backend.chat(request)


def _record(
    this: _Try, won: _Won, conversation: Conversation, plan: Plan, segment: int, place: int
) -> tuple[Answered, Turn]:
    """The answer as the ledger keeps it, and as it stands in the conversation."""
    ask, prompt, reply = this.ask, this.prompt, won.reply
    answer = Message("assistant", reply.text)
    own_tokens: int | None = None
    if prompt.appended and conversation.used is not None and reply.prompt_tokens is not None:
        own_tokens = max(1, reply.prompt_tokens - conversation.used)
    tokens = bound(plan, ask.own) if own_tokens is None else own_tokens
    tokens += bound(plan, (answer,)) if reply.completion_tokens is None else reply.completion_tokens
    record = Answered(
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
    )
    return record, Turn(this.row.ordinal, (*ask.own, answer), tokens)


def _extended(conversation: Conversation, prompt: Prompt, turn: Turn, reply: Reply) -> Conversation:
    known = reply.prompt_tokens is not None and reply.completion_tokens is not None
    return Conversation(
        turns=(*prompt.turns, turn),
        used=(reply.prompt_tokens or 0) + (reply.completion_tokens or 0) if known else None,
        last_prompt=reply.prompt_tokens,
        prefix_seen=reply.prompt_tokens if not conversation.turns else conversation.prefix_seen,
    )


def _too_long(error: BackendError, this: _Try) -> tuple[str, dict[str, object]]:
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


def _end(over: str | None, lost: _Lost | None, tried: int) -> RowError:
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
