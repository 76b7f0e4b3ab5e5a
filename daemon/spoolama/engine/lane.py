"""A lane: takes one segment at a time and answers its rows one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from spoolama.backends.base import Backend, ChatRequest, LoadSpec, Message, Reply
from spoolama.clock import Clock
from spoolama.context.conversation import Conversation, extended, prepare, rebuild
from spoolama.context.trimming import Turn
from spoolama.context.turns import Turns
from spoolama.engine.checks import AnswerChecks, check_reply, cut_error, looks_halved
from spoolama.engine.failures import POLICIES, Then, standing_of
from spoolama.engine.gate import Gate, Pass
from spoolama.engine.patience import Patience
from spoolama.engine.progress import Progress
from spoolama.engine.store import RowStore
from spoolama.engine.tally import Tally
from spoolama.engine.tries import Lost, Try, Won, bare_tokens_of, end_of, record, together, too_long
from spoolama.engine.watch import Watch
from spoolama.errors import (
    BackendError,
    ConfigError,
    ContextOverflow,
    JobError,
    RequestRefused,
    RowError,
    WrongServer,
)
from spoolama.job.asking import Asker
from spoolama.job.plan import Plan
from spoolama.job.record import Attempt, Failed, StoredRow

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
    turns: Turns
    watch: Watch
    """What the loaded model is seen to do, and the prefix that it is kept primed with."""
    row_ended: Callable[[], None]
    """Called when a row has its end."""
    defers: bool
    """Whether rows too long for the window are left for the second pass."""
    repair_temperature: float
    refusal_ends_job: bool
    """Whether a refused request is the job's fault (all rows ask alike) or that row's (OpenAI lines)."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the job a row stands, and why it is asked."""

    segment: int
    place: int
    plan: Plan
    sample: bool = False
    """Answered alone beforehand."""
    long: bool = False
    """In the second pass, with a larger window."""

    @property
    def alone(self) -> bool:
        return self.sample or self.long


class Lane:
    """Answers segments.

    Args:
        number: 0-based; a backend that can pin conversations to slots uses it.
        shared: What the lanes of the job have in common.
        load: The loaded model's terms.
    """

    def __init__(self, number: int, shared: Shared, load: LoadSpec) -> None:
        self.number = number
        self._s = shared
        self._load = load

    async def run_segment(
        self, segment: int, first: int, last: int, model: str | None, plan: Plan, anchors: tuple[Turn, ...]
    ) -> None:
        """Answer the rows of a segment that have no end yet.

        Raises:
            Stopping: the service stops; the rest is for the next start.
            JobError: the job cannot go on.
        """
        s = self._s
        conversation = Conversation(anchors)
        if first < last:  # a row alone has nothing before it
            conversation = await rebuild(s.store, s.asker, segment, plan, anchors, s.turns.of)
        after = first
        while after <= last and (rows := await s.store.pending(after, last, model, _CHUNK)):
            for row in rows:
                place = _Place(segment, row.ordinal - first, plan)
                conversation = await self._row(row, conversation, place)
                after = row.ordinal + 1

    async def run_sample(self, row: StoredRow, segment: int, place: int, plan: Plan) -> None:
        """Answer a row alone, beforehand; the row itself goes on unless it fails."""
        await self._row(row, Conversation(), _Place(segment, place, plan, sample=True))

    async def run_long(self, row: StoredRow, segment: int, place: int, plan: Plan) -> None:
        """Answer a row alone that is too long for the job's window; the larger one is loaded."""
        await self._row(row, Conversation(), _Place(segment, place, plan, long=True))

    async def _row(self, row: StoredRow, conversation: Conversation, place: _Place) -> Conversation:
        """Ask until the row has its end; what stands in the conversation afterwards."""
        s, plan = self._s, place.plan
        attempts = list(row.attempts)
        lost: Lost | None = None
        try:
            ask = s.asker.ask(row.fields)
            while True:
                # What was too long for the first window says nothing about the second.
                told = [a for a in attempts if not (place.long and a.code == "context_overflow")]
                standing = standing_of(told, s.retries)
                if standing.over is not None or (lost is not None and lost.final):
                    raise end_of(standing.over, lost, len(attempts))
                bare = row.alone or standing.apart or standing.bare or place.alone
                known = [a.bare_tokens for a in attempts if a.bare_tokens is not None]
                prompt = prepare(
                    conversation,
                    ask,
                    plan if not place.long else replace(plan, window=None),
                    self._load.num_ctx,
                    bare=bare,
                    bare_tokens=min(known, default=None),
                )
                # Without the anchors it would break what all rows of the job have in common.
                apart = row.alone or standing.apart or place.alone
                apart = apart or bool(conversation.anchors and not prompt.anchors)
                this = Try(len(attempts) + 1, row, ask, prompt, standing, conversation, apart)
                outcome = await self._ask(this, plan)
                if isinstance(outcome, Won):
                    return self._won(this, outcome, place)
                lost = outcome
                attempts.append(lost.attempt)
        except RowError as error:
            self._lost(row, error, len(attempts), place)
            return conversation
        finally:
            s.row_ended()

    def _won(self, this: Try, won: Won, place: _Place) -> Conversation:
        s, reply = self._s, won.reply
        answer = record(this, won, place.plan, place.segment, place.place)
        if place.sample:
            s.store.sampled(answer)
            s.tally.good()
        else:
            s.store.answered(answer)
            s.tally.ok()
        if this.apart:
            return this.conversation
        row = replace(this.row, logprob=reply.logprob)
        turn = s.turns.of(row, this.ask.own, reply.text, answer.turn_tokens)
        return extended(
            this.conversation,
            this.prompt.tail,
            turn,
            place.plan,
            reply.prompt_tokens,
            reply.answer_tokens,
        )

    def _lost(self, row: StoredRow, error: RowError, tries: int, place: _Place) -> None:
        s = self._s
        details = dict(error.details)
        tokens = details.get("prompt_tokens")
        if error.code == "context_overflow" and s.defers and not place.long and isinstance(tokens, int):
            s.store.defer(row.ordinal, tokens + int(str(details.get("num_predict") or 0)))
            return
        if error.answer is not None:
            details["answer"] = error.answer
        s.store.failed(Failed(row.ordinal, error.code, error.message, tries, details))
        s.tally.failed(error.code, error.message)

    async def _ask(self, this: Try, plan: Plan) -> Won | Lost:
        """Send one request and judge what comes back."""
        s = self._s
        ordinal, number = this.row.ordinal, this.number
        async with s.gate.through(exclusive=this.standing.exclusive) as place:
            await s.store.begin(ordinal, number)
            try:
                won = await self._send(this, place)
                check_reply(won.reply, this.prompt, this.conversation)
                s.checks.of(this.ask.format).check(won.reply.text)
            except RowError as error:
                # The server did its work, but what it gave is no answer.
                s.gate.went_well()
                s.tally.reset_streak()
                if error.code == "prompt_truncated":
                    s.watch.cut(ordinal, error.message)
                s.store.end(ordinal, number, error.code, error.message, counted=True)
                return Lost(Attempt(error.code, counted=True), error)
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
        return await self._server_failed(this, failure, plan)

    async def _send(self, this: Try, place: Pass) -> Won:
        s = self._s
        sampling = dict(this.ask.sampling)
        if this.standing.repairs:
            # At temperature 0 another seed alone would give the same answer again.
            sampling["seed"] = int(sampling.get("seed") or 0) + this.standing.repairs
            sampling["temperature"] = max(float(sampling.get("temperature") or 0.0), s.repair_temperature)
        request = ChatRequest(
            load=self._load,
            messages=this.prompt.messages,
            num_predict=this.ask.num_predict,
            sampling=sampling,
            format=this.ask.format,
            think=this.ask.think,
            timeout_s=s.patience.bound_s,
            slot=self.number,
            logprobs=s.turns.logprobs,
        )
        front = this.prompt.messages[: this.prompt.front] if not this.row.alone else ()
        if this.conversation.anchors and not this.prompt.anchors:
            front = ()  # the slot would lose the anchors for one row
        branches = not this.prompt.appended
        with s.progress.pulse.wait(request.timeout_s * 3 + _GRACE_S):
            await s.watch.before(self.number, front, branches=branches)
            cold = s.watch.take_cold()
            began = s.clock.monotonic()
            counted = None if this.prompt.fits else await self._measure(this, request, branches=branches)
            reply = await s.backend.chat(request)
            latency_s = s.clock.monotonic() - began
            reloaded = await s.watch.after(
                self.number, reply, this.row.ordinal, branches=branches and counted is None
            )
            if counted is not None:
                reply, reloaded = together(counted[0], reply), reloaded or counted[1]
            if looks_halved(reply, this.prompt) and not await self._counts_more(request, reply):
                raise cut_error(reply, this.prompt)
        s.patience.saw(latency_s)
        return Won(reply, latency_s, solo=place.solo, cold=cold or reloaded)

    async def _measure(self, this: Try, request: ChatRequest, *, branches: bool) -> tuple[Reply, bool] | None:
        """The bound says that the prompt may not fit: have it counted before an answer is asked for.

        Where the server cannot count without evaluating, the prompt is sent with an answer of one token; it
        then stands in the server's cache, so that the real request costs little.

        Returns:
            The reply and whether the model was loaded again for it, where that was a request.
        """
        budget = this.prompt.budget
        found: tuple[Reply, bool] | None = None
        tokens = await self._s.backend.count_tokens(self._load, request.messages)
        if tokens is None:
            reply = await self._s.backend.chat(replace(request, num_predict=1, format=None))
            found = reply, await self._s.watch.after(self.number, reply, this.row.ordinal, branches=branches)
            tokens = reply.prompt_tokens
        if tokens is not None and not budget.fits(tokens):
            raise ContextOverflow(
                f"the prompt has {tokens} tokens and the answer may have {budget.num_predict}, "
                f"together too many for num_ctx {budget.num_ctx}",
                prompt_tokens=tokens,
                num_ctx=budget.num_ctx,
            )
        return found

    async def _counts_more(self, request: ChatRequest, reply: Reply) -> bool:
        """Whether the same prompt with more text is longer to the server; one that cuts counts the same."""
        last = request.messages[-1]
        longer = (*request.messages[:-1], Message(last.role, last.content + _MORE_TEXT))
        try:
            again = await self._s.backend.chat(replace(request, messages=longer, num_predict=1, format=None))
        except ContextOverflow:
            return True  # it refuses what is too long, so it cuts nothing
        return (again.prompt_tokens or 0) > (reply.prompt_tokens or 0) + _MORE_TOKENS

    async def _server_failed(self, this: Try, error: BackendError, plan: Plan) -> Lost:
        """The request gave no answer: do what the table of failures says."""
        s, gate = self._s, self._s.gate
        code = error.code
        policy = POLICIES[code]
        bare_tokens = bare_tokens_of(error, this, plan)
        s.store.end(
            this.row.ordinal,
            this.number,
            code,
            error.message,
            counted=policy.counts,
            bare_tokens=bare_tokens,
        )
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
                    final = this.prompt.alone
                    message, details = too_long(error, this)
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
            return Lost(
                Attempt(code, counted=policy.counts),
                RowError(refused.code, refused.message, details={"mend": refused.mend}),
                final=True,
            )
        return Lost(
            Attempt(code, counted=policy.counts, bare_tokens=bare_tokens),
            RowError(code, message, details=details),
            final=final,
        )

    async def _reload(self) -> None:
        self._s.watch.loaded(await self._s.backend.load(self._load))

    async def _generate(self) -> None:
        """A real generation: a server can look well and yet answer nothing."""
        await self._reload()
        request = ChatRequest(self._load, (Message("user", "Say OK."),), num_predict=2, timeout_s=120.0)
        await self._s.backend.chat(request)
