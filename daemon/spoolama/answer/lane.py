"""Runs a lane: takes one segment at a time and answers its rows one after another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Protocol, TypeVar

from spoolama.answer.attempt import (
    AnsweredAttempt,
    FailedAttempt,
    PreparedRequest,
    Sender,
    check_reply,
    end_of,
    isolated_tokens_of,
    record,
    too_long,
)
from spoolama.answer.failures import POLICIES, RetryAction, retry_state_of
from spoolama.answer.job_context import JobContext, OpenModel
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
from spoolama.job.row import Attempt, Failed, StoredRow

T = TypeVar("T")

_CHUNK = 64


class Purpose(Enum):
    """Why a row is asked."""

    RESULT = auto()
    """For the row's result, in the conversation of its segment."""
    LONG = auto()
    """For the result of a long row: in isolation, with the larger window of the second pass."""
    CANDIDATE = auto()
    """As a candidate for the anchors, in isolation."""
    FORM = auto()
    """For comparison, in a conversation of the form that the pilot tries."""
    ISOLATED = auto()
    """For comparison, in isolation."""


_IN_ISOLATION = (Purpose.LONG, Purpose.CANDIDATE, Purpose.ISOLATED)


@dataclass(frozen=True, slots=True)
class _Task:
    """A row's place in the job, and why it is asked."""

    plan: Plan
    purpose: Purpose
    segment: int = 0
    place: int = 0
    comparison: str | None = None
    """The comparison to which the answer belongs; None: the answer is, or may become, the row's result."""
    seed: int = 0
    """Added to the sampler's seed."""


class Lane:
    """Answers segments.

    Args:
        number: 0-based; a backend that can pin conversations to slots uses it.
        job: Objects that all parts of the job share.
        model: The loaded model.
    """

    def __init__(self, number: int, job: JobContext, model: OpenModel) -> None:
        self._job = job
        self._model = model
        self._sender = Sender(number, job, model)
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
        job = self._job
        conversation = Conversation(anchors)
        if first < last:  # a single row has no conversation
            conversation = await rebuild(job.store, job.asker, segment, plan, anchors, job.turns.of)
        after = first
        while after <= last and (rows := await job.store.pending(after, last, model, _CHUNK)):
            for row in rows:
                task = _Task(plan, Purpose.RESULT, segment, row.ordinal - first)
                conversation, _ = await self._row(row, conversation, task)
                after = row.ordinal + 1

    async def run_candidate(self, row: StoredRow, segment: int, place: int, plan: Plan) -> None:
        """Answer a row in isolation before the segments; unless it fails, it stays pending."""
        await self._row(row, Conversation(), _Task(plan, Purpose.CANDIDATE, segment, place))

    async def run_long(self, row: StoredRow, segment: int, place: int, plan: Plan) -> None:
        """Answer a long row in isolation, with the larger window loaded."""
        await self._row(row, Conversation(), _Task(plan, Purpose.LONG, segment, place))

    async def run_form(
        self, comparison: str, first: int, last: int, plan: Plan, anchors: tuple[Turn, ...]
    ) -> None:
        """Answer rows in a separate conversation, for comparison; they stay pending."""
        store = self._job.store
        conversation = Conversation(anchors)
        after = first
        while after <= last and (rows := await store.pending(after, last, None, _CHUNK)):
            for row in rows:
                if row.ordinal not in plan.anchors:  # its prompt would contain the row itself
                    task = _Task(plan, Purpose.FORM, place=row.ordinal - first, comparison=comparison)
                    conversation, _ = await self._row(row, conversation, task)
                after = row.ordinal + 1

    async def run_isolated(
        self, comparison: str, ordinals: Sequence[int], plan: Plan, *, seed: int
    ) -> dict[int, str]:
        """Answer rows in isolation, for comparison; this does not change their results.

        Args:
            comparison: The name under which the ledger keeps the answers.
            ordinals: The rows.
            plan: The plan in force, which limits their length.
            seed: Added to the sampler's seed.

        Returns:
            The answers by ordinal; rows that failed are left out.
        """
        store = self._job.store
        answers: dict[int, str] = {}
        for ordinal in ordinals:
            for row in await store.pending(ordinal, ordinal, None, 1) or await store.rows_of([ordinal]):
                if row.state in ("pending", "ok"):
                    task = _Task(plan, Purpose.ISOLATED, comparison=comparison, seed=seed)
                    _, answer = await self._row(row, Conversation(), task)
                    if answer is not None:
                        answers[ordinal] = answer
        return answers

    async def _row(
        self, row: StoredRow, conversation: Conversation, task: _Task
    ) -> tuple[Conversation, str | None]:
        """Ask a row until it is answered or has failed.

        Returns:
            The conversation afterwards, and the answer; None: the row failed.
        """
        job = self._job
        async with AsyncExitStack() as memory:
            await memory.enter_async_context(job.rows_in_work.hold(row.memory))
            row = await completed(row, job.store)
            attempts = list(row.attempts)
            try:
                request, answered = await self._asked(row, attempts, conversation, task, memory)
                return await self._answered(request, answered, task), answered.reply.text
            except RowError as error:
                self._failed(row, error, len(attempts), task)
                return conversation, None
            finally:
                job.planner.row_ended()

    async def _asked(
        self,
        row: StoredRow,
        attempts: list[Attempt],
        conversation: Conversation,
        task: _Task,
        memory: AsyncExitStack,
    ) -> tuple[PreparedRequest, AnsweredAttempt]:
        """Send requests until one is answered, and add the failed attempts to `attempts`.

        Raises:
            RowError: the row failed.
        """
        job, plan = self._job, task.plan
        long, retries = task.purpose is Purpose.LONG, job.sidecar.retries
        self._served_at_loss = 0 if retry_state_of(attempts, retries).prove else -1
        async with job.rendering:
            ask = await job.asker.ask(row.fields, row.line, row.request)
            await memory.enter_async_context(job.prompts_in_work.hold(ask.memory + conversation.memory))
        failed: FailedAttempt | None = None
        while True:
            # An overflow of the first window does not count for the larger one.
            state = retry_state_of(
                [a for a in attempts if not (long and a.code == "context_overflow")], retries
            )
            isolated = row.isolated or state.isolated or task.purpose in _IN_ISOLATION
            known = [a.isolated_tokens for a in attempts if a.isolated_tokens is not None]
            prompt = prepare(
                conversation,
                ask,
                replace(plan, window=None) if long else plan,
                self._model.residency.spec.num_ctx,
                prefix_only=isolated or state.prefix_only,
                isolated_tokens=min(known, default=None),
            )
            if state.over is not None or (failed is not None and failed.final):
                raise end_of(state.over, failed, attempts, prompt, plan)
            request = PreparedRequest(
                len(attempts) + 1,
                row,
                ask,
                prompt,
                state,
                conversation,
                # A row without the anchors must not extend a conversation with anchors.
                isolated=isolated or bool(conversation.anchors and not prompt.anchors),
                comparison=task.comparison,
                seed=task.seed,
            )
            outcome = await self._ask(request, plan)
            if isinstance(outcome, AnsweredAttempt):
                return request, outcome
            failed = outcome
            attempts.append(failed.attempt)

    async def _answered(
        self, request: PreparedRequest, answered: AnsweredAttempt, task: _Task
    ) -> Conversation:
        job, reply = self._job, answered.reply
        answer = record(request, answered, task.plan, task.segment, task.place)
        if task.comparison is None and task.purpose is not Purpose.CANDIDATE:
            job.store.answered(answer)
            job.counts.ok()
        else:
            if task.comparison is None:
                job.store.sampled(answer)
            else:
                job.store.add_trial(task.comparison, answer)
            job.counts.good()
            job.progress.compared()
        if request.isolated:
            return request.conversation
        row = replace(request.row, logprob=reply.logprob)
        turn = await job.turns.of(row, request.ask.own, reply.text, answer.turn_tokens)
        return extended(
            request.conversation,
            request.prompt.tail,
            turn,
            task.plan,
            reply.prompt_tokens,
            reply.answer_tokens,
        )

    def _failed(self, row: StoredRow, error: RowError, attempts: int, task: _Task) -> None:
        job = self._job
        if task.comparison is not None:
            job.store.skip_trial(row.ordinal)  # its result comes from its own segment
            job.progress.compared()
            return
        details = dict(error.details)
        tokens = details.get("prompt_tokens") or details.get("prompt_tokens_at_most")
        if error.code == "context_overflow" and task.purpose is not Purpose.LONG and isinstance(tokens, int):
            whole = tokens + int(str(details.get("num_predict") or 0))
            if self._model.defers or self._model.residency.would_fit(whole):
                job.store.defer(row.ordinal, whole)
                return
        if error.answer is not None:
            details["answer"] = error.answer
        job.store.failed(Failed(row.ordinal, error.code, error.message, attempts, details))
        job.counts.failed(error.code, error.message)

    async def _ask(self, request: PreparedRequest, plan: Plan) -> AnsweredAttempt | FailedAttempt:
        """Send one request and check the reply."""
        job = self._job
        ordinal, number = request.row.ordinal, request.number
        async with job.gate.through(exclusive=request.state.exclusive) as admission:
            await job.store.begin(ordinal, number)
            try:
                answered = await self._sender.send(request, admission)
                check_reply(answered.reply, request.prompt, request.conversation)
                await job.evaluator.check(request.ask.format, answered.reply.text, request.row.line)
            except RowError as error:
                # The server replied, but the reply is not a valid answer.
                job.gate.went_well()
                job.counts.reset_streak()
                if error.code == "prompt_truncated":
                    self._model.watch.cut(ordinal, error.message)
                job.store.end(ordinal, number, error.code, error.message, counted=True)
                final = error.code == EVALUATION_LIMIT  # another answer would most likely take as long
                return FailedAttempt(Attempt(error.code, counted=True), error, final=final)
            except BackendError as error:
                failure = error
            except BaseException:
                # Cancelled because the service stops; the row is not at fault.
                job.store.end(ordinal, number, "stopped", "the service stopped", counted=False)
                raise
            else:
                job.gate.went_well()
                job.counts.reset_streak()
                return answered
        return await self._server_failed(request, failure, plan)

    async def _server_failed(
        self, request: PreparedRequest, error: BackendError, plan: Plan
    ) -> FailedAttempt:
        """Handle a request without an answer as `POLICIES` defines."""
        job, gate, residency = self._job, self._job.gate, self._model.residency
        code = error.code
        policy = POLICIES[code]
        counted = policy.counts
        if policy.then in (RetryAction.WAIT, RetryAction.YIELD):
            counted, self._served_at_loss = gate.served > self._served_at_loss, gate.served
        elif isinstance(error, OutOfMemory):
            # As long as a smaller load is possible, the row may not be the cause.
            counted = not residency.ran_short(error.message)
        attempt = Attempt(code, counted=counted, isolated_tokens=isolated_tokens_of(error, request, plan))
        job.store.end(
            request.row.ordinal,
            request.number,
            code,
            error.message,
            counted=counted,
            isolated_tokens=attempt.isolated_tokens,
        )
        proof = self._generate if request.state.prove else residency.reload
        final, message = False, error.message
        details: dict[str, object] = {}
        try:
            match policy.then:
                case RetryAction.WAIT:
                    await gate.recover(error.message, proof, carry=True)
                case RetryAction.YIELD:
                    gate.slow_down()
                    await gate.recover(error.message, proof, carry=True)
                case RetryAction.REVIVE:
                    await gate.recover(f"the model's process died: {error.message}", residency.reload)
                case RetryAction.PROBE:
                    await gate.recover(error.message, self._generate)
                case RetryAction.END_JOB:
                    raise error
                case RetryAction.SHRINK:
                    final = request.prompt.prefix_only
                    tokens = error.prompt_tokens if isinstance(error, ContextOverflow) else None
                    message, details = too_long(tokens, request.prompt, plan)
                case RetryAction.REPAIR:
                    job.counts.reset_streak()
                case RetryAction.RETRY:
                    if job.counts.streak(error.code):
                        await gate.recover(f"ten times in a row: {error.message}", self._generate)
                    elif not request.state.last:
                        await gate.pause(min(8.0, 0.5 * 2**request.number))
        except WrongServer as wrong:
            raise ConfigError(f"{wrong.message}. {wrong.fix}") from wrong
        except RequestRefused as refused:
            # The request itself or the recovery was refused, for example because the model was deleted.
            # All rows have the same options, unless the row brings its own request.
            if request.row.request is None and request.comparison is None:
                raise JobError(refused.message, fix=refused.fix, code=refused.code) from refused
            row_error = RowError(refused.code, refused.message, details={"fix": refused.fix})
            return FailedAttempt(attempt, row_error, final=True)
        return FailedAttempt(attempt, RowError(code, message, details=details), final=final)

    async def _generate(self) -> None:
        """Run a real generation, because a server can look healthy and still answer nothing."""
        residency = self._model.residency
        await residency.reload()
        request = ChatRequest(residency.spec, (Message("user", "Say OK."),), num_predict=2, timeout_s=120.0)
        await self._job.backend.chat(request)
        self._job.gate.served += 1


class RunLanes(Protocol):
    """Works on pieces in all lanes at once; implemented by `run/model_run.ModelRun.in_lanes`."""

    async def __call__(
        self, pieces: AsyncIterator[T] | Iterable[T], work: Callable[[Lane, T], Awaitable[None]]
    ) -> None:
        """Return when `work` was awaited for each piece.

        Raises:
            JobError: the job cannot continue.
            Stopping: the service stops.
        """
        ...
