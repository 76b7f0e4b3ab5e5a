"""OpenAI-compatible servers: the requests they get and how they differ."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from spoolama.backends.base import ChatRequest, LoadedModel, LoadSpec, Message, Reply
from spoolama.backends.http import HttpReply
from spoolama.backends.openai import OpenAIBackend
from spoolama.backends.openai_wire import checked, fold, read_reply
from spoolama.clock import SystemClock
from spoolama.errors import AnswerUnfinished, RequestRefused, ServerDied, UnexpectedReply
from support.fake_ollama import FakeOllama

ROW = (Message("user", "Fine."),)
ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "ok"}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 20, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 16}},
}
VLLM = {
    "/v1/models": {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}]},
    "/version": {"version": "0.11.0"},
    "/v1/chat/completions": ANSWER,
    "/tokenize": {"count": 20, "max_model_len": 4096},
}
SGLANG = {
    "/v1/models": {"data": [{"id": "m", "owned_by": "sglang", "max_model_len": 4096}]},
    "/v1/chat/completions": ANSWER,
}
LLAMA = {
    "/v1/models": {"data": [{"id": "m", "owned_by": "llamacpp"}]},
    "/props": {
        "default_generation_settings": {"n_ctx": 4096},
        "total_slots": 4,
        "build_info": "b10488",
        "chat_template": "{{ x }}",
    },
    "/v1/chat/completions": {
        **ANSWER,
        "usage": {"completion_tokens": 1},
        "timings": {"cache_n": 15, "prompt_n": 5, "prompt_ms": 10.0, "predicted_ms": 20.0},
    },
    "/apply-template": {"prompt": "<x>Fine."},
    "/tokenize": {"tokens": [1, 2, 3]},
}


class Server:
    """A mock of one kind of server that records its requests."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[httpx.Headers] = []
        self.backend = OpenAIBackend(
            "http://server/v1/", api_key="k", transport=httpx.MockTransport(self._answer), clock=SystemClock()
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.url.path, json.loads(request.content) if request.content else None))
        self.headers.append(request.headers)
        if request.url.path in self.answers:
            return httpx.Response(200, json=self.answers[request.url.path])
        return httpx.Response(404, json={"detail": "Not Found"})

    def load(self, spec: LoadSpec) -> LoadedModel:
        return asyncio.run(self.backend.load(spec))

    def chat(self, request: ChatRequest) -> tuple[Reply, Any]:
        reply = asyncio.run(self.backend.chat(request))
        return reply, self.asked[-1][1]


@pytest.mark.parametrize(
    ("answers", "version", "slots"), [(VLLM, "0.11.0", None), (SGLANG, None, None), (LLAMA, "b10488", 4)]
)
def test_load_reads_the_facts_of_the_server(
    answers: Mapping[str, Any], version: str | None, slots: int | None
) -> None:
    """Window, version and slots come from the server, or are None, and the key is sent."""
    server = Server(answers)

    model = server.load(LoadSpec("m", 4096))

    assert (model.num_ctx, model.server.version, model.slots) == (4096, version, slots)
    assert {headers["authorization"] for headers in server.headers} == {"Bearer k"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (LoadSpec("m", 8192), ["4096", "8192"]),
        (LoadSpec("other", 4096), ["'other'", "it has: m"]),
        (LoadSpec("m", 4096, {"num_gpu": 1}), ["num_gpu", "start of the server"]),
    ],
)
def test_load_refuses_what_the_server_lacks(spec: LoadSpec, words: list[str]) -> None:
    """A larger window, another model and load options are refused with the facts before a row is sent."""
    with pytest.raises(RequestRefused) as caught:
        Server(VLLM).load(spec)

    assert [word for word in words if word not in f"{caught.value} {caught.value.fix}"] == []


def test_an_ollama_behind_the_address_is_refused() -> None:
    """Ollama is recognised by its own text, gets no chat, and the error says what to set instead."""

    async def scenario() -> None:
        async with FakeOllama() as server:
            backend = OpenAIBackend(f"{server.url}/v1", clock=SystemClock())
            with pytest.raises(RequestRefused, match="silently truncates") as caught:
                await backend.load(LoadSpec("smollm2:135m", 2048))
            await backend.aclose()
            assert "kind to ollama" in caught.value.fix
            assert server.url in caught.value.fix
            assert server.calls == []

    asyncio.run(scenario())


def test_an_ollama_behind_a_proxy_is_refused() -> None:
    """Behind a proxy with its own start page `/api/version` identifies Ollama."""
    with pytest.raises(RequestRefused, match="this is an Ollama"):
        Server({**VLLM, "/api/version": {"version": "0.33.3"}}).load(LoadSpec("m", 4096))


SAMPLING = {"temperature": 0, "seed": 7, "top_p": 0.5, "top_k": 5, "repeat_penalty": 1.2, "stop": ["x"]}


@pytest.mark.parametrize(
    ("answers", "penalty", "more"),
    [
        (VLLM, "repetition_penalty", {"chat_template_kwargs": {"enable_thinking": False}}),
        (SGLANG, "repetition_penalty", {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            LLAMA,
            "repeat_penalty",
            {"chat_template_kwargs": {"enable_thinking": False}, "cache_prompt": True},
        ),
    ],
)
def test_each_server_gets_options_by_its_own_names(
    answers: Mapping[str, Any], penalty: str, more: Mapping[str, Any]
) -> None:
    """Each server gets the options by its own names."""
    server = Server(answers)
    server.load(LoadSpec("m", 4096))

    _, sent = server.chat(ChatRequest(LoadSpec("m", 4096), ROW, 0, SAMPLING, {"type": "string"}))

    assert sent == {
        "model": "m",
        "messages": [{"role": "user", "content": "Fine."}],
        "stream": False,
        "max_tokens": 1,
        "temperature": 0,
        "seed": 7,
        "top_p": 0.5,
        "top_k": 5,
        "stop": ["x"],
        penalty: 1.2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": {"type": "string"}},
        },
        **more,
    }


@pytest.mark.parametrize(
    ("think", "more"),
    [
        (None, {}),
        (True, {"chat_template_kwargs": {"enable_thinking": True}}),
        ("low", {"reasoning_effort": "low"}),
    ],
)
def test_an_unknown_server_gets_no_switch_unasked(think: Any, more: Mapping[str, Any]) -> None:
    """An unknown server gets only standard fields, unless the sidecar asks for more."""
    server = Server({"/v1/chat/completions": ANSWER})

    _, sent = server.chat(ChatRequest(LoadSpec("m", 4096), ROW, 8, format="json", think=think))

    assert sent == {
        "model": "m",
        "messages": [{"role": "user", "content": "Fine."}],
        "stream": False,
        "max_tokens": 8,
        "response_format": {"type": "json_object"},
        **more,
    }


def test_an_option_that_the_server_lacks_is_refused() -> None:
    """An option that the server lacks is refused, not dropped."""
    server = Server(VLLM)
    server.load(LoadSpec("m", 4096))

    with pytest.raises(RequestRefused, match="repeat_last_n"):
        server.chat(ChatRequest(LoadSpec("m", 4096), ROW, 8, {"repeat_last_n": 64}))


@pytest.mark.parametrize(
    ("answers", "counts"),
    [(VLLM, (20, 16, 1, None, None)), (LLAMA, (20, 15, 1, 0.01, 0.02))],
)
def test_counts(answers: Mapping[str, Any], counts: tuple[Any, ...]) -> None:
    """Counts come from `usage`, or from llama-server's `timings`."""
    reply, _ = Server(answers).chat(ChatRequest(LoadSpec("m", 4096), ROW, 8))

    found = (reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens, reply.prompt_s, reply.eval_s)
    assert found == counts
    assert reply.finish == "length"


def test_usage_that_is_absent_is_not_zero() -> None:
    """A server without counts gives None."""
    reply, _ = Server({"/v1/chat/completions": {"choices": ANSWER["choices"]}}).chat(
        ChatRequest(LoadSpec("m", 4096), ROW, 8)
    )

    assert (reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens) == (None, None, None)


def test_zero_cached_is_not_absent() -> None:
    """A count of 0 is kept."""
    usage = {"prompt_tokens": 20, "prompt_tokens_details": {"cached_tokens": 0}}
    reply, _ = Server({"/v1/chat/completions": {"choices": ANSWER["choices"], "usage": usage}}).chat(
        ChatRequest(LoadSpec("m", 4096), ROW, 8)
    )

    assert reply.cached_tokens == 0


def test_an_answer_cut_while_thinking_is_empty_and_cut() -> None:
    """An answer without content but with thoughts is empty and cut."""
    choice = {"message": {"content": None, "reasoning_content": "Hmm"}, "finish_reason": "length"}
    reply, _ = Server({"/v1/chat/completions": {"choices": [choice]}}).chat(
        ChatRequest(LoadSpec("m", 4096), ROW, 8)
    )

    assert (reply.text, reply.thinking, reply.finish) == ("", "Hmm", "length")


@pytest.mark.parametrize(("answers", "count"), [(VLLM, 20), (LLAMA, 3), (SGLANG, None)])
def test_count_tokens(answers: Mapping[str, Any], count: int | None) -> None:
    """The count is exact if the server has a tokenizer route, else None."""
    server = Server(answers)
    server.load(LoadSpec("m", 4096))

    assert asyncio.run(server.backend.count_tokens(LoadSpec("m", 4096), ROW)) == count


def _stream(*chunks: Any, tail: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + tail


def test_a_stream_folds_into_one_body() -> None:
    """Text in pieces, stop reason, usage and timings are merged into the same body as without streaming."""
    text = _stream(
        {"id": "1", "choices": [{"delta": {"role": "assistant", "content": None}, "finish_reason": None}]},
        {"id": "1", "choices": [{"delta": {"content": "日"}, "finish_reason": None}]},
        {"id": "1", "choices": [{"delta": {"content": "本"}, "finish_reason": None}]},
        {"id": "1", "choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"id": "1", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}},
    )

    reply = read_reply(fold(text))

    assert (reply.text, reply.finish, reply.prompt_tokens, reply.completion_tokens) == ("日本", "stop", 9, 2)


def test_a_stream_that_just_ends_is_unfinished() -> None:
    """A stream without a stop reason is unfinished."""
    with pytest.raises(AnswerUnfinished):
        read_reply(fold(_stream({"choices": [{"delta": {"content": "x"}}]}, tail="")))


def test_an_error_in_a_stream_is_that_error() -> None:
    """An error after status 200 has its failure class."""
    body = fold(_stream({"choices": []}, tail='error: {"code": 500, "message": "engine loop died"}\n\n'))

    with pytest.raises(ServerDied):
        checked(HttpReply(200, body, ""))


def test_a_stream_of_garbage_is_unexpected() -> None:
    """A line that is not JSON is an error."""
    with pytest.raises(UnexpectedReply):
        fold("data: {oops\n\n")
