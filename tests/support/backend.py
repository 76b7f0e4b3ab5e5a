"""A model server in memory for tests of the engine: scripted, exact, without a network."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from spoolama.backends.base import ChatRequest, HeldModel, LoadedModel, LoadSpec, Message, Reply, ServerInfo
from spoolama.backends.model_shape import ModelShape
from spoolama.clock import Clock
from spoolama.errors import ContextOverflow

Answer = Callable[[ChatRequest], str]

FRAME = 4
"""Tokens around a message, all but one of them before its text."""


def count_tokens(messages: Sequence[Message]) -> int:
    """Count with the fake tokenizer: 4 tokens around a message and one for each 4 bytes of
    UTF-8, rounded up.
    """
    return sum(FRAME + -(-len(m.content.encode()) // 4) for m in messages)


def render(messages: Sequence[Message]) -> str:
    """Render with the fake template: `<role>content</role>` for each message, and the opened answer."""
    return "".join(f"<{m.role}>{m.content}</{m.role}>" for m in messages) + "<assistant>"


@dataclass(frozen=True, slots=True)
class Call:
    """A chat request as it was received."""

    at: float
    request: ChatRequest

    @property
    def text(self) -> str:
        """The last message."""
        return self.request.messages[-1].content


@dataclass(slots=True)
class _Slot:
    """The content of a slot's prefix cache."""

    text: str = ""
    tokens: int = 0
    ends: list[int] = field(default_factory=list)
    """Characters of `text` at which earlier requests ended their prompts."""


@dataclass
class ScriptedBackend:
    """Answers by a function; `fault` may raise or return another reply instead.

    With `caches`, each slot stores its last prompt and answer (or primed text). The part that a new
    prompt shares with it, in whole messages and in the text of the first that differs, is not evaluated;
    one token always is. With `sliding`, a shared part that ends more than this many tokens before the end
    of the slot's text counts only up to the end of an earlier prompt. Both work as in the fake Ollama.

    Args:
        clock: For latency and the times of calls.
        answer: The answer's text; by default a label that depends on the prompt alone.
        fault: Called before each chat; raises a `BackendError`, returns a `Reply`, or None to go on.
        load_fault: The same before each load.
        latency_s: How long an answer takes.
        counts: Whether replies carry token counts.
        exact_count: Whether prompts can be counted without being evaluated.
        caches: Whether there is a prefix cache, whose hits replies carry.
        sliding: Tokens of a sliding attention window; None: plain attention.
        copies: Whether a text that was primed in one slot is copied into others.
        renders: Whether the server can render a prompt.
        can_prime: Whether it has a route for rendered text.
        prime_fault: Called with text and slot before each prime; raises, or returns None to go on.
        inspect_fault: Called before each inspection.
        held: The loaded model: set by `load` and `release`; a test may set another.
        trained_ctx: The longest window that the model reports.
        shape_: The shape of the model, as far as the server reports it.
    """

    clock: Clock
    answer: Answer = field(default=lambda r: ("positive", "negative")[len(r.messages[-1].content) % 2])
    fault: Callable[[Call], Reply | None] = field(default=lambda _: None)
    load_fault: Callable[[LoadSpec], None] = field(default=lambda _: None)
    latency_s: float = 0.01
    counts: bool = True
    exact_count: bool = False
    kind: str = "scripted"
    releases: bool = True
    uses_gpus: bool = False
    sets_slots: bool = False
    pid: int | None = None
    calls: list[Call] = field(default_factory=list)
    loads: list[tuple[float, LoadSpec]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    released: int = 0
    caches: bool = False
    sliding: int | None = None
    copies: bool = False
    renders: bool = True
    can_prime: bool = True
    prime_fault: Callable[[str, int | None], None] = field(default=lambda _text, _slot: None)
    inspect_fault: Callable[[LoadSpec], None] = field(default=lambda _: None)
    held: LoadedModel | None = None
    trained_ctx: int | None = None
    shape_: ModelShape | None = None
    primes: list[tuple[str, int | None]] = field(default_factory=list)
    inspected: int = 0
    _saved: set[str] = field(default_factory=set)
    _slots: dict[int, _Slot] = field(default_factory=dict)
    _spec: LoadSpec | None = None

    async def probe(self) -> ServerInfo:
        """Always succeeds."""
        return ServerInfo("scripted", "1")

    async def load(self, spec: LoadSpec) -> LoadedModel:
        """Load at once; another load than before empties the prefix cache."""
        self.loads.append((self.clock.monotonic(), spec))
        self.load_fault(spec)
        if spec != self._spec or self.held is None:
            self._slots.clear()
        self._spec = spec
        self.held = LoadedModel(
            name=spec.model,
            digest="d1",
            num_ctx=spec.num_ctx,
            slots=spec.slots,
            server=ServerInfo("scripted", "1"),
            sliding_window=self.sliding,
            copies_prefix=self.copies,
            trained_ctx=self.trained_ctx,
        )
        return self.held

    async def chat(self, request: ChatRequest) -> Reply:
        """Answer after the latency, with exact counts."""
        call = Call(self.clock.monotonic(), request)
        self.calls.append(call)
        await self._enter()
        try:
            reply = self.fault(call)
            if reply is not None:
                return reply
            return self.reply_to(request)
        finally:
            self.in_flight -= 1

    async def count_tokens(self, spec: LoadSpec, messages: Sequence[Message]) -> int | None:
        """Count exactly, if set so."""
        return count_tokens(messages) if self.exact_count else None

    async def render(self, spec: LoadSpec, messages: Sequence[Message]) -> str | None:
        """Render with the fake template, if set so."""
        return render(messages) if self.renders else None

    async def prime(
        self,
        spec: LoadSpec,
        text: str,
        *,
        slot: int | None = None,
        timeout_s: float = 600.0,
    ) -> Reply | None:
        """Put the text into the slot's cache, after the latency."""
        if not self.can_prime:
            return None
        self.primes.append((text, slot))
        await self._enter()
        try:
            self.prime_fault(text, slot)
            tokens = _tokens_of_text(text)
            _refuse_overflow(tokens, spec)
            held = self._slots.setdefault(slot or 0, _Slot())
            if self.copies and text in self._saved:
                self._keep(held, text, text, tokens + 1, (tokens, len(text)))
                return self._counted("", "length", tokens, tokens, 0)
            self._saved = {text}
            cached = self._reused(held, text, lambda size: _tokens_of_text(text[:size]), tokens)
            self._keep(held, text, text, tokens + 1, cached)
            return self._counted("", "length", tokens, cached[0], 1)
        finally:
            self.in_flight -= 1

    async def inspect(self, spec: LoadSpec) -> LoadedModel | None:
        """Return `held`, if it is this model."""
        self.inspected += 1
        self.inspect_fault(spec)
        return self.held if self.held is not None and self.held.name == spec.model else None

    async def shape(self, spec: LoadSpec) -> ModelShape | None:
        """Return the shape that the test sets."""
        return self.shape_

    async def in_memory(self) -> tuple[HeldModel, ...] | None:
        """Return the loaded model, without its size."""
        now = self.held
        return () if now is None else (HeldModel(now.name, now.size_bytes, now.vram_bytes, now.num_ctx),)

    async def release(
        self,
        *,
        keep: str | None = None,
        also: str | None = None,
    ) -> tuple[str, ...]:
        """Count the release and unload the model."""
        name = self.held.name if self.held is not None else None
        if name is not None and name == keep:
            return ()
        self.released += 1
        self.held = None
        self._slots.clear()
        return () if name is None else (name,)

    async def aclose(self) -> None:
        """Nothing to close."""

    async def _enter(self) -> None:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.latency_s:
                await self.clock.sleep(self.latency_s)
            else:
                await asyncio.sleep(0)
        except BaseException:
            self.in_flight -= 1
            raise

    def reply_to(self, request: ChatRequest) -> Reply:
        prompt = count_tokens(request.messages)
        _refuse_overflow(prompt, request.load)
        text = self.answer(request)
        # The answer's share of the next prompt, without the frame of a message.
        tokens = count_tokens([Message("assistant", text)])
        cut = tokens > request.num_predict
        rendered = render(request.messages)
        slot = self._slots.setdefault(request.slot or 0, _Slot())
        cached = self._reused(slot, rendered, lambda size: _tokens_before(request.messages, size), prompt)
        answered = min(tokens, request.num_predict)
        self._keep(slot, rendered, f"{rendered}{text}</assistant>", prompt + answered, cached)
        finish = "length" if cut else "stop"
        return self._counted(text, finish, prompt, cached[0], answered, logprobs=request.logprobs)

    def _reused(self, slot: _Slot, text: str, tokens_of: Callable[[int], int], total: int) -> tuple[int, int]:
        """Return the tokens reused from the slot's cache and the character at which they end."""
        shared = _common(slot.text, text) if self.caches else 0
        if self.sliding is not None and slot.tokens - tokens_of(shared) > self.sliding:
            shared = max((end for end in slot.ends if end <= shared), default=0)
        return min(tokens_of(shared), max(0, total - 1)), shared

    @staticmethod
    def _keep(slot: _Slot, prompt: str, text: str, tokens: int, cached: tuple[int, int]) -> None:
        slot.ends = [end for end in slot.ends if end <= cached[1]] + [len(prompt)]
        slot.text = text
        slot.tokens = tokens

    def _counted(
        self, text: str, finish: str, prompt: int, cached: int, answered: int, *, logprobs: bool = False
    ) -> Reply:
        return Reply(
            text=text,
            finish="length" if finish == "length" else "stop",
            prompt_tokens=prompt if self.counts else None,
            cached_tokens=cached if self.caches else None,
            completion_tokens=answered if self.counts else None,
            logprob=-hashlib.sha256(text.encode()).digest()[0] / 256 if logprobs else None,
        )


def _refuse_overflow(prompt: int, spec: LoadSpec) -> None:
    if prompt >= spec.num_ctx:
        raise ContextOverflow(
            f"request ({prompt} tokens) exceeds the context size ({spec.num_ctx} tokens)",
            status=400,
            prompt_tokens=prompt,
            num_ctx=spec.num_ctx,
        )


def _tokens_before(messages: Sequence[Message], size: int) -> int:
    """Return the whole tokens in the first `size` characters of the rendered messages."""
    total = 0
    for message in messages:
        head, foot = len(f"<{message.role}>"), len(f"</{message.role}>")
        if size < head + len(message.content) + foot:
            if size < head:
                return total
            return total + FRAME - 1 + len(message.content[: size - head].encode()) // 4
        total += count_tokens([message])
        size -= head + len(message.content) + foot
    return total


_TURN = re.compile(r"<(\w+)>(.*?)</\1>(?=<\w+>|\Z)", re.DOTALL)
_CUT_TURN = re.compile(r"<\w+>(.*)\Z", re.DOTALL)


def _tokens_of_text(text: str) -> int:
    """Count the tokens of a rendered text that may stop anywhere; an opened answer counts
    nothing, as in a chat.
    """
    total = place = 0
    while match := _TURN.match(text, place):
        total += count_tokens([Message(match[1], match[2])])
        place = match.end()
    rest = text[place:]
    if rest == "<assistant>" or not (match := _CUT_TURN.match(rest)):
        return total
    return total + FRAME - 1 + len(match[1].encode()) // 4


def _common(one: str, other: str) -> int:
    """Return the length of the common beginning of two texts."""
    if other.startswith(one):
        return len(one)
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
