"""Sends one request for a row: primes the prefix, counts the prompt if necessary, checks the reply."""

from __future__ import annotations

from dataclasses import replace

from spoolama.answer.attempt import Try, Won, together
from spoolama.answer.checks import check_room, cut_error, looks_halved, overflow
from spoolama.answer.shared import Shared
from spoolama.backends.base import ChatRequest, Message, Reply
from spoolama.errors import ContextOverflow
from spoolama.model.gate import Pass

__all__ = ["Sender"]

_MORE_TEXT = "\nand so on, and so on" * 8
_MORE_TOKENS = 10
"""Far fewer tokens than the text above has."""
_GRACE_S = 180.0
"""Time in addition to the request timeouts, for other requests of a backend, which take up to 30 s each."""


class Sender:
    """Sends the requests of a lane.

    Args:
        number: Number of the lane, from 0, for backends that can pin conversations to slots.
        shared: Objects that the lanes of the job share.
    """

    def __init__(self, number: int, shared: Shared) -> None:
        self._number = number
        self._s = shared

    async def send(self, this: Try, place: Pass) -> Won:
        """Send the request and return the reply with its measurements.

        Raises:
            BackendError: the server gave no reply.
            RowError: the server truncated the prompt.
        """
        s = self._s
        sampling = dict(this.ask.sampling)
        if this.seed:
            sampling["seed"] = int(sampling.get("seed") or 0) + this.seed
        if this.standing.repairs:
            # At temperature 0 another seed would give the same answer again, so raise the temperature too.
            sampling["seed"] = int(sampling.get("seed") or 0) + this.standing.repairs
            sampling["temperature"] = max(float(sampling.get("temperature") or 0.0), s.repair_temperature)
        request = ChatRequest(
            load=s.residency.spec,
            messages=this.prompt.messages,
            num_predict=this.ask.num_predict,
            sampling=sampling,
            format=this.ask.format,
            think=this.ask.think,
            timeout_s=s.request_timeout.bound_s,
            slot=self._number,
            logprobs=s.turns.logprobs,
        )
        front = this.prompt.messages[: this.prompt.front] if not this.row.isolated else ()
        if this.conversation.anchors and not this.prompt.anchors:
            front = ()  # the slot would lose the anchors for one row
        branches = not this.prompt.appended
        with s.progress.pulse.wait(request.timeout_s + _GRACE_S):
            began = s.clock.monotonic()
            if await s.watch.before(self._number, front, branches=branches, timeout_s=request.timeout_s):
                s.request_timeout.saw(s.clock.monotonic() - began)
        with s.progress.pulse.wait(request.timeout_s * 3 + _GRACE_S):
            cold = s.watch.take_cold()
            began = s.clock.monotonic()
            counted = None if this.prompt.fits else await self._measure(this, request, branches=branches)
            reply = await s.backend.chat(request)
            latency_s = s.clock.monotonic() - began
            reloaded = await s.watch.after(
                self._number, reply, this.row.ordinal, branches=branches and counted is None
            )
            if counted is not None:
                reply, reloaded = together(counted[0], reply), reloaded or counted[1]
            if looks_halved(reply, this.prompt) and not await self._counts_more(request, reply):
                raise cut_error(reply, this.prompt)
        check_room(reply, this.prompt)
        s.request_timeout.saw(latency_s)
        return Won(reply, latency_s, only_request=place.only_request, cold=cold or reloaded)

    async def _measure(self, this: Try, request: ChatRequest, *, branches: bool) -> tuple[Reply, bool] | None:
        """Count the tokens of a prompt that may not fit, before an answer is requested.

        If the server cannot count without evaluating, the prompt is sent with an answer of one token; it is
        then in the server's cache, so that the real request costs little.

        Returns:
            The reply of that request and whether the model was reloaded for it; None if no request was sent.
        """
        found: tuple[Reply, bool] | None = None
        tokens = await self._s.backend.count_tokens(request.load, request.messages)
        if tokens is None:
            reply = await self._s.backend.chat(replace(request, num_predict=1, format=None))
            found = reply, await self._s.watch.after(self._number, reply, this.row.ordinal, branches=branches)
            tokens = reply.prompt_tokens
            if tokens is None and await self._leaves_room(request):
                return found
        if tokens is None or not this.prompt.budget.fits(tokens):
            raise overflow(tokens, this.prompt)  # without a count a truncation would go unnoticed
        return found

    async def _leaves_room(self, request: ChatRequest) -> bool:
        """Whether a server without token counts accepts the prompt plus `num_predict` more words.

        The server refuses a prompt that fills its window, and a word is at least one token.
        """
        last = request.messages[-1]
        longer = (
            *request.messages[:-1],
            Message(last.role, last.content + " the" * (request.num_predict + 1)),
        )
        try:
            await self._s.backend.chat(replace(request, messages=longer, num_predict=1, format=None))
        except ContextOverflow:
            return False
        return True

    async def _counts_more(self, request: ChatRequest, reply: Reply) -> bool:
        """Whether the server counts more tokens for the same prompt with more text; if not, it truncates."""
        last = request.messages[-1]
        longer = (*request.messages[:-1], Message(last.role, last.content + _MORE_TEXT))
        try:
            again = await self._s.backend.chat(replace(request, messages=longer, num_predict=1, format=None))
        except ContextOverflow:
            return True  # it refuses prompts that are too long, so it does not truncate
        return (again.prompt_tokens or 0) > (reply.prompt_tokens or 0) + _MORE_TOKENS
