"""Runs a lane: takes one segment at a time and answers its rows one after another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from spoolama.answer.attempt import (
    Lost,
    Sender,
    Try,
    Won,
    check_reply,
    end_of,
    isolated_tokens_of,
    record,
    too_long,
)
from spoolama.answer.failures import POLICIES, Then, retry_state_of
from spoolama.answer.shared import Shared
from spoolama.answer.store import completed
from spoolama.backends.base import ChatRequest, Message
from spoolama.context.conversation import Conversation, extended, prepare, rebuild
from spoolama.context.trimming import Turn
from spoolama.errors import (
    BackendError,
    ConfigError,
    ContextOverflow,
    JobError,
    OutOfMemory,
    RequestRefused,
    RowError,
    WrongServer,
)
from spoolama.evaluation.evaluator import EVALUATION_LIMIT
from spoolama.job.plan import Plan
from spoolama.job.record import Attempt, Failed, StoredRow

__all__ = ["Lane"]

_CHUNK = 64


@dataclass(frozen=True, slots=True)
class _Place:
    """The position of a row in the job, and the reason why it is asked."""

    segment: int
    place: int
    plan: Plan
    sample: bool = False
    """Answered in isolation before the segments."""
    long: bool = False
    """In the second pass, with a larger window."""
    kind: str | None = None
    """Answered for this comparison."""
    apart: bool = False
    """For comparison, in isolation."""
    seed: int = 0
    """Added to the sampler's seed."""

    @property
    def alone(self) -> bool:
        return self.sample or self.long or self.apart


class Lane:
    """Answers segments.

    Args:
        number: 0-based; a backend that can pin conversations to slots uses it.
        shared: Objects that the lanes of the job share.
    """

    def __init__(self, number: int, shared: Shared) -> None:
        self.number = number
        self._s = shared
        self._sender = Sender(number, shared)
        self._served_at_loss = -1
        """The gate's count of answered requests when the server was last away or busy at the current row."""

    async def run_segment(
        self, segment: int, first: int, last: int, model: str | None, plan: Plan, anchors: tuple[Turn, ...]
    ) -> None:
        """Answer the pending rows of a segment.

        Raises:
            Stopping: the service stops; the next start continues.
            JobError: the job cannot continue.
        """
        s = self._s
        conversation = Conversation(anchors)
        if first < last:  # a single row has no conversation
            conversation = await rebuild(s.store, s.asker, segment, plan, anchors, s.turns.of)
        after = first
        while after <= last and (rows := await s.store.pending(after, last, model, _CHUNK)):
            for row in rows:
                place = _Place(segment, row.ordinal - first, plan)
                conversation = await self._row(row, conversation, place)
                after = row.ordinal + 1

    async def run_sample(self, row: StoredRow, segment: int, place: int, plan: Plan) -> None:
        """Answer a row in isolation before the segments; unless it fails, it stays pending."""
        await self._row(row, Conversation(), _Place(segment, place, plan, sample=True))

    async def run_long(self, row: StoredRow, segment: int, place: int, plan: Plan) -> None:
        """Answer a long row in isolation, with the larger window loaded."""
        await self._row(row, Conversation(), _Place(segment, place, plan, long=True))

    async def run_trial(
        self, kind: str, first: int, last: int, plan: Plan, anchors: tuple[Turn, ...]
    ) -> None:
        """Answer rows in a separate conversation, for comparison; they stay pending."""
        s, fixed = self._s, set(plan.anchors)
        conversation = Conversation(anchors)
        after = first
        while after <= last and (rows := await s.store.pending(after, last, None, _CHUNK)):
            for row in rows:
                if row.ordinal not in fixed:  # its prompt would contain the row itself
                    place = _Place(0, row.ordinal - first, plan, kind=kind)
                    conversation = await self._row(row, conversation, place)
                after = row.ordinal + 1

    async def run_apart(self, kind: str, ordinals: Sequence[int], plan: Plan, *, seed: int = 0) -> None:
        """Answer rows in isolation, for comparison; this does not change their results.

        Args:
            kind: The comparison.
            ordinals: The rows.
            plan: The plan in force, which limits their length.
            seed: Added to the sampler's seed.
        """
        for ordinal in ordinals:
            rows = await self._s.store.pending(ordinal, ordinal, None, 1)
            for row in rows or await self._s.store.rows_of([ordinal]):
                if row.state in ("pending", "ok"):
                    place = _Place(0, 0, plan, kind=kind, apart=True, seed=seed)
                    await self._row(row, Conversation(), place)

    async def _row(self, row: StoredRow, conversation: Conversation, place: _Place) -> Conversation:
        async with AsyncExitStack() as room:
            await room.enter_async_context(self._s.rows_in_work.hold(row.memory))
            row = await completed(row, self._s.store)
            return await self._asked(row, conversation, place, room)

    async def _asked(
        self, row: StoredRow, conversation: Conversation, place: _Place, room: AsyncExitStack
    ) -> Conversation:
        """Ask until the row has its result; returns the conversation afterwards."""
        s, plan = self._s, place.plan
        attempts = list(row.attempts)
        self._served_at_loss = 0 if retry_state_of(attempts, s.retries).prove else -1
        lost: Lost | None = None
        try:
            async with s.rendering:  # the size of a prompt is known after rendering
                ask = await s.asker.ask(row.fields, row.line)
                await room.enter_async_context(s.prompts_in_work.hold(ask.memory + conversation.memory))
            while True:
                # What was too long for the first window says nothing about the second.
                told = [a for a in attempts if not (place.long and a.code == "context_overflow")]
                standing = retry_state_of(told, s.retries)
                bare = row.isolated or standing.apart or standing.bare or place.alone
                known = [a.isolated_tokens for a in attempts if a.isolated_tokens is not None]
                prompt = prepare(
                    conversation,
                    ask,
                    plan if not place.long else replace(plan, window=None),
                    s.residency.spec.num_ctx,
                    bare=bare,
                    isolated_tokens=min(known, default=None),
                )
                if standing.over is not None or (lost is not None and lost.final):
                    raise end_of(standing.over, lost, attempts, prompt, plan)
                # A row without the anchors must not extend a conversation with anchors.
                apart = row.isolated or standing.apart or place.alone
                apart = apart or bool(conversation.anchors and not prompt.anchors)
                this = Try(
                    len(attempts) + 1, row, ask, prompt, standing, conversation, apart, place.kind, place.seed
                )
                outcome = await self._ask(this, plan)
                if isinstance(outcome, Won):
                    return await self._won(this, outcome, place)
                lost = outcome
                attempts.append(lost.attempt)
        except RowError as error:
            self._lost(row, error, len(attempts), place)
            return conversation
        finally:
            s.row_ended()

    async def _won(self, this: Try, won: Won, place: _Place) -> Conversation:
        s, reply = self._s, won.reply
        answer = record(this, won, place.plan, place.segment, place.place)
        if place.kind is not None:
            s.store.tried(place.kind, answer)
            s.tally.good()
            s.progress.compared()
        elif place.sample:
            s.store.sampled(answer)
            s.tally.good()
            s.progress.compared()
        else:
            s.store.answered(answer)
            s.tally.ok()
        if this.isolated:
            return this.conversation
        row = replace(this.row, logprob=reply.logprob)
        turn = await s.turns.of(row, this.ask.own, reply.text, answer.turn_tokens)
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
        if place.kind is not None:
            s.store.untried(row.ordinal)  # its result comes from its own segment
            s.progress.compared()
            return
        details = dict(error.details)
        tokens = details.get("prompt_tokens") or details.get("prompt_tokens_at_most")
        if error.code == "context_overflow" and not place.long and isinstance(tokens, int):
            whole = tokens + int(str(details.get("num_predict") or 0))
            if s.defers or s.residency.would_fit(whole):
                s.store.defer(row.ordinal, whole)
                return
        if error.answer is not None:
            details["answer"] = error.answer
        s.store.failed(Failed(row.ordinal, error.code, error.message, tries, details))
        s.tally.failed(error.code, error.message)

    async def _ask(self, this: Try, plan: Plan) -> Won | Lost:
        """Send one request and check the reply."""
        s = self._s
        ordinal, number = this.row.ordinal, this.number
        async with s.gate.through(exclusive=this.standing.exclusive) as place:
            await s.store.begin(ordinal, number)
            try:
                won = await self._sender.send(this, place)
                check_reply(won.reply, this.prompt, this.conversation)
                await s.evaluator.check(this.ask.format, won.reply.text, this.row.line)
            except RowError as error:
                # The server replied, but the reply is not a valid answer.
                s.gate.went_well()
                s.tally.reset_streak()
                if error.code == "prompt_truncated":
                    s.watch.cut(ordinal, error.message)
                s.store.end(ordinal, number, error.code, error.message, counted=True)
                final = error.code == EVALUATION_LIMIT  # another answer would most likely take as long
                return Lost(Attempt(error.code, counted=True), error, final=final)
            except BackendError as error:
                failure = error
            except BaseException:
                # Cancelled because the service stops; the row is not at fault.
                s.store.end(ordinal, number, "stopped", "the service stopped", counted=False)
                raise
            else:
                s.gate.went_well()
                s.tally.reset_streak()
                return won
        return await self._server_failed(this, failure, plan)

    async def _server_failed(self, this: Try, error: BackendError, plan: Plan) -> Lost:
        """Handle a request without an answer as `POLICIES` defines."""
        s, gate = self._s, self._s.gate
        code = error.code
        policy = POLICIES[code]
        isolated_tokens = isolated_tokens_of(error, this, plan)
        counted = policy.counts
        if policy.then in (Then.WAIT, Then.YIELD):
            counted, self._served_at_loss = gate.served > self._served_at_loss, gate.served
        elif isinstance(error, OutOfMemory):
            # As long as a smaller load is possible, the row may not be the cause.
            counted = not s.residency.ran_short(error.message)
        attempt = Attempt(code, counted=counted, isolated_tokens=isolated_tokens)
        s.store.end(
            this.row.ordinal,
            this.number,
            code,
            error.message,
            counted=counted,
            isolated_tokens=isolated_tokens,
        )
        look = self._generate if this.standing.prove else s.residency.reload
        final, message = False, error.message
        details: dict[str, object] = {}
        try:
            match policy.then:
                case Then.WAIT:
                    await gate.recover(error.message, look, carry=True)
                case Then.YIELD:
                    gate.slow_down()
                    await gate.recover(error.message, look, carry=True)
                case Then.REVIVE:
                    await gate.recover(f"the model's process died: {error.message}", s.residency.reload)
                case Then.PROBE:
                    await gate.recover(error.message, self._generate)
                case Then.END_JOB:
                    raise error
                case Then.SHRINK:
                    final = this.prompt.alone
                    tokens = error.prompt_tokens if isinstance(error, ContextOverflow) else None
                    message, details = too_long(tokens, this.prompt, plan)
                case Then.REPAIR:
                    s.tally.reset_streak()
                case Then.RETRY:
                    if s.tally.streak(error.code):
                        await gate.recover(f"ten times in a row: {error.message}", self._generate)
                    elif not this.standing.last:
                        await gate.pause(min(8.0, 0.5 * 2**this.number))
        except WrongServer as wrong:
            raise ConfigError(f"{wrong.message}. {wrong.fix}") from wrong
        except RequestRefused as refused:
            # The request itself or the recovery was refused, for example because the model was deleted.
            if s.refusal_ends_job and this.kind is None:
                raise JobError(refused.message, fix=refused.fix, code=refused.code) from refused
            return Lost(
                attempt,
                RowError(refused.code, refused.message, details={"fix": refused.fix}),
                final=True,
            )
        return Lost(attempt, RowError(code, message, details=details), final=final)

    async def _generate(self) -> None:
        """Run a real generation, because a server can look healthy and still answer nothing."""
        residency = self._s.residency
        await residency.reload()
        request = ChatRequest(residency.spec, (Message("user", "Say OK."),), num_predict=2, timeout_s=120.0)
        await self._s.backend.chat(request)
        self._s.gate.served += 1
