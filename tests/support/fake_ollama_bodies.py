"""The bodies of the fake's answers, as in the recorded replies."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any

from support.fake_ollama_chat import Generation, Generator, now, version_of


def chat_body(body: Mapping[str, Any], done: Generation, generator: Generator) -> dict[str, Any]:
    return {
        "model": body["model"],
        "created_at": now(),
        "message": {"role": "assistant", "content": done.text},
        "done": True,
        "done_reason": done.reason,
        **logprobs_of(body, done),
        **done.counters(generator.version),
    }


def generate_body(body: Mapping[str, Any], done: Generation, generator: Generator) -> dict[str, Any]:
    context = {} if body.get("raw") else {"context": list(range(done.prompt_tokens + done.answered))}
    return {
        "model": body["model"],
        "created_at": now(),
        "response": done.text,
        "done": True,
        "done_reason": done.reason,
        **context,
        **logprobs_of(body, done),
        **done.counters(generator.version),
    }


def v1_options(body: Mapping[str, Any]) -> dict[str, Any]:
    """The options that `/v1` knows, without window, keep-alive and truncate."""
    options = {key: body[key] for key in ("temperature", "top_p", "seed", "stop") if key in body}
    if "max_tokens" in body:
        options["num_predict"] = body["max_tokens"]
    return options


def v1_body(body: Mapping[str, Any], done: Generation, generator: Generator) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.answered,
        "total_tokens": done.prompt_tokens + done.answered,
    }
    if generator.version >= version_of("0.33.3"):
        usage["prompt_tokens_details"] = {"cached_tokens": done.cached}
    message = {"role": "assistant", "content": done.text}
    return {
        "id": "chatcmpl-254",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "system_fingerprint": "fp_ollama",
        "choices": [{"index": 0, "message": message, "finish_reason": done.reason}],
        "usage": usage,
    }


def lines(reply: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a reply as a stream: the text word by word, then the counters."""
    key = "message" if "message" in reply else "response"
    text = reply["message"]["content"] if key == "message" else reply["response"]
    head = {"model": reply["model"], "created_at": reply["created_at"]}

    def part(piece: str) -> dict[str, Any]:
        return {**head, key: {"role": "assistant", "content": piece} if key == "message" else piece}

    words = [word if i == 0 else f" {word}" for i, word in enumerate(text.split(" "))] if text else []
    rest = {name: value for name, value in reply.items() if name not in {*head, key}}
    return [*({**part(word), "done": False} for word in words), {**part(""), **rest}]


def rendered_body(model: str, text: str) -> dict[str, Any]:
    """Return a prompt that was rendered and not answered."""
    return {
        "model": model,
        "created_at": now(),
        "message": {"role": "", "content": ""},
        "done": False,
        "_debug_info": {"rendered_template": text},
    }


def logprobs_of(body: Mapping[str, Any], done: Generation) -> dict[str, Any]:
    """If requested, return each token of the answer's text except its end, with a value made of
    the text before.
    """
    if not body.get("logprobs") or not done.pieces:
        return {}
    return {
        "logprobs": [
            {
                "token": piece.decode("utf-8", "replace"),
                "logprob": _value(done.text, place),
                "bytes": list(piece),
                "top_logprobs": [],
            }
            for place, piece in enumerate(done.pieces)
        ]
    }


def _value(text: str, place: int) -> float:
    seed = hashlib.sha256(f"{place} {text}".encode("utf-8", "surrogatepass")).digest()
    return -int.from_bytes(seed[:2], "big") / 2**16
