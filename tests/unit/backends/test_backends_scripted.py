"""The scripted backend's prefix cache, times and states, on which the engine's tests rely."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from spoolama.backends.base import ChatRequest, LoadSpec, Message, Reply
from spoolama.clock import SystemClock
from spoolama.errors import ContextOverflow, ServerAway
from support.backend import ScriptedBackend, count_tokens, render

T = TypeVar("T")
SPEC = LoadSpec("m", 4096, slots=2)
RUBRIC = Message("system", "r" * 400)  # 104 tokens


def run(scenario: Callable[[ScriptedBackend], Awaitable[T]], **fields: Any) -> T:
    """Run a scenario with a loaded backend."""

    async def inside() -> T:
        backend = ScriptedBackend(SystemClock(), **{"latency_s": 0.0, "caches": True, **fields})
        await backend.load(SPEC)
        return await scenario(backend)

    return asyncio.run(inside())


def ask(*texts: str, slot: int | None = 0, **more: Any) -> ChatRequest:
    """Send the rubric and then alternating user and assistant turns."""
    turns = tuple(Message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts))
    return ChatRequest(SPEC, (RUBRIC, *turns), 32, slot=slot, **more)


async def cached(backend: ScriptedBackend, *requests: ChatRequest) -> list[int | None]:
    """Return the cached tokens of consecutive requests."""
    return [(await backend.chat(request)).cached_tokens for request in requests]


def test_each_slot_has_a_cache_of_its_own() -> None:
    """A slot reuses whole messages and the beginning of the next, and always evaluates one token."""

    async def scenario(backend: ScriptedBackend) -> list[int | None]:
        backend.answer = lambda _: "same"
        return await cached(
            backend,
            ask("aaaabbbb"),
            ask("aaaacccc"),
            ask("aaaacccc"),
            ask("aaaacccc", "same", "next"),
            ask("aaaacccc", slot=1),
            ask("zzzz", slot=None),
        )

    row = 4 + 2
    assert run(scenario) == [0, 104 + 3 + 1, 104 + row - 1, 104 + row + 5 + 0, 0, 104 + 3]


def test_a_load_of_something_else_empties_the_cache() -> None:
    """Another load empties the cache, and the same load does not."""

    async def scenario(backend: ScriptedBackend) -> list[int | None]:
        found = await cached(backend, ask("a"))
        for spec in (SPEC, replace(SPEC, num_ctx=2048)):
            await backend.load(spec)
            found += await cached(backend, ask("a"))
        await backend.release()
        await backend.load(spec)
        return found + await cached(backend, ask("a"))

    assert run(scenario) == [0, 108, 0, 0]


@pytest.mark.parametrize("begin", ["Review: ", "kůň ", ""])
def test_a_sliding_window_keeps_only_a_primed_prefix(begin: str) -> None:
    """Long rows reuse nothing until their shared part was primed alone, and then reuse all of it."""

    async def scenario(backend: ScriptedBackend) -> tuple[list[int | None], Reply | None, list[int | None]]:
        rows = [ask(begin + letter * 800) for letter in "abc"]
        before = await cached(backend, *rows)
        common = render(rows[0].messages).split("aaa")[0]
        primed = await backend.prime(SPEC, common, slot=0)
        return before, primed, await cached(backend, *rows, rows[0])

    before, primed, after = run(scenario, sliding=64)

    shared = 104 + 3 + len(begin.encode()) // 4
    assert before == [0, 0, 0]
    assert primed is not None
    assert (primed.prompt_tokens, primed.cached_tokens, primed.completion_tokens) == (shared, 0, 1)
    assert after == [shared] * 4


def test_of_several_places_the_last_one_counts() -> None:
    """Rows use the longer of two primes if they share it, and the shorter one otherwise."""

    async def scenario(backend: ScriptedBackend) -> list[int | None]:
        for text in ("<user>", "<user>" + "Review: " * 100):
            await backend.prime(SPEC, render([RUBRIC]).removesuffix("<assistant>") + text, slot=0)
        rows = [ask("Review: " * 100 + "a" * 800), ask("Review: " * 100 + "b" * 800), ask("c" * 800)]
        return await cached(backend, *rows)

    assert run(scenario, sliding=64) == [104 + 3 + 200, 104 + 3 + 200, 104 + 3]


def test_a_sliding_window_keeps_what_ends_near() -> None:
    """An appended turn and a branch inside the window are reused, as with plain attention."""

    async def scenario(backend: ScriptedBackend) -> list[int | None]:
        backend.answer = lambda _: "same"
        return await cached(backend, ask("a" * 800), ask("a" * 800, "same", "b"), ask("a" * 800, "same", "c"))

    whole = 104 + 204 + 5
    assert run(scenario, sliding=64) == [0, whole, whole + 3]


def test_a_prime_is_recorded_and_may_fail() -> None:
    """A prime is recorded with text and slot, also if it is refused; without a route nothing happens."""

    async def scenario(backend: ScriptedBackend) -> list[tuple[str, int | None]]:
        await backend.prime(SPEC, render([RUBRIC]), slot=1)
        with pytest.raises(ContextOverflow) as caught:
            await backend.prime(SPEC, "<user>" + "x" * 40_000)
        assert caught.value.prompt_tokens == 10_003
        backend.can_prime = False
        assert await backend.prime(SPEC, "never") is None
        backend.can_prime, backend.prime_fault = True, failing
        with pytest.raises(ServerAway):
            await backend.prime(SPEC, "last")
        assert backend.in_flight == 0
        return [(text[-8:], slot) for text, slot in backend.primes]

    def failing(text: str, slot: int | None) -> None:
        raise ServerAway(f"{text} {slot}")

    assert run(scenario) == [("sistant>", 1), ("xxxxxxxx", None), ("last", None)]


def test_a_whole_rendering_primes_its_row() -> None:
    """A whole rendering has the tokens of its chat, which then evaluates one."""

    async def scenario(backend: ScriptedBackend) -> tuple[Any, ...]:
        text = await backend.render(SPEC, ask("Fine.").messages)
        assert text is not None
        primed = await backend.prime(SPEC, text)
        reply = await backend.chat(ask("Fine."))
        assert primed is not None
        return primed.prompt_tokens, reply.prompt_tokens, reply.cached_tokens

    tokens = count_tokens(ask("Fine.").messages)
    assert run(scenario) == (tokens, tokens, tokens - 1)


def test_the_loaded_model_can_be_inspected_and_replaced() -> None:
    """The loaded model is that of the load, until a release or a test replaces it."""

    async def scenario(backend: ScriptedBackend) -> None:
        loaded = await backend.load(SPEC)
        assert (loaded.sliding_window, loaded.trained_ctx) == (512, 8192)
        assert await backend.inspect(SPEC) == loaded
        backend.held = replace(loaded, num_ctx=2048)
        assert await backend.inspect(SPEC) == replace(loaded, num_ctx=2048)
        assert await backend.inspect(replace(SPEC, model="other")) is None
        await backend.release()
        assert await backend.inspect(SPEC) is None
        backend.inspect_fault = lambda _: (_ for _ in ()).throw(ServerAway("gone"))
        with pytest.raises(ServerAway):
            await backend.inspect(SPEC)
        assert backend.inspected == 5

    run(scenario, sliding=512, trained_ctx=8192)


def test_a_backend_without_a_cache_gives_no_count() -> None:
    """Without a cache the backend gives no cached count."""

    async def scenario(backend: ScriptedBackend) -> list[Any]:
        replies = [await backend.chat(ask("a")), await backend.chat(ask("a"))]
        return [(reply.cached_tokens, reply.logprob) for reply in replies]

    assert run(scenario, caches=False) == [(None, None)] * 2


def test_probabilities_depend_on_the_answer_alone() -> None:
    """Probabilities are given where asked, from -1 to 0."""

    async def scenario(backend: ScriptedBackend) -> list[float | None]:
        backend.answer = lambda request: request.messages[-1].content
        asked = [ask("a", logprobs=True), ask("b", logprobs=True), ask("a", slot=1, logprobs=True), ask("a")]
        return [(await backend.chat(request)).logprob for request in asked]

    one, other, again, unasked = run(scenario)

    assert one is not None
    assert other is not None
    assert -1 <= one <= 0
    assert one != other
    assert again == one
    assert unasked is None
