"""Reads what the replies of all servers have in common: errors, counts, times and log probabilities.

Errors are classified by status and by structured codes (`exceed_context_size_error`,
`context_length_exceeded`). Message texts are parsed only if a server gives nothing else; the texts that
several servers share are listed here, the others in the module of the server.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spoolama.backends.base import MOST_COUNTED
from spoolama.backends.http import HttpReply, excerpt
from spoolama.errors import (
    BackendError,
    ContextOverflow,
    OutOfMemory,
    RequestRefused,
    ServerAway,
    ServerBusy,
    ServerDied,
    UnexpectedReply,
)

_ROUNDING = 1e-3
"""A log probability may be up to this much above 0 because of float arithmetic in the server."""

# Groups: tokens of the prompt, tokens of the window. The forms with both sizes come first.
_OVERFLOW_FORMS = (
    # llama-server: "request (351 tokens) exceeds the available context size (256 tokens)"
    re.compile(
        r"request \((?P<prompt>\d+) tokens\) exceeds the available context size \((?P<window>\d+) tokens\)"
    ),
    # Ollama's MLX runner: "input length (N tokens) exceeds the model's maximum context length (M tokens)"
    re.compile(
        r"input length \((?P<prompt>\d+) tokens\) exceeds .*context length \((?P<window>\d+) tokens\)"
    ),
    # SGLang says "The input (N tokens) is longer than the model's context length (M tokens)"
    re.compile(
        r"input \((?P<prompt>\d+) tokens\) is longer than .*context length \((?P<window>\d+) tokens\)"
    ),
    # vLLM, three generations, and the second form of SGLang; the sizes come in either order.
    re.compile(r"(?P<prompt>\d+) input tokens.*maximum context length of (?P<window>\d+)", re.DOTALL),
    re.compile(
        r"maximum context length (?:is|of) (?P<window>\d+)(?:.*?(?P<prompt>\d+) (?:tokens )?"
        r"(?:in the messages|input tokens|from the input messages))?",
        re.DOTALL,
    ),
    # Ollama up to 0.24 and, with context shift off, later ones: no sizes.
    re.compile(r"the input length exceeds the context length"),
    re.compile(r"the prompt is longer than the context length currently available"),
)

# Texts that Ollama itself recognizes (llm/status.go), and messages of the kernel or CUDA in a log.
_MEMORY_WORDS = (
    "out of memory",
    "out of device memory",
    "out-of-memory",
    "outofmemory",
    "cudamalloc failed",
    "hipmalloc failed",
    "failed to allocate",
    "unable to allocate",
    "allocation failed",
    "not enough memory",
    "insufficient memory",
    "cannot allocate memory",
    "requires more system memory",
    "std::bad_alloc",
    "erroroutofdevicememory",
    "vk_error_out_of_device_memory",
)


@dataclass(frozen=True, slots=True)
class ErrorRules:
    """How to read the error messages of one kind of server."""

    died: tuple[str, ...]
    """Texts, in lower case, of a server whose engine has ended."""
    fix: Callable[[int, HttpReply, str, str | None], str]
    """What the user can do about a refused request, by its status, reply, message and requested model."""
    refused: tuple[str, ...] = ()
    """Texts, in lower case, in replies with status 500 to requests that the server does not accept."""


def checked_reply(reply: HttpReply, rules: ErrorRules, *, model: str | None = None) -> Mapping[str, Any]:
    """Return the body of a successful reply; raise an error for any other.

    Args:
        reply: The reply of the server.
        rules: How to read its error messages.
        model: The requested model, for the message.
    """
    body = reply.payload
    if reply.status == 200 and not isinstance(body, dict):
        raise UnexpectedReply(f"HTTP 200, but not a JSON object: {excerpt(reply.text)!r}", status=200)
    if reply.status != 200 or ("error" in body and "choices" not in body):
        raise _failure(reply, rules, model)
    found: Mapping[str, Any] = body
    return found


def _failure(reply: HttpReply, rules: ErrorRules, model: str | None) -> BackendError:
    """Return the exception for a reply that is not an answer."""
    message, fields = error_object(reply.payload)
    message = excerpt(message or reply.text or f"HTTP {reply.status} without a message", 600)
    status, code = reply.status, fields.get("code")
    # A server forwards the status of its engine in the body; a 200 with an error counts as 500.
    kind = code if isinstance(code, int) and 400 <= code < 600 else status
    if too_long := overflow(message, fields, status=status):
        return too_long
    match kind:
        case 408 | 425 | 429 | 499 | 503:
            return ServerBusy(message, status=status)
        case 502 | 504:  # sent by a proxy that cannot reach the server
            return ServerAway(f"HTTP {status} from a proxy: {message}", status=status)
        case 413:  # a size limit of a proxy or of the server; it concerns only this row
            return ContextOverflow(message, status=status)
        case 400 | 401 | 403 | 404 | 405 | 410 | 415 | 422:
            fix = rules.fix(kind, reply, message, model)
            if not isinstance(reply.payload, dict):
                message = f"HTTP {status}: {message}"
            return RequestRefused(message, status=status, fix=fix)
    if 300 <= kind < 400:
        return RequestRefused(
            f"HTTP {status}: the server redirects to {reply.location or 'another address'}",
            status=status,
            fix="Set the backend's url to the address of the server itself.",
        )
    if kind >= 500 or kind == 200:
        lower = message.lower()
        if any(words in lower for words in rules.refused):
            return RequestRefused(message, status=status, fix=rules.fix(kind, reply, message, model))
        if is_out_of_memory(lower):
            return OutOfMemory(message, status=status)
        if any(words in lower for words in rules.died):
            return ServerDied(message, status=status)
    return UnexpectedReply(f"HTTP {status}: {message}", status=status)


def error_object(payload: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the message and the fields of an error body at any nesting depth.

    Ollama forwards llama-server's error as JSON inside a JSON string: `{"error": "{\\"error\\": {...}}"}`.
    """
    fields: Mapping[str, Any] = {}
    message = ""
    found = payload
    for _ in range(8):
        if isinstance(found, str):
            message = found
            try:
                inner = json.loads(found)
            except ValueError:
                break
            if not isinstance(inner, dict):
                break
            found = inner
        elif isinstance(found, dict):
            fields = found
            for key in ("error", "message", "detail"):
                if isinstance(found.get(key), str | dict):
                    found = found[key]
                    break
            else:
                break
        else:
            break
    return message, fields


def overflow(message: str, fields: Mapping[str, Any], *, status: int | None) -> ContextOverflow | None:
    """Return the error for a prompt that does not fit, with the server's counts if known; None otherwise."""
    prompt = _whole(fields.get("n_prompt_tokens"))
    window = _whole(fields.get("n_ctx"))
    structured = (
        fields.get("type") == "exceed_context_size_error" or fields.get("code") == "context_length_exceeded"
    )
    for form in _OVERFLOW_FORMS:
        if match := form.search(message):
            sizes = match.groupdict()
            prompt = prompt if prompt is not None else _whole(sizes.get("prompt"))
            window = window if window is not None else _whole(sizes.get("window"))
            structured = True
            break
    if not structured:
        return None
    return ContextOverflow(message, status=status, prompt_tokens=prompt, num_ctx=window)


def is_out_of_memory(text: str) -> bool:
    """Whether a text reports a lack of memory."""
    lower = text.lower()
    return any(words in lower for words in _MEMORY_WORDS)


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, str) and value.isdigit() else integer(value)


def integer(value: Any) -> int | None:
    """Return the value if it is an integer; None otherwise."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def count(body: Mapping[str, Any], key: str) -> int | None:
    """Return a count from a reply; None if it is missing or no plausible count."""
    found = integer(body.get(key))
    return found if found is not None and 0 <= found <= MOST_COUNTED else None


def mean_logprob(entries: Any) -> float | None:
    """Return the mean natural logarithm over the reported tokens: `[{"token": ..., "logprob": ...}, ...]`.

    Ollama (`logprobs` next to `message`) and OpenAI's chat completions (`choices[0].logprobs.content`) use
    the same format. None if the list has any other entry.
    """
    if not isinstance(entries, list) or not entries:
        return None
    found: list[float] = []
    for entry in entries:
        value = entry.get("logprob") if isinstance(entry, dict) else None
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not -math.inf < value <= _ROUNDING
        ):
            return None
        found.append(min(0.0, float(value)))
    return math.fsum(found) / len(found)
