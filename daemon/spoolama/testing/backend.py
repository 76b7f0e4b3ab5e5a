"""A model server in memory, for tests of the engine: scripted, exact, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from spoolama.backends.base import ChatRequest, LoadedModel, LoadSpec, Message, Reply, ServerInfo
from spoolama.clock import Clock
from spoolama.errors import ContextOverflow

__all__ = ["Call", "ScriptedBackend", "count_tokens"]

Answer = Callable[[ChatRequest], str]


def count_tokens(messages: Sequence[Message]) -> int:
    """The fake tokenizer: 4 tokens around a message, one for each 4 UTF-8 bytes begun."""
    return sum(4 + -(-len(m.content.encode()) // 4) for m in messages)


@dataclass(frozen=True, slots=True)
class Call:
    """One chat request as it came."""

    at: float
    request: ChatRequest

    @property
    def text(self) -> str:
        """The last message."""
        return self.request.messages[-1].content


@dataclass
class ScriptedBackend:
    """Answers by a function; `fault` may raise instead, or give a reply of its own.

    Args:
        clock: For latency and the times of calls.
        answer: The answer's text; by default a label that depends on the prompt alone.
        fault: Called before each chat; raises a `BackendError`, returns a `Reply`, or None to go on.
        load_fault: The same before each load.
        latency_s: How long an answer takes.
        counts: Whether replies carry token counts.
        exact_count: Whether prompts can be counted without being evaluated.
    """

    clock: Clock
    answer: Answer = field(default=lambda r: ("positive", "negative")[len(r.messages[-1].content) % 2])
    fault: Callable[[Call], Reply | None] = field(default=lambda _: None)
    load_fault: Callable[[LoadSpec], None] = field(default=lambda _: None)
    latency_s: float = 0.01
    counts: bool = True
    exact_count: bool = False
    kind: str = "scripted"
    calls: list[Call] = field(default_factory=list)
    loads: list[tuple[float, LoadSpec]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    released: int = 0

    async def probe(self) -> ServerInfo:
        """Always there."""
        return ServerInfo("scripted", "1")

    async def load(self, spec: LoadSpec) -> LoadedModel:
        """Loads at once."""
        self.loads.append((self.clock.monotonic(), spec))
        self.load_fault(spec)
        return LoadedModel(spec.model, "d1", spec.num_ctx, spec.slots, ServerInfo("scripted", "1"))

    async def chat(self, request: ChatRequest) -> Reply:
        """Answers after the latency, with exact counts."""
        call = Call(self.clock.monotonic(), request)
        self.calls.append(call)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.latency_s:
                await self.clock.sleep(self.latency_s)
            else:
                await asyncio.sleep(0)
            reply = self.fault(call)
            if reply is not None:
                return reply
            return self._reply(request)
        finally:
            self.in_flight -= 1

    def _reply(self, request: ChatRequest) -> Reply:
        prompt = count_tokens(request.messages)
        if prompt >= request.load.num_ctx:
            raise ContextOverflow(
                f"request ({prompt} tokens) exceeds the context size ({request.load.num_ctx} tokens)",
                status=400,
                prompt_tokens=prompt,
                num_ctx=request.load.num_ctx,
            )
        text = self.answer(request)
        # The answer's share of the next prompt, less the marks around a message.
        tokens = count_tokens([Message("assistant", text)])
        cut = tokens > request.num_predict
        return Reply(
            text=text,
            finish="length" if cut else "stop",
            prompt_tokens=prompt if self.counts else None,
            cached_tokens=None,
            completion_tokens=min(tokens, request.num_predict) if self.counts else None,
        )

    async def count_tokens(self, spec: LoadSpec, messages: Sequence[Message]) -> int | None:  # noqa: ARG002 - interface
        """Exact, if it is set so."""
        return count_tokens(messages) if self.exact_count else None

    async def release(self) -> None:
        """Counted."""
        self.released += 1

    async def aclose(self) -> None:
        """Nothing to close."""
