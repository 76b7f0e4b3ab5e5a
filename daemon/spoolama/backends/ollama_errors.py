"""Maps error replies of Ollama to our exceptions.

Ollama's error body is `{"error": "text"}`. The mapping uses the status and, for 500, which has many meanings,
the text. Statuses and texts come from its source (v0.24.0 to v0.33) and from recordings of a running server.
"""

from __future__ import annotations

from spoolama.backends.http import HttpReply, excerpt
from spoolama.backends.refusals import error_object, is_out_of_memory, overflow
from spoolama.errors import (
    BackendError,
    OutOfMemory,
    RequestRefused,
    ServerAway,
    ServerBusy,
    ServerDied,
    UnexpectedReply,
)

__all__ = ["failure"]

_BUSY = {408, 429, 499, 503}
_AWAY = {502, 504}
"""Sent by a proxy that cannot reach the server."""

_REFUSED_IN_500 = ("must be of type", "invalid format", "failed to parse grammar", "failed to load grammar")
_DIED_IN_500 = (
    "model runner has unexpectedly stopped",
    "an error was encountered while running the model",
    "llama-server process has terminated",
    "error starting llama-server",
    "timed out waiting for llama-server to start",
    "llama runner process has terminated",  # up to 0.24
    "llama runner process no longer running",
    "timed out waiting for llama runner to start",
    "error starting runner",
    "mlx runner",
)

_REFUSED_MENDS = (
    ("does not support thinking", "Remove `think` from the sidecar, or choose a model that can think."),
    ("think value", "Set `think` to true, false, low, medium or high."),
    (
        "json schema conversion failed",
        "Change `format` in the sidecar: the server does not support this JSON Schema.",
    ),
    ("json_schema", "Change `format` in the sidecar: the server does not support this JSON Schema."),
    ("grammar", "Simplify `format` in the sidecar: the server does not support this JSON Schema."),
    ("invalid format", "Set `format` to `json` or to a JSON Schema."),
    ("must be of type", "Correct that key under `options` in the sidecar."),
    ("does not support chat", "Choose a chat model; this one computes embeddings."),
    ("does not support", "Choose a model that supports this, or remove the setting."),
)


def failure(reply: HttpReply, *, model: str | None = None) -> BackendError:
    """Return the exception for a reply that is not an answer.

    Args:
        reply: Status and body; a 200 whose body has an `error` counts as 500.
        model: The requested model, for the message.
    """
    message, fields = error_object(reply.payload)
    message = excerpt(message or reply.text or f"HTTP {reply.status} without a message", 600)
    status = reply.status
    nested = fields.get("code")
    kind = nested if isinstance(nested, int) and 400 <= nested < 600 else status
    if kind == 200:
        kind = 500

    if too_long := overflow(message, fields, status=status):
        return too_long
    if kind in _BUSY:
        return ServerBusy(message, status=status)
    if kind in _AWAY:
        return ServerAway(f"HTTP {status} from a proxy: {message}", status=status)
    if kind == 404:
        return _missing(reply, message, model)
    if kind == 403:
        return _forbidden(message, status)
    if kind in {400, 401, 405, 410, 415, 422}:
        return RequestRefused(message, status=status, fix=_fix(message))
    if kind >= 500:
        return _server_error(message, status)
    if 300 <= kind < 400:
        return RequestRefused(
            f"HTTP {status}: the server redirects to {reply.location or 'another address'}",
            status=status,
            fix="Set the backend's url to the address of Ollama itself.",
        )
    return UnexpectedReply(f"HTTP {status}: {message}", status=status)


def _server_error(message: str, status: int) -> BackendError:
    lower = message.lower()
    if any(words in lower for words in _REFUSED_IN_500):
        return RequestRefused(message, status=status, fix=_fix(message))
    if is_out_of_memory(lower):
        return OutOfMemory(message, status=status)
    if any(words in lower for words in _DIED_IN_500):
        return ServerDied(message, status=status)
    return UnexpectedReply(f"HTTP {status}: {message}", status=status)


def _missing(reply: HttpReply, message: str, model: str | None) -> RequestRefused:
    if isinstance(reply.payload, dict) and model is not None:
        return RequestRefused(message, status=reply.status, fix=f"On the server: ollama pull {model}")
    return RequestRefused(
        f"HTTP {reply.status}: {message}",
        status=reply.status,
        fix="Set the backend's url to the address of Ollama, without a path.",
    )


def _forbidden(message: str, status: int) -> RequestRefused:
    if "cloud" in message.lower():
        fix = "Choose a model that runs on this server: rows are never sent to a remote one."
    else:
        fix = "Ollama accepts only local host names: use its IP address or 127.0.0.1 in the backend's url."
    return RequestRefused(message, status=status, fix=fix)


def _fix(message: str) -> str:
    lower = message.lower()
    for words, fix in _REFUSED_MENDS:
        if words in lower:
            return fix
    return ""
