"""The fake's rules for raw prompts, primed prefixes and other clients."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Literal, TypeVar

import httpx
import pytest

from spoolama.backends.base import ChatRequest, LoadSpec, Message
from spoolama.backends.ollama import OllamaBackend
from spoolama.clock import SystemClock
from support.fake_ollama import GEMMA3, SMOLLM2, FakeModel, FakeOllama, Fault, Script
from support.fake_ollama_engine import Prompt
from support.fake_ollama_template import parse_raw, render

T = TypeVar("T")
Template = Literal["chatml", "gemma"]
RUBRIC = Message("system", "r" * 400)
WINDOWED = replace(SMOLLM2, window=64)
NARROW_GEMMA = replace(GEMMA3, window=64)


def run(script: Script | None, scenario: Callable[[FakeOllama, OllamaBackend], Awaitable[T]]) -> T:
    """Run a scenario with a fake and its client."""

    async def inside() -> T:
        async with FakeOllama(script) as server:
            backend = OllamaBackend(server.url, clock=SystemClock())
            try:
                return await scenario(server, backend)
            finally:
                await backend.aclose()

    return asyncio.run(inside())


@pytest.mark.parametrize("template", ["chatml", "gemma"])
@pytest.mark.parametrize(
    ("segments", "opened"),
    [
        ((("system", "Judge."), ("user", "Review: x")), True),
        ((("system", "Judge."), ("user", "Two\n\nlines"), ("assistant", "a"), ("user", "b")), True),
        ((("user", "a"), ("assistant", "b"), ("user", "c")), True),
    ],
)
def test_a_rendered_prompt_is_read_back(
    template: Template, segments: tuple[tuple[str, str], ...], opened: bool
) -> None:
    """A rendered prompt is parsed back to its messages, with the opened answer."""
    assert parse_raw(render(segments, template), template) == Prompt(segments, opened)


CHATML = "<|im_start|>system\nJudge.<|im_end|>\n"
GEMMA = "<start_of_turn>user\nJudge.<end_of_turn>\n"


@pytest.mark.parametrize(
    ("template", "text", "prompt"),
    [
        ("chatml", CHATML, Prompt((("system", "Judge."),), False)),
        (
            "chatml",
            f"{CHATML}<|im_start|>user\nReview: ",
            Prompt((("system", "Judge."), ("user", "Review: ")), False, cut=True),
        ),
        (
            "chatml",
            f"{CHATML}<|im_start|>user\n",
            Prompt((("system", "Judge."), ("user", "")), False, cut=True),
        ),
        ("chatml", "<|im_start|>system\nJud", Prompt((("system", "Jud"),), False, cut=True)),
        ("chatml", f"{CHATML}<|im_st", Prompt((("system", "Judge."), ("raw", "<|im_st")), False)),
        ("chatml", "no template", Prompt((("raw", "no template"),), False)),
        ("gemma", GEMMA, Prompt((("system", "Judge."),), False)),
        (
            "gemma",
            f"{GEMMA}<start_of_turn>user\nReview: ",
            Prompt((("system", "Judge."), ("user", "Review: ")), False, cut=True),
        ),
        ("gemma", "<start_of_turn>user\nReview: ", Prompt((("user", "Review: "),), False, cut=True)),
        (
            "gemma",
            "<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb",
            Prompt((("user", "a"), ("assistant", "b")), False, cut=True),
        ),
    ],
)
def test_a_prompt_that_stops_anywhere_is_read(template: Template, text: str, prompt: Prompt) -> None:
    """A prompt that stops anywhere is parsed to its whole turns and the unfinished one."""
    assert parse_raw(text, template) == prompt


@pytest.mark.parametrize("model", [WINDOWED, NARROW_GEMMA], ids=["chatml", "gemma"])
@pytest.mark.parametrize(
    "row", ["Review: ", "Rezension žluťoučká, číslo ", ""], ids=["ascii", "wide", "none"]
)
def test_a_prefix_primed_inside_a_message_is_kept_by_every_row(model: FakeModel, row: str) -> None:
    """With a sliding window rows reuse nothing, and after a prime of their shared part they
    reuse all of it.
    """
    spec = LoadSpec(model.name, 4096)

    def asked(letter: str) -> ChatRequest:
        return ChatRequest(spec, (RUBRIC, Message("user", row + letter * 800)), 8)

    async def scenario(_: FakeOllama, backend: OllamaBackend) -> tuple[list[Any], Any, list[Any]]:
        before = [(await backend.chat(asked(letter))).cached_tokens for letter in "abc"]
        one, other = [await backend.render(spec, asked(letter).messages) for letter in "xy"]
        assert one is not None
        assert other is not None
        common = one[: one.index("xxx")]
        assert other.startswith(common)
        primed = await backend.prime(spec, common)
        after = [(await backend.chat(asked(letter))).cached_tokens for letter in "abca"]
        return before, primed, after

    before, primed, after = run(Script(models=[model]), scenario)

    shared = 104 + 3 + len(row.encode()) // 4
    assert before == [0, 0, 0]
    assert (primed.prompt_tokens, primed.cached_tokens, primed.completion_tokens) == (shared, 0, 1)
    assert after == [shared] * 4


def test_a_prime_of_a_cached_prefix_evaluates_one_token() -> None:
    """Priming twice evaluates one token, and a row that ends where the prime does reuses all they share."""

    async def scenario(_: FakeOllama, backend: OllamaBackend) -> list[Any]:
        spec = LoadSpec(WINDOWED.name, 4096)
        text = render([("system", "r" * 400)], "chatml").removesuffix("<|im_start|>assistant\n")
        cut = f"{text}<|im_start|>user\nReview"
        replies = [await backend.prime(spec, cut), await backend.prime(spec, cut)]
        row = await backend.chat(ChatRequest(spec, (RUBRIC, Message("user", "Review")), 8))
        return [reply.cached_tokens for reply in (*replies, row) if reply is not None]

    assert run(Script(models=[WINDOWED]), scenario) == [0, 104 + 3 + 1 - 1, 104 + 3 + 1]


def test_a_reload_by_another_client_is_visible() -> None:
    """After a reload by another client the next request reports its load, has its window, and
    finds no cache.
    """

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> list[Any]:
        spec = LoadSpec("smollm2:135m", 2048)
        request = ChatRequest(spec, (RUBRIC, Message("user", "x")), 8)
        await backend.load(spec)
        replies = [await backend.chat(request) for _ in range(2)]
        server.reload("smollm2:135m", 512)
        replies += [await backend.chat(request) for _ in range(2)]
        assert server.loads == [("smollm2:135m", 2048), ("smollm2:135m", 512), ("smollm2:135m", 2048)]
        return [(reply.load_s, reply.cached_tokens) for reply in replies]

    assert run(None, scenario) == [(0.001, 0), (0.001, 111), (2.0, 0), (0.001, 111)]


def test_calls_in_flight_survive_a_reload_by_another_client() -> None:
    """Calls in flight finish normally during a reload by another client."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> Any:
        spec = LoadSpec("smollm2:135m", 2048)
        server.script.answer = lambda _: server.reload("smollm2:135m", 512) or "fine"  # type: ignore[func-returns-value]
        return (await backend.chat(ChatRequest(spec, (Message("user", "x"),), 8))).text

    assert run(None, scenario) == "fine"


@pytest.mark.parametrize(("share", "expected"), [(None, 1000), (0.0, 0), (0.6, 0.6), (1.0, 1.0)])
def test_the_share_on_the_gpu_is_scripted(share: float | None, expected: float) -> None:
    """`size_vram` of `/api/ps` is scripted by the model or by a share of its size."""

    async def scenario(_: FakeOllama, backend: OllamaBackend) -> tuple[int | None, int | None]:
        loaded = await backend.load(LoadSpec("smollm2:135m", 2048))
        return loaded.size_bytes, loaded.vram_bytes

    size, vram = run(Script(models=[replace(SMOLLM2, vram_bytes=1000)], vram_share=share), scenario)

    assert size is not None
    assert vram == (expected if share is None else round(size * expected))


def test_a_rendering_is_no_chat() -> None:
    """A rendering has its own numbers and no faults, so that faults hit the intended rows."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> list[str | None]:
        spec = LoadSpec("smollm2:135m", 2048)
        messages = (RUBRIC, Message("user", "x"))
        assert await backend.render(spec, messages) is not None
        assert server.loads == [("smollm2:135m", 2048)]  # the real server also loads the model for it
        await backend.chat(ChatRequest(spec, messages, 8))
        assert await backend.render(spec, messages) is not None
        await backend.chat(ChatRequest(spec, messages, 8))
        assert [call.number for call in server.chats] == [1, 2]
        return [call.outcome for call in server.calls]

    faults = [Fault("text", calls=[1], body="no"), Fault("empty", calls=[2])]

    assert run(Script(faults=faults), scenario) == ["ok", "text", "ok", "empty"]


@pytest.mark.parametrize(("num_predict", "count"), [(8, 2), (1, 1)])
def test_probabilities_are_given_for_each_token(num_predict: int, count: int) -> None:
    """If asked, each token of the text has one entry with its bytes, the same each time."""
    body = {
        "model": "smollm2:135m",
        "messages": [{"role": "user", "content": "x"}],
        "stream": False,
        "options": {"num_ctx": 2048, "num_predict": num_predict},
    }

    async def scenario(server: FakeOllama, _: OllamaBackend) -> list[Any]:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
            return [
                (await http.post("/api/chat", json=sent)).json()
                for sent in ({**body, "logprobs": True}, {**body, "logprobs": True}, body)
            ]

    first, second, unasked = run(Script(labels=["neutral"]), scenario)

    assert "logprobs" not in unasked
    assert first["logprobs"] == second["logprobs"]
    assert len(first["logprobs"]) == count
    joined = b"".join(bytes(entry["bytes"]) for entry in first["logprobs"])
    assert joined.decode() == first["message"]["content"]
    assert all(-1 <= entry["logprob"] <= 0 for entry in first["logprobs"])
