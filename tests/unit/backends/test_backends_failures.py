"""Failures between client and server, and their classes."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import httpx
import pytest

from spoolama.backends.base import ChatRequest, LoadSpec, Message, Reply
from spoolama.backends.ollama import OllamaBackend
from spoolama.backends.openai import OpenAIBackend
from spoolama.clock import SystemClock
from spoolama.errors import (
    AnswerUnfinished,
    BackendError,
    ContextOverflow,
    OutOfMemory,
    RequestRefused,
    ServerAway,
    ServerBusy,
    ServerDied,
    Stalled,
    UnexpectedReply,
)
from support.fake_ollama import FakeOllama, Fault, Script

SPEC = LoadSpec("smollm2:135m", 4096)
ASK = ChatRequest(SPEC, (Message("user", "The battery died after two days."),), 32, timeout_s=0.3)

# Each line of the failure table that a server can cause, over a real connection.
WIRE: list[tuple[Fault, type[BackendError]]] = [
    (Fault("reset"), ServerAway),
    (Fault("reset_body"), ServerAway),
    (Fault("garbage"), ServerAway),
    (Fault("cut_body"), UnexpectedReply),
    (Fault("not_json"), UnexpectedReply),
    (Fault("not_json", body="[]"), UnexpectedReply),
    (Fault("text", body="half a pair: \ud800"), UnexpectedReply),
    (Fault("hang"), Stalled),
    (Fault("drip", delay_s=0.01), Stalled),
    (Fault("not_done"), AnswerUnfinished),
    (Fault("no_reason"), AnswerUnfinished),
    (Fault("runner_killed"), ServerDied),
    (Fault("out_of_memory"), OutOfMemory),
    (Fault("busy"), ServerBusy),
    (Fault("cloud"), RequestRefused),
    (Fault("missing"), RequestRefused),
    (Fault("remote"), RequestRefused),
    (Fault("http", status=500, body="something new"), UnexpectedReply),
]


async def _chat(server: FakeOllama, request: ChatRequest = ASK) -> Reply:
    backend = OllamaBackend(server.url, clock=SystemClock())
    try:
        await backend.load(request.load)
        return await backend.chat(request)
    finally:
        await backend.aclose()


@pytest.mark.parametrize(("fault", "failure"), WIRE, ids=lambda value: getattr(value, "kind", None))
def test_wire_fault(fault: Fault, failure: type[BackendError]) -> None:
    """Each fault has its own failure class, the slot is freed, and the next request is answered."""

    async def scenario() -> tuple[BaseException, Reply, int]:
        hit = Fault(fault.kind, calls=[1], body=fault.body, status=fault.status, delay_s=fault.delay_s)
        async with FakeOllama(Script(faults=[hit])) as server:
            with pytest.raises(BackendError) as caught:
                await _chat(server)
            return caught.value, await _chat(server), server.in_flight

    error, reply, in_flight = asyncio.run(scenario())

    assert type(error) is failure
    assert reply.finish == "stop"
    assert in_flight == 0


@pytest.mark.parametrize(("kind", "text"), [("empty", ""), ("text", "¡no!"), ("silent_cut", None)])
def test_unusable_answers_are_returned_with_their_counters(kind: Any, text: str | None) -> None:
    """An empty, odd or silently cut answer is returned with its counters, for the engine to judge."""

    async def scenario() -> Reply:
        async with FakeOllama(Script(faults=[Fault(kind, body="¡no!")])) as server:
            return await _chat(server, ChatRequest(SPEC, (Message("user", "x" * 12000),), 32))

    reply = asyncio.run(scenario())

    assert reply.finish == "stop"
    if text is not None:
        assert reply.text == text
        assert reply.prompt_tokens == 3007
    else:
        assert reply.prompt_tokens == 4096 // 2 + 2


def test_an_unreachable_server_is_away() -> None:
    """For a closed port and an unknown host every request fails with `ServerAway`."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"

        async def scenario(address: str) -> None:
            backend = OllamaBackend(address, clock=SystemClock())
            for attempt in (backend.probe(), backend.load(SPEC), backend.chat(ASK)):
                with pytest.raises(ServerAway):
                    await attempt
            await backend.aclose()

        asyncio.run(scenario(url))
        asyncio.run(scenario("http://no-such-host.invalid:11434"))


def test_the_server_comes_back() -> None:
    """A restarted server is used again without a new client."""

    async def scenario() -> Reply:
        async with FakeOllama() as server:
            backend = OllamaBackend(server.url, clock=SystemClock())
            await backend.load(SPEC)
            await server.stop()
            with pytest.raises(ServerAway):
                await backend.chat(ASK)
            await server.start()
            reply = await backend.chat(ASK)
            await backend.aclose()
            return reply

    assert asyncio.run(scenario()).load_s == 2.0  # the model had to be loaded again, which the reply shows


NESTED = json.dumps(
    {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, separators=(",", ":")
)
MLX = "input length (9000 tokens) exceeds the model's maximum context length (8192 tokens)"
DIED_024 = "llama runner process has terminated: exit status 2"
OLLAMA_TEXTS: list[tuple[int, str, type[BackendError]]] = [
    (400, "missing request body", RequestRefused),
    (400, "model is required", RequestRefused),
    (400, "registry.ollama.ai/library/x does not support chat", RequestRefused),
    (400, "the input length exceeds the context length", ContextOverflow),
    (
        400,
        "the prompt is longer than the context length currently available to the model",
        ContextOverflow,
    ),
    (500, MLX, ContextOverflow),
    (500, 'option "num_ctx" must be of type integer', RequestRefused),
    (500, 'invalid format: "xml"; expected "json" or a valid JSON Schema object', RequestRefused),
    (503, "server busy, please try again.  maximum pending requests exceeded", ServerBusy),
    (499, "request canceled", ServerBusy),
    (500, NESTED, ServerBusy),
    (
        500,
        "llama-server process has terminated: exit status 1: cudaMalloc failed: out of memory",
        OutOfMemory,
    ),
    (500, "llama-server reported out-of-memory during startup: ggml_backend_cuda_buffer", OutOfMemory),
    (500, "model requires more system memory (9.0 GiB) than is available (4.0 GiB)", OutOfMemory),
    (500, "error starting llama-server: exec format error", ServerDied),
    (500, "timed out waiting for llama-server to start - progress 0.00", ServerDied),
    (500, "model runner has unexpectedly stopped, this may be due to resource limitations", ServerDied),
    (500, "an error was encountered while running the model: unexpected EOF", ServerDied),
    (500, DIED_024, ServerDied),
    (500, "llama runner process no longer running: -1", ServerDied),
    (403, "ollama cloud is disabled: remote model is unavailable", RequestRefused),
    (200, "an error was encountered while running the model: unexpected EOF", ServerDied),
    (200, "what is this", UnexpectedReply),
    (418, "teapot", UnexpectedReply),
]


@pytest.mark.parametrize(("status", "text", "failure"), OLLAMA_TEXTS)
def test_ollama_text(status: int, text: str, failure: type[BackendError]) -> None:
    """Every documented status and error text of Ollama, old and new, has its failure class."""
    good = {
        "/api/version": {"version": "0.33.3"},
        "/api/show": {"capabilities": ["completion"], "model_info": {}},
    }

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path in good:
            return httpx.Response(200, json=good[request.url.path])
        return httpx.Response(status, json={"error": text})

    backend = OllamaBackend("http://ollama", transport=httpx.MockTransport(answer), clock=SystemClock())
    with pytest.raises(BackendError) as caught:
        asyncio.run(backend.chat(ASK))

    assert type(caught.value) is failure
    assert caught.value.status == status


VLLM = (
    "This model's maximum context length is 4096 tokens. However, you requested 4300 tokens "
    "(4200 in the messages, 100 in the completion). Please reduce the length of the messages or completion."
)
VLLM_NEW = (
    "'max_tokens' or 'max_completion_tokens' is too large: 100. This model's maximum context length is 4096 "
    "tokens and your request has 4090 input tokens (100 > 4096 - 4090)."
)
VLLM_NEWEST = (
    "You passed 4200 input tokens and requested 100 output tokens. However, the model's context length is "
    "only 4096 tokens, resulting in a maximum context length of 4096 tokens."
)
SGLANG = "The input (4200 tokens) is longer than the model's context length (4096 tokens)."
SGLANG_TOTAL = (
    "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total "
    "of 4300 tokens: 4200 tokens from the input messages and 100 tokens for the completion."
)
LLAMA = {
    "code": 400,
    "message": "request (4200 tokens) exceeds the available context size (4096 tokens), try increasing it",
    "type": "exceed_context_size_error",
    "n_prompt_tokens": 4200,
    "n_ctx": 4096,
}
OPENAI_OVERFLOWS: list[tuple[Any, int | None, int | None]] = [
    ({"error": LLAMA}, 4200, 4096),
    ({"object": "error", "message": VLLM, "type": "BadRequestError", "code": 400}, 4200, 4096),
    ({"error": {"message": VLLM_NEW, "type": "BadRequestError", "code": 400}}, 4090, 4096),
    ({"error": {"message": VLLM_NEWEST, "type": "BadRequestError", "code": 400}}, 4200, 4096),
    ({"object": "error", "message": SGLANG, "code": 400}, 4200, 4096),
    ({"object": "error", "message": SGLANG_TOTAL, "code": 400}, 4200, 4096),
    ({"error": {"message": "too long", "code": "context_length_exceeded"}}, None, None),
]


@pytest.mark.parametrize(("body", "prompt", "window"), OPENAI_OVERFLOWS)
def test_openai_overflow(body: Any, prompt: int | None, window: int | None) -> None:
    """An overflow is recognised with its sizes on llama-server, three generations of vLLM, and SGLang."""
    with pytest.raises(ContextOverflow) as caught:
        _openai_chat(httpx.Response(400, json=body))

    assert (caught.value.prompt_tokens, caught.value.num_ctx) == (prompt, window)


def test_a_request_of_too_many_bytes_is_an_overflow_without_sizes() -> None:
    """HTTP 413, which a proxy returns for one long request, fails that row and does not end the job."""
    with pytest.raises(ContextOverflow) as caught:
        _openai_chat(httpx.Response(413, text="<html>413 Request Entity Too Large</html>"))

    assert (caught.value.status, caught.value.prompt_tokens, caught.value.num_ctx) == (413, None, None)


def _choice(content: str | None, reason: str | None) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": content}, "finish_reason": reason}]})


OPENAI: list[tuple[httpx.Response, type[BackendError]]] = [
    (httpx.Response(401, json={"error": {"message": "Invalid API Key", "code": 401}}), RequestRefused),
    (httpx.Response(403, text="no"), RequestRefused),
    (httpx.Response(404, json={"detail": "Not Found"}), RequestRefused),
    (httpx.Response(400, json={"error": {"message": "bad grammar", "code": 400}}), RequestRefused),
    (httpx.Response(422, json={"detail": [{"msg": "field required"}]}), RequestRefused),
    (httpx.Response(301, headers={"Location": "https://elsewhere.invalid"}), RequestRefused),
    (httpx.Response(429, json={"error": {"message": "slow down"}}), ServerBusy),
    (httpx.Response(503, json={"error": {"message": "Loading model", "code": 503}}), ServerBusy),
    (httpx.Response(502, text="Bad Gateway"), ServerAway),
    (httpx.Response(500, json={"error": {"message": "CUDA out of memory. Tried to allocate"}}), OutOfMemory),
    (httpx.Response(500, json={"error": {"message": "EngineCore encountered an issue"}}), ServerDied),
    (httpx.Response(500, text="Internal Server Error"), UnexpectedReply),
    (httpx.Response(200, text="<html>"), UnexpectedReply),
    (httpx.Response(200, json={"choices": []}), UnexpectedReply),
    (
        httpx.Response(200, json={"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}),
        UnexpectedReply,
    ),
    (
        httpx.Response(200, json={"choices": [{"message": {"content": "x"}, "finish_reason": None}]}),
        AnswerUnfinished,
    ),
    (
        httpx.Response(
            200, json={"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}
        ),
        AnswerUnfinished,
    ),
]


@pytest.mark.parametrize(("response", "failure"), OPENAI)
def test_openai_failure(response: httpx.Response, failure: type[BackendError]) -> None:
    """Every other status and ending of an OpenAI-compatible server has its failure class."""
    with pytest.raises(BackendError) as caught:
        _openai_chat(response)

    assert type(caught.value) is failure
    assert caught.value.status == response.status_code


def _openai_chat(response: httpx.Response) -> Reply:
    transport = httpx.MockTransport(
        lambda _: httpx.Response(response.status_code, headers=response.headers, content=response.content)
    )
    backend = OpenAIBackend("http://server", transport=transport, clock=SystemClock())
    return asyncio.run(backend.chat(ASK))
