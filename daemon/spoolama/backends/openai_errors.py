"""Maps error replies of OpenAI-compatible servers to our exceptions.

Their bodies differ: `{"error": {"message", "type", "code"}}` (llama-server, newer vLLM), `{"object": "error",
"message", "code"}` (older vLLM, SGLang), `{"detail": ...}` (FastAPI, which vLLM and SGLang use).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spoolama.backends.http import HttpReply, excerpt
from spoolama.backends.refusals import error_object, is_out_of_memory, overflow
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

__all__ = ["checked", "failure"]

_DIED_IN_500 = ("engine core", "enginecore", "enginedead", "engine process", "engine loop", "scheduler died")
"""Messages of vLLM and SGLang if the engine process has ended while the API server still answers."""


def failure(reply: HttpReply, *, model: str | None = None) -> BackendError:
    """Return the exception for a reply that is not an answer."""
    message, fields = error_object(reply.payload)
    message = excerpt(message or reply.text or f"HTTP {reply.status} without a message", 600)
    status = reply.status
    if too_long := overflow(message, fields, status=status):
        return too_long
    match status:
        case 401 | 403:
            return RequestRefused(
                message, status=status, fix="Set the backend's api_key to a key that the server accepts."
            )
        case 404:
            name = f" {model}" if model else ""
            return RequestRefused(
                message,
                status=status,
                fix=f"Check that the server has the model{name} and that the backend's url is its address.",
            )
        case 408 | 425 | 429 | 499 | 503:
            return ServerBusy(message, status=status)
        case 502 | 504:
            return ServerAway(f"HTTP {status} from a proxy: {message}", status=status)
        case 413:  # a size limit of a proxy or of the server; it concerns only this row
            return ContextOverflow(message, status=status)
        case 400 | 405 | 410 | 415 | 422:
            return RequestRefused(message, status=status, fix=_fix(message))
    if 300 <= status < 400:
        return RequestRefused(
            f"HTTP {status}: the server redirects to {reply.location or 'another address'}",
            status=status,
            fix="Set the backend's url to the address of the server itself.",
        )
    if status >= 500 or status == 200:
        lower = message.lower()
        if is_out_of_memory(lower):
            return OutOfMemory(message, status=status)
        if any(words in lower for words in _DIED_IN_500):
            return ServerDied(message, status=status)
    return UnexpectedReply(f"HTTP {status}: {message}", status=status)


def checked(reply: HttpReply, *, model: str | None = None) -> Mapping[str, Any]:
    """Return the body of a successful reply; raise an error for any other."""
    if reply.status != 200:
        raise failure(reply, model=model)
    if not isinstance(reply.payload, dict):
        raise UnexpectedReply(f"HTTP 200, but not a JSON object: {excerpt(reply.text)!r}", status=200)
    if "error" in reply.payload and "choices" not in reply.payload:
        raise failure(reply, model=model)
    return reply.payload


def _fix(message: str) -> str:
    lower = message.lower()
    if any(word in lower for word in ("schema", "grammar", "response_format", "guided")):
        return "Change `format` in the sidecar: the server does not support this JSON Schema."
    return "The server rejects part of the request: correct `options` in the sidecar as its message says."
