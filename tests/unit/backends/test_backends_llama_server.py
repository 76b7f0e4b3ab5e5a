"""llama-server behind OpenAI's routes: rendering, priming, probabilities; and the limits of other servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx
import pytest

from spoolama.backends.base import ChatRequest, LoadSpec, Message
from spoolama.backends.openai import OpenAIBackend
from spoolama.backends.openai_wire import chat_body, fold, read_completion, read_reply
from spoolama.clock import SystemClock
from spoolama.errors import AnswerUnfinished, UnexpectedReply

SPEC = LoadSpec("m", 4096)
ROW = (Message("system", "Judge."), Message("user", "Fine."))
COMPLETION = {
    "content": "x",
    "stop_type": "limit",
    "timings": {"cache_n": 15, "prompt_n": 5, "prompt_ms": 10.0, "predicted_n": 1, "predicted_ms": 20.0},
}
LLAMA = {
    "/v1/models": {"data": [{"id": "m", "owned_by": "llamacpp", "meta": {"n_ctx_train": 8192}}]},
    "/props": {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 4, "build_info": "b10488"},
    "/apply-template": {"prompt": "<s>Judge.</s><u>Fine."},
    "/completion": COMPLETION,
}
VLLM = {"/v1/models": {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}]}}
UNKNOWN = {"/v1/models": {"data": [{"id": "m", "owned_by": "somebody"}]}}


def client(answers: Mapping[str, Any]) -> tuple[OpenAIBackend, list[tuple[str, Any]]]:
    """A client of a server with these bodies, and the requests that it received."""
    asked: list[tuple[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, json.loads(request.content) if request.content else None))
        found = answers.get(request.url.path)
        return httpx.Response(404, json={}) if found is None else httpx.Response(200, json=found)

    return OpenAIBackend("http://s", transport=httpx.MockTransport(answer), clock=SystemClock()), asked


def test_llama_server_renders_and_primes() -> None:
    """llama-server renders and primes by its own routes and chooses the slot, as for its chats."""
    backend, asked = client(LLAMA)

    async def scenario() -> Any:
        await backend.load(SPEC)
        text = await backend.render(SPEC, ROW)
        assert text == "<s>Judge.</s><u>Fine."
        return await backend.prime(SPEC, text, slot=2)

    reply = asyncio.run(scenario())

    assert asked[-2:] == [
        (
            "/apply-template",
            {
                "messages": [message.wire() for message in ROW],
                "chat_template_kwargs": {"enable_thinking": False},
            },
        ),
        (
            "/completion",
            {"prompt": "<s>Judge.</s><u>Fine.", "n_predict": 1, "cache_prompt": True, "stream": False},
        ),
    ]
    assert (reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens) == (20, 15, 1)
    assert (reply.finish, reply.prompt_s, reply.eval_s) == ("length", 0.01, 0.02)


@pytest.mark.parametrize("answers", [VLLM, UNKNOWN], ids=["vllm", "unknown"])
def test_other_servers_neither_render_nor_prime(answers: Mapping[str, Any]) -> None:
    """Other servers get no request to render or prime."""
    backend, asked = client(answers)

    async def scenario() -> None:
        await backend.load(SPEC)
        before = len(asked)
        assert await backend.render(SPEC, ROW) is None
        assert await backend.prime(SPEC, "Judge.") is None
        assert len(asked) == before

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("answers", "trained"), [(LLAMA, 8192), (VLLM, None), (UNKNOWN, None)], ids=["llama", "vllm", "unknown"]
)
def test_a_listed_model_is_loaded(answers: Mapping[str, Any], trained: int | None) -> None:
    """A listed model is loaded and has the facts of its load, and an unlisted one is not loaded."""
    backend, _ = client(answers)

    async def scenario() -> None:
        loaded = await backend.load(SPEC)
        assert loaded.trained_ctx == trained
        assert await backend.inspect(SPEC) == replace(loaded, load_s=None)
        assert await backend.inspect(replace(SPEC, model="other")) is None

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("changed", "failure"),
    [
        ({"content": None}, UnexpectedReply),
        ({"stop_type": "none"}, AnswerUnfinished),
        ({"stop_type": None}, AnswerUnfinished),
    ],
)
def test_an_unfinished_completion_is_refused(changed: dict[str, Any], failure: type[Exception]) -> None:
    """A completion without text or stop reason is unfinished."""
    with pytest.raises(failure):
        read_completion({**COMPLETION, **changed})


@pytest.mark.parametrize(("kind", "finish"), [("limit", "length"), ("eos", "stop"), ("word", "stop")])
def test_a_completion_without_counts_has_none(kind: str, finish: str) -> None:
    """Without a cached count the length of a prefix is unknown."""
    reply = read_completion({"content": "", "stop_type": kind, "timings": {"prompt_n": 5}})

    assert reply.finish == finish
    assert (reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens) == (None, None, None)


def test_probabilities_are_asked_only_where_wanted() -> None:
    """OpenAI's own field asks for probabilities, and only where wanted."""
    request = ChatRequest(SPEC, ROW, 8)

    assert "logprobs" not in chat_body(request, dialect="unknown")
    assert chat_body(replace(request, logprobs=True), dialect="unknown")["logprobs"] is True


@pytest.mark.parametrize(
    ("given", "mean"),
    [({"content": [{"logprob": -1.0}, {"logprob": -3.0}]}, -2.0), ({"content": None}, None), (None, None)],
)
def test_probabilities_of_an_answer(given: Any, mean: float | None) -> None:
    """The result is the mean over `choices[0].logprobs.content`, or None."""
    choice = {"message": {"content": "ok"}, "finish_reason": "stop", "logprobs": given}

    assert read_reply({"choices": [choice]}).logprob == mean


def test_probabilities_of_a_stream_are_collected() -> None:
    """Events of a stream add the probabilities of their own tokens, and events without any do
    not count as zero.
    """
    parts: list[Any] = [
        {"delta": {"role": "assistant", "content": None}, "logprobs": None},
        {"delta": {"content": "o"}, "logprobs": {"content": [{"token": "o", "logprob": -1.0}]}},
        {"delta": {"content": "k"}, "logprobs": {"content": [{"token": "k", "logprob": -2.0}]}},
        {"delta": {}, "finish_reason": "stop"},
    ]
    text = "".join(f"data: {json.dumps({'choices': [part]})}\n\n" for part in parts) + "data: [DONE]\n\n"

    body = fold(text)

    assert [entry["token"] for entry in body["choices"][0]["logprobs"]["content"]] == ["o", "k"]
    assert read_reply(body).logprob == -1.5
    assert "logprobs" not in fold(text.replace('"logprobs"', '"x"'))["choices"][0]
