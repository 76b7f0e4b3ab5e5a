"""Every recorded reply through the clients: status, keys and failure class, from one table."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

import httpx
import pytest

from spoolama.backends.base import Backend, ChatRequest, LoadSpec, Message, Reply
from spoolama.backends.ollama import OllamaBackend
from spoolama.backends.ollama_wire import read_reply
from spoolama.backends.openai import OpenAIBackend
from spoolama.backends.openai_wire import read_reply as read_openai
from spoolama.clock import SystemClock
from spoolama.errors import (
    AnswerUnfinished,
    BackendError,
    ContextOverflow,
    RequestRefused,
    ServerBusy,
    ServerDied,
    UnexpectedReply,
)
from wire.cases import all_cases, case

SPEC = LoadSpec("smollm2:135m", 2048, {"num_thread": 2})
ASK = ChatRequest(
    SPEC, (Message("user", "The battery died after two days."),), 32, {"temperature": 0, "seed": 7}
)

OK = None
# The meaning of each recorded reply to a chat, beside its recorded status.
CHATS: dict[str, tuple[int, type[BackendError] | None]] = {
    "chat_after_runner_killed": (200, OK),
    "chat_bad_json": (400, RequestRefused),
    "chat_bad_role": (200, OK),
    "chat_cloud_name": (403, RequestRefused),
    "chat_ctx_changed": (200, OK),
    "chat_empty_body": (400, RequestRefused),
    "chat_empty_content": (200, OK),
    "chat_empty_messages": (200, AnswerUnfinished),  # done_reason load: nothing was generated
    "chat_format_invalid": (500, RequestRefused),
    "chat_json_mode": (200, OK),
    "chat_keep_alive_duration": (200, OK),
    "chat_keep_alive_string": (400, RequestRefused),
    "chat_length": (200, OK),
    "chat_logprobs": (200, OK),
    "chat_model_missing": (404, RequestRefused),
    "chat_no_model": (400, RequestRefused),
    "chat_num_predict_0": (200, OK),
    "chat_ok_cold": (200, OK),
    "chat_ok_second_turn": (200, OK),
    "chat_ok_warm": (200, OK),
    "chat_option_unknown": (200, OK),
    "chat_option_wrong_type": (500, RequestRefused),
    "chat_overflow_history_dropped": (200, OK),  # cut without an error, which is why `truncate` is never on
    "chat_overflow_history_refused": (400, ContextOverflow),
    "chat_overflow_refused": (400, ContextOverflow),
    "chat_overflow_silent": (200, OK),
    "chat_queue_full": (503, ServerBusy),
    "chat_render_only": (200, AnswerUnfinished),  # done: false
    "chat_repeat": (200, OK),
    "chat_runner_killed": (500, ServerDied),
    "chat_runner_killed_stream": (200, UnexpectedReply),  # lines instead of one object
    "chat_schema": (200, OK),
    "chat_schema_bad_pattern": (400, RequestRefused),
    "chat_schema_invalid": (400, RequestRefused),
    "chat_stream": (200, UnexpectedReply),
    "chat_think_unsupported": (400, RequestRefused),
    "gemma_chat_ok": (200, OK),
    "gemma_render_only": (200, AnswerUnfinished),
}
# The same for other routes: the reply that replaces the recorded one while a model is loaded.
LOADS: dict[str, tuple[str, int, type[BackendError] | None]] = {
    "generate_preload": ("/api/generate", 200, OK),
    "generate_raw": ("/api/generate", 200, UnexpectedReply),  # an answer instead of a load
    "generate_unload": ("/api/generate", 200, UnexpectedReply),
    "ps_loaded": ("/api/ps", 200, OK),
    "ps_two_models": ("/api/ps", 200, OK),
    "ps_after_unload": ("/api/ps", 200, OK),
    "ps_empty": ("/api/ps", 200, UnexpectedReply),
    "show": ("/api/show", 200, OK),
    "show_missing": ("/api/show", 404, RequestRefused),
    "version": ("/api/version", 200, OK),
    "status": ("/api/version", 200, UnexpectedReply),
    "tags": ("/api/version", 200, UnexpectedReply),
    "root": ("/api/version", 200, UnexpectedReply),
}
V1: dict[str, tuple[int, type[BackendError] | None]] = {
    "v1_chat_ok": (200, OK),
    "v1_chat_model_missing": (404, RequestRefused),
    "v1_batches_absent": (404, RequestRefused),
    "v1_models": (200, UnexpectedReply),  # a list instead of an answer
}
GOOD = {
    "/api/version": "version",
    "/api/show": "show",
    "/api/generate": "generate_preload",
    "/api/ps": "ps_loaded",
    "/api/chat": "chat_ok_cold",
}


def recorded(answers: Mapping[str, str]) -> httpx.MockTransport:
    """A transport that returns the named recorded case for each path."""
    return httpx.MockTransport(lambda request: case(answers[request.url.path]).response())


def ollama(**replaced: str) -> OllamaBackend:
    """A client whose server gives the good replies, except for those replaced (by path, `_` for `/`)."""
    answers = {**GOOD, **{key.replace("_", "/"): name for key, name in replaced.items()}}
    return OllamaBackend("http://ollama", transport=recorded(answers), clock=SystemClock())


def ask(backend: Backend, request: ChatRequest = ASK) -> Reply:
    """Send one chat."""
    return asyncio.run(backend.chat(request))


def test_every_recorded_case_is_in_a_table() -> None:
    """The tables name every recorded reply and no other."""
    assert set(all_cases()) == {*CHATS, *LOADS, *V1}


@pytest.mark.parametrize("name", CHATS)
def test_chat(name: str) -> None:
    """A recorded chat reply becomes an answer with its counters, or has its failure class."""
    status, failure = CHATS[name]
    reply = case(name)

    assert reply.status == status
    if failure is not None:
        with pytest.raises(failure) as caught:
            ask(ollama(_api_chat=name))
        assert type(caught.value) is failure
        assert caught.value.status == status
        return
    answer = ask(ollama(_api_chat=name))
    assert answer.text == reply.json["message"]["content"]
    assert answer.finish == reply.json["done_reason"]
    assert answer.prompt_tokens == reply.json["prompt_eval_count"]
    assert answer.completion_tokens == reply.json["eval_count"]
    assert answer.cached_tokens is None  # this version does not count them, which differs from zero
    assert answer.load_s == reply.json["load_duration"] / 1e9
    assert answer.prompt_s == reply.json["prompt_eval_duration"] / 1e9
    assert answer.eval_s == reply.json["eval_duration"] / 1e9
    assert answer.raw == reply.json
    assert (answer.logprob is not None) is (name == "chat_logprobs")


@pytest.mark.parametrize("name", LOADS)
def test_load(name: str) -> None:
    """A recorded reply of a load route is read, or refused for its reason."""
    path, status, failure = LOADS[name]
    answers = {**GOOD, path: name}
    backend = OllamaBackend("http://ollama", transport=recorded(answers), clock=SystemClock())

    assert case(name).status == status
    if failure is not None:
        with pytest.raises(failure) as caught:
            asyncio.run(backend.load(SPEC))
        assert caught.value.status == status
        return
    model = asyncio.run(backend.load(SPEC))
    entry = next(m for m in case(answers["/api/ps"]).json["models"] if m["name"] == SPEC.model)
    assert model.digest == entry["digest"]
    assert model.num_ctx == entry["context_length"]
    assert model.size_bytes == entry["size"]
    assert model.vram_bytes == 0
    assert model.server.version == "0.0.0"
    assert model.can_think is False


@pytest.mark.parametrize("name", V1)
def test_openai(name: str) -> None:
    """A recorded `/v1` reply becomes an answer with its usage, or has its failure class."""
    status, failure = V1[name]
    backend = OpenAIBackend(
        "http://server/v1", transport=recorded({"/v1/chat/completions": name}), clock=SystemClock()
    )

    assert case(name).status == status
    if failure is not None:
        with pytest.raises(failure) as caught:
            ask(backend)
        assert caught.value.status == status
        return
    answer = ask(backend)
    assert answer.text == "The battery died."
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (38, 5, None)
    assert answer.finish == "stop"


@pytest.mark.parametrize(
    ("name", "prompt", "window"),
    [("chat_overflow_refused", 13924, 2048), ("chat_overflow_history_refused", 5731, 2048)],
)
def test_overflow_sizes(name: str, prompt: int, window: int) -> None:
    """The exact sizes are read from the JSON inside the JSON string."""
    expected = json.loads(case(name).json["error"])["error"]
    assert (expected["n_prompt_tokens"], expected["n_ctx"]) == (prompt, window)

    with pytest.raises(ContextOverflow) as caught:
        ask(ollama(_api_chat=name))

    assert (caught.value.prompt_tokens, caught.value.num_ctx) == (prompt, window)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("chat_model_missing", "ollama pull smollm2:135m"),
        ("chat_schema_invalid", "format"),
        ("chat_option_wrong_type", "options"),
        ("chat_think_unsupported", "think"),
        ("chat_cloud_name", "never sent"),
    ],
)
def test_a_refusal_has_a_fix(name: str, words: str) -> None:
    """The error gives the server's text and what the user has to change."""
    with pytest.raises(RequestRefused) as caught:
        ask(ollama(_api_chat=name))

    assert words in caught.value.fix


@pytest.mark.parametrize("done", [False, None, "true", 1])
def test_only_done_true_is_an_answer(done: object) -> None:
    """A good reply without `done: true` is unfinished."""
    body = {key: value for key, value in case("chat_ok_cold").json.items() if key != "done"}
    if done is not None:
        body["done"] = done

    with pytest.raises(AnswerUnfinished):
        read_reply(body)


def test_zero_cached_tokens_are_not_absent() -> None:
    """0 and a missing count differ."""
    body = case("chat_ok_cold").json

    assert read_reply(body).cached_tokens is None
    assert read_reply({**body, "prompt_eval_cached_count": 0}).cached_tokens == 0


@pytest.mark.parametrize("count", ["12", -1, True, None, 1.5, [3], 2**53, 10**400])
def test_an_invalid_count_is_absent(count: object) -> None:
    """A count or time of another type, below zero or too large for the ledger is None, in either API."""
    body = case("chat_ok_cold").json
    reply = read_reply({**body, "prompt_eval_count": count, "eval_count": count, "load_duration": count})
    assert (reply.prompt_tokens, reply.completion_tokens, reply.load_s) == (None, None, None)

    usage, timings = {"prompt_tokens": count, "completion_tokens": count}, {"predicted_ms": count}
    chat = {"choices": [{"finish_reason": "stop", "message": {"content": "a"}}], "usage": usage}
    other = read_openai({**chat, "timings": timings})
    assert (other.prompt_tokens, other.completion_tokens) == (None, None)
    assert other.eval_s == (0.0015 if count == 1.5 else None)  # milliseconds may have a fraction
