"""Ollama's refusals, as our error tree.

Its error body is `{"error": "text"}`: status and, for the many meanings of 500, the text are all there is.
The statuses and texts were read in its source (v0.24.0 to v0.33) and recorded from a running one.
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
"""Said by a proxy that did not find the server behind it."""

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
    ("does not support thinking", "Take `think` out of the sidecar, or choose a model that can think."),
    ("think value", "Set `think` to true, false, low, medium or high."),
    (
        "json schema conversion failed",
        "Mend `format` in the sidecar: the server cannot follow this JSON Schema.",
    ),
    ("json_schema", "Mend `format` in the sidecar: the server cannot follow this JSON Schema."),
    ("grammar", "Simplify `format` in the sidecar: the server cannot follow this JSON Schema."),
    ("invalid format", "Set `format` to `json` or to a JSON Schema."),
    ("must be of type", "Mend that key under `options` in the sidecar."),
    ("does not support chat", "Choose a model that answers; this one makes embeddings."),
    ("does not support", "Choose a model that can do this, or ask less of it."),
)


def failure(reply: HttpReply, *, model: str | None = None) -> BackendError:
    """What a reply that is not an answer means.

    Args:
        reply: Status and body; a 200 whose body has an `error` counts as 500.
        model: The model asked for, for the words.
    """
    message, fields = error_object(reply.payload)
    message = excerpt(message or reply.text or f"HTTP {reply.status} without a word", 600)
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
        return RequestRefused(message, status=status, mend=_mend(message))
    if kind >= 500:
        return _server_error(message, status)
    if 300 <= kind < 400:
        return RequestRefused(
            f"HTTP {status}: the address leads on to {reply.location or 'another one'}",
            status=status,
            mend="Set the backend's url to the address of Ollama itself.",
        )
    return UnexpectedReply(f"HTTP {status}: {message}", status=status)


def _server_error(message: str, status: int) -> BackendError:
    lower = message.lower()
    if any(words in lower for words in _REFUSED_IN_500):
        return RequestRefused(message, status=status, mend=_mend(message))
    if is_out_of_memory(lower):
        return OutOfMemory(message, status=status)
    if any(words in lower for words in _DIED_IN_500):
        return ServerDied(message, status=status)
    return UnexpectedReply(f"HTTP {status}: {message}", status=status)


def _missing(reply: HttpReply, message: str, model: str | None) -> RequestRefused:
    if isinstance(reply.payload, dict) and model is not None:
        return RequestRefused(message, status=reply.status, mend=f"On the server: ollama pull {model}")
    return RequestRefused(
        f"HTTP {reply.status}: {message}",
        status=reply.status,
        mend="Is this the address of an Ollama? Set the backend's url to it, without a path.",
    )


def _forbidden(message: str, status: int) -> RequestRefused:
    if "cloud" in message.lower():
        mend = "Choose a model that runs on this server: rows are never sent to a remote one."
    else:
        mend = "Ollama accepts only local names in the address here: use its IP address or 127.0.0.1."
    return RequestRefused(message, status=status, mend=mend)


def _mend(message: str) -> str:
    lower = message.lower()
    for words, mend in _REFUSED_MENDS:
        if words in lower:
            return mend
    return ""
