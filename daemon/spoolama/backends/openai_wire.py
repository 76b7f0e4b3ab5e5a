"""Builds chat completion requests and parses replies and errors for vLLM, llama-server and SGLang.

Error bodies differ: `{"error": {"message", "type", "code"}}` (llama-server, newer vLLM), `{"object": "error",
"message", "code"}` (older vLLM, SGLang), `{"detail": ...}` (FastAPI, which vLLM and SGLang use).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from spoolama.backends.base import MOST_COUNTED, ChatRequest, Message, Reply
from spoolama.backends.http import HttpReply
from spoolama.backends.replies import ErrorRules, checked_reply, count, mean_logprob
from spoolama.errors import AnswerUnfinished, RequestRefused, UnexpectedReply

Dialect = Literal["llamacpp", "vllm", "sglang", "unknown"]

_DIED_IN_500 = ("engine core", "enginecore", "enginedead", "engine process", "engine loop", "scheduler died")
"""Messages of vLLM and SGLang if the engine process has ended while the API server still answers."""


def checked(reply: HttpReply, *, model: str | None = None) -> Mapping[str, Any]:
    """Return the body of a successful reply; raise an error for any other."""
    return checked_reply(reply, _RULES, model=model)


def _fix(status: int, _: HttpReply, message: str, model: str | None) -> str:
    """What the user can do about a refused request."""
    lower = message.lower()
    if status in (401, 403):
        return "Set the backend's api_key to a key that the server accepts."
    if status == 404:
        name = f" {model}" if model else ""
        return f"Check that the server has the model{name} and that the backend's url is its address."
    if any(word in lower for word in ("schema", "grammar", "response_format", "guided")):
        return "Change `format` in the sidecar: the server does not support this JSON Schema."
    return "The server rejects part of the request: correct `options` in the sidecar as its message says."


_RULES = ErrorRules(died=_DIED_IN_500, fix=_fix)


def dialect_of(owned_by: Any) -> Dialect:
    """Return which server it is, from `owned_by` in its list of models."""
    match owned_by:
        case "llamacpp":
            return "llamacpp"
        case "vllm":
            return "vllm"
        case "sglang":
            return "sglang"
        case _:
            return "unknown"


def chat_body(request: ChatRequest, *, dialect: Dialect, slot: int | None = None) -> dict[str, Any]:
    """Return the body of a request; refuses options that this server does not support."""
    body: dict[str, Any] = {
        "model": request.load.model,
        "messages": wire_messages(request.messages),
        "stream": False,
        "max_tokens": max(1, request.num_predict),
        **_sampling(request.sampling, dialect),
    }
    if request.format == "json":
        body["response_format"] = {"type": "json_object"}
    elif request.format is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": request.format},
        }
    if isinstance(request.think, str):
        body["reasoning_effort"] = request.think
    elif request.think is not None or dialect != "unknown":
        # A template without a thinking mode ignores it. Unknown servers get it only if the sidecar sets it.
        body["chat_template_kwargs"] = {"enable_thinking": bool(request.think)}
    if request.logprobs:
        body["logprobs"] = True
    if dialect == "llamacpp":
        body["cache_prompt"] = True
        if slot is not None:
            body["id_slot"] = slot
    return body


def wire_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return the messages in the format of the API."""
    return [message.wire() for message in messages]


def _sampling(sampling: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    """Translate Ollama's option names to those of the server."""
    found = dict(sampling)
    if dialect == "llamacpp":
        return found
    if "repeat_penalty" in found:
        found["repetition_penalty"] = found.pop("repeat_penalty")
    if "repeat_last_n" in found:
        raise RequestRefused(
            "this server does not support `repeat_last_n`",
            fix="Remove options.repeat_last_n from the sidecar.",
        )
    return found


def read_reply(payload: Mapping[str, Any]) -> Reply:
    """Parse an answer. Counts come from `usage`; times and missing counts come from `timings`."""
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UnexpectedReply("the answer has no choices", status=200)
    choice = choices[0]
    reason = choice.get("finish_reason")
    finish: Literal["stop", "length"]
    if reason == "stop":
        finish = "stop"
    elif reason == "length":
        finish = "length"
    else:
        raise AnswerUnfinished(f"the answer ended with finish_reason {reason!r}", status=200)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise UnexpectedReply("the answer has no message", status=200)
    thinking = message.get("reasoning_content") or message.get("reasoning")
    text = message.get("content")
    if text is None and isinstance(thinking, str):
        text = ""  # cut off during thinking
    if not isinstance(text, str):
        raise UnexpectedReply("the answer has no message with text", status=200)
    usage = _mapping(payload, "usage")
    timings = _mapping(payload, "timings")
    cached = count(_mapping(usage, "prompt_tokens_details"), "cached_tokens")
    if cached is None:
        cached = count(timings, "cache_n")
    prompt = count(usage, "prompt_tokens")
    if prompt is None:
        prompt = _whole_prompt(timings)
    return Reply(
        text=text,
        finish=finish,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=count(usage, "completion_tokens"),
        prompt_s=_seconds(timings, "prompt_ms"),
        eval_s=_seconds(timings, "predicted_ms"),
        thinking=thinking if isinstance(thinking, str) else None,
        raw=payload,
        logprob=mean_logprob(_mapping(choice, "logprobs").get("content")),
    )


def read_completion(payload: Mapping[str, Any]) -> Reply:
    """Parse the answer of llama-server's `/completion`, which has its counts only in `timings`."""
    text = payload.get("content")
    if not isinstance(text, str):
        raise UnexpectedReply("the completion has no `content` text", status=200)
    finish: Literal["stop", "length"]
    match kind := payload.get("stop_type"):
        case "limit":
            finish = "length"
        case "eos" | "word":
            finish = "stop"
        case _:
            raise AnswerUnfinished(f"the completion ended with stop_type {kind!r}", status=200)
    timings = _mapping(payload, "timings")
    return Reply(
        text=text,
        finish=finish,
        prompt_tokens=_whole_prompt(timings),
        cached_tokens=count(timings, "cache_n"),
        completion_tokens=count(timings, "predicted_n"),
        prompt_s=_seconds(timings, "prompt_ms"),
        eval_s=_seconds(timings, "predicted_ms"),
        raw=payload,
    )


def _whole_prompt(timings: Mapping[str, Any]) -> int | None:
    evaluated, reused = count(timings, "prompt_n"), count(timings, "cache_n")
    return None if evaluated is None or reused is None else evaluated + reused


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _seconds(timings: Mapping[str, Any], key: str) -> float | None:
    found = timings.get(key)
    if not isinstance(found, int | float) or isinstance(found, bool) or not 0 <= found <= MOST_COUNTED:
        return None
    return found / 1000


def fold(text: str) -> dict[str, Any]:
    """Combine a whole event stream into one body.

    An error in the stream becomes the `error` of the body; if the stream ends early, `finish_reason` is null.
    """
    body: dict[str, Any] = {}
    content: list[str] = []
    reasoning: list[str] = []
    logprobs: list[Any] = []
    finish: Any = None
    for chunk in _events(text):
        if "error" in chunk:
            return {"error": chunk["error"]}
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            content.append(delta.get("content") or "")
            reasoning.append(delta.get("reasoning_content") or "")
            logprobs += (choice.get("logprobs") or {}).get("content") or []
            finish = choice.get("finish_reason") or finish
        body.update({key: value for key, value in chunk.items() if key != "choices"})
    message: dict[str, Any] = {"role": "assistant", "content": "".join(content)}
    if any(reasoning):
        message["reasoning_content"] = "".join(reasoning)
    whole: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish}
    if logprobs:
        whole["logprobs"] = {"content": logprobs}
    return {**body, "object": "chat.completion", "choices": [whole]}


def _events(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in text.split("\n"):
        name, _, data = line.partition(":")
        data = data.strip()
        if name not in {"data", "error"} or not data or data == "[DONE]":
            continue
        try:
            chunk = json.loads(data)
        except ValueError:
            raise UnexpectedReply("the stream has a line that is not JSON", status=200) from None
        if not isinstance(chunk, dict):
            raise UnexpectedReply("the stream has a line that is not an object", status=200)
        found.append(chunk if name == "data" else {"error": chunk.get("error", chunk)})
    return found
