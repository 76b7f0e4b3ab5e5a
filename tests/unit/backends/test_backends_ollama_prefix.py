"""Ollama beside its chats: rendering, priming, inspection of loaded models, and probabilities of answers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import httpx
import pytest

from spoolama.backends.base import ChatRequest, LoadSpec, Message
from spoolama.backends.ollama import OllamaBackend
from spoolama.backends.replies import mean_logprob
from spoolama.clock import SystemClock
from spoolama.errors import AnswerUnfinished, ContextOverflow, RequestRefused, UnexpectedReply
from support.fake_ollama import GEMMA3, SMOLLM2, FakeModel, FakeOllama, Script
from wire.cases import case

T = TypeVar("T")
SPEC = LoadSpec("smollm2:135m", 2048, {"num_batch": 256})
ROW = (Message("system", "Judge."), Message("user", "Fine — 良い."))
RENDERED = (
    "<|im_start|>system\nJudge.<|im_end|>\n<|im_start|>user\nFine — 良い.<|im_end|>\n<|im_start|>assistant\n"
)
THINKER = FakeModel("qwen3:8b", capabilities=("completion", "thinking"))


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


def client(**answers: Any) -> tuple[OllamaBackend, list[tuple[str, Any]]]:
    """A client of a server with these bodies (by path, `_` for `/`), and the requests that it received."""
    known: dict[str, Any] = {
        "/api/version": {"version": "0.33.3"},
        "/api/show": case("show").json,
        **{key.replace("_", "/"): value for key, value in answers.items()},
    }
    asked: list[tuple[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, json.loads(request.content) if request.content else None))
        return httpx.Response(200, json=known[request.url.path])

    backend = OllamaBackend("http://ollama", transport=httpx.MockTransport(answer), clock=SystemClock())
    return backend, asked


def test_a_prompt_is_rendered_with_the_load_of_the_job() -> None:
    """The request has every load option and `keep_alive`, so that it causes no reload and no answer."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> str | None:
        await backend.load(SPEC)
        rendered = await backend.render(SPEC, ROW)
        await backend.chat(ChatRequest(SPEC, ROW, 8))
        _, asked, chat = server.calls
        assert asked.body == {
            "model": "smollm2:135m",
            "messages": [message.wire() for message in ROW],
            "stream": False,
            "truncate": False,
            "keep_alive": -1,
            "options": {"num_ctx": 2048, "num_batch": 256, "num_predict": 1},
            "_debug_render_only": True,
        }
        assert asked.answer is None
        assert (chat.path, chat.number, server.chats) == ("/api/chat", 1, [chat])
        assert server.loads == [("smollm2:135m", 2048)]
        return rendered

    assert run(None, scenario) == RENDERED


def test_the_recorded_rendering_is_understood() -> None:
    """The recorded reply of a real server gives the rendered text."""
    for name in ("chat_render_only", "gemma_render_only"):
        backend, _ = client(_api_chat=case(name).json)

        rendered = asyncio.run(backend.render(SPEC, ROW))

        assert rendered == case(name).json["_debug_info"]["rendered_template"]


def test_a_server_that_cannot_render_is_asked_once() -> None:
    """A server that answers instead of rendering gets at most one token and is not asked again until its
    version changes.
    """

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> list[int]:
        await backend.load(SPEC)
        asked = []
        for version in ("0.33.3", "0.33.3", "0.34.0", "0.33.3", "0.34.0"):
            server.script.version = version
            await backend.probe()
            assert await backend.render(SPEC, ROW) is None
            asked.append(len(server.chats))
        assert {call.body["options"]["num_predict"] for call in server.chats} == {1}
        server.script.render_only = True
        server.script.version = "0.35.0"
        await backend.probe()
        assert await backend.render(SPEC, ROW) == RENDERED
        return asked

    assert run(Script(render_only=False), scenario) == [1, 1, 2, 2, 2]


def test_a_prefix_is_primed_raw_and_cached() -> None:
    """Priming is one raw request of one token with the job's load, and the next row evaluates
    only its own part.
    """

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> None:
        await backend.load(SPEC)
        system = "<|im_start|>system\nJudge.<|im_end|>\n"
        primed = await backend.prime(SPEC, system, slot=3)
        reply = await backend.chat(ChatRequest(SPEC, ROW, 8))
        assert server.calls[1].path == "/api/generate"
        assert server.calls[1].body == {
            "model": "smollm2:135m",
            "prompt": system,
            "raw": True,
            "stream": False,
            "truncate": False,
            "keep_alive": -1,
            "options": {"num_ctx": 2048, "num_batch": 256, "num_predict": 1},
        }
        assert server.loads == [("smollm2:135m", 2048)]
        assert primed is not None
        assert (primed.prompt_tokens, primed.completion_tokens, primed.finish) == (6, 1, "length")
        assert reply.cached_tokens == 6

    run(None, scenario)


def test_an_empty_prompt_is_not_primed() -> None:
    """An empty prompt, which would mean a load, is not sent."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> int:
        assert await backend.prime(SPEC, "") is None
        return len(server.calls)

    assert run(None, scenario) == 0


def test_a_prefix_that_does_not_fit_is_not_primed() -> None:
    """A prefix that does not fit is refused and not cut."""

    async def scenario(_: FakeOllama, backend: OllamaBackend) -> ContextOverflow:
        with pytest.raises(ContextOverflow) as caught:
            await backend.prime(SPEC, "<|im_start|>user\n" + "x" * 9000)
        return caught.value

    refused = run(None, scenario)

    assert (refused.prompt_tokens, refused.num_ctx) == (2253, 2048)


@pytest.mark.parametrize(("model", "sent"), [(SMOLLM2, "absent"), (THINKER, False)])
def test_rendering_and_priming_do_not_think(model: FakeModel, sent: Any) -> None:
    """A thinking model gets `think: false`, so that the rendered prompts are those of the chats."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> set[Any]:
        spec = LoadSpec(model.name, 2048)
        await backend.load(spec)
        await backend.render(spec, ROW)
        await backend.prime(spec, "Judge.")
        return {call.body.get("think", "absent") for call in server.calls[1:]}

    assert run(Script(models=[model]), scenario) == {sent}


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ({**case("generate_raw").json, "done": False}, AnswerUnfinished),
        ({**case("generate_raw").json, "done_reason": "load"}, AnswerUnfinished),
        ({**case("generate_raw").json, "response": None}, UnexpectedReply),
        ({**case("generate_raw").json, "remote_host": "https://remote.invalid"}, RequestRefused),
    ],
)
def test_an_unfinished_prime_counts_as_failed(body: Any, failure: type[Exception]) -> None:
    """An unfinished prime counts as failed, as with a chat."""
    backend, _ = client(_api_generate=body)

    with pytest.raises(failure):
        asyncio.run(backend.prime(SPEC, "Judge."))


@pytest.mark.parametrize(("version", "tokens"), [("0.0.0", 6), ("0.30.0", None), ("0.30.1", 6)])
def test_the_recorded_raw_reply_is_understood(version: str, tokens: int | None) -> None:
    """The recorded counts are read, except for the version that counts only evaluated tokens."""
    backend, _ = client(_api_generate=case("generate_raw").json, _api_version={"version": version})

    reply = asyncio.run(backend.prime(SPEC, "<|im_start|>user\nhi<|im_end|>\n"))

    assert reply is not None
    assert (reply.text, reply.finish) == ("", "length")
    assert (reply.prompt_tokens, reply.completion_tokens) == (tokens, 1)
    assert reply.cached_tokens is None
    assert reply.prompt_s == 0.018453


def test_inspection_loads_nothing() -> None:
    """A model that is not loaded gives None, and a loaded one its present window."""

    async def scenario(server: FakeOllama, backend: OllamaBackend) -> None:
        assert await backend.inspect(SPEC) is None
        loaded = await backend.load(SPEC)
        assert await backend.inspect(SPEC) == replace(loaded, load_s=None)
        server.reload(SPEC.model, 512)
        other = await backend.inspect(SPEC)
        assert other is not None
        assert other.num_ctx == 512
        server.evict(SPEC.model)
        assert await backend.inspect(SPEC) is None
        assert server.loads == [("smollm2:135m", 2048), ("smollm2:135m", 512)]

    run(None, scenario)


@pytest.mark.parametrize(
    ("model", "sliding", "trained"), [(SMOLLM2, None, 8192), (GEMMA3, 512, 32768)], ids=["plain", "sliding"]
)
def test_windows_of_a_model_are_reported(model: FakeModel, sliding: int | None, trained: int) -> None:
    """A load and an inspection both give the attention window and the longest window."""

    async def scenario(_: FakeOllama, backend: OllamaBackend) -> None:
        spec = LoadSpec(model.name, 2048)
        for found in (await backend.load(spec), await backend.inspect(spec)):
            assert found is not None
            assert (found.sliding_window, found.trained_ctx) == (sliding, trained)

    run(None, scenario)


def test_how_probable_the_recorded_answer_was() -> None:
    """The probability of a recorded answer is the mean over its tokens."""
    backend, asked = client(_api_chat=case("chat_logprobs").json)

    reply = asyncio.run(backend.chat(ChatRequest(SPEC, ROW, 2, logprobs=True)))

    values = [entry["logprob"] for entry in case("chat_logprobs").json["logprobs"]]
    assert len(values) == 2
    assert reply.logprob == pytest.approx(sum(values) / 2)
    assert asked[-1][1]["logprobs"] is True


def test_a_server_without_probabilities_gives_none() -> None:
    """Ollama ignores an unknown field, so the answer counts without a probability."""
    backend, _ = client(_api_chat=case("chat_ok_warm").json)

    assert asyncio.run(backend.chat(ChatRequest(SPEC, ROW, 2, logprobs=True))).logprob is None


@pytest.mark.parametrize(
    ("entries", "mean"),
    [
        ([{"logprob": -1.0}, {"logprob": -2.0}], -1.5),
        ([{"logprob": 0}], 0.0),
        ([{"logprob": 1e-7}], 0.0),  # float arithmetic
        ([{"logprob": 0.5}], None),
        ([{"logprob": -math.inf}], None),
        ([{"logprob": math.nan}], None),
        ([{"logprob": True}], None),
        ([{"logprob": -1.0}, {"token": "x"}], None),
        ([{"logprob": -1.0}, None], None),
        ([], None),
        ({}, None),
        (None, None),
    ],
)
def test_the_mean_is_measured_or_absent(entries: Any, mean: float | None) -> None:
    """One value that is no log probability makes the result None."""
    assert mean_logprob(entries) == mean
